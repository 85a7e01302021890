"""What lanes' queues need on Service Bus, compared with what is there, made and mended where that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from azure.core.exceptions import ResourceNotFoundError
from azure.servicebus.management import QueueProperties, ServiceBusAdministrationClient
from kombu.utils.url import sanitize_url

from broker.bus.bus_plan import BusPlanLine, QueueState
from broker.bus.drivers.servicebus.sdk import address_of, open_clients, queue_form, translated

__all__ = ["provision"]


def provision(url: str, queues: Sequence[str], *, make: bool) -> Iterable[BusPlanLine]:
    """A line per queue, whose dead letters Service Bus keeps itself. With `make` missing ones are made, others mended.

    What can't be changed, and what a person has added, is named with the way out and left alone. Raises
    BusUnavailable, PermissionError where the key may not manage the namespace, ValueError for a URL without sense.
    """
    host, key, options = address_of(url, {})
    client, admin = open_clients(host, key, options)
    form = queue_form(options)
    try:
        for name in queues:
            with translated(name):
                state, note = _settle(admin, name, form, make=make)
            yield BusPlanLine(bus=sanitize_url(url), name=name, state=state, note=note)
    finally:
        admin.close()
        client.close()


def _settle(
    admin: ServiceBusAdministrationClient, name: str, form: dict[str, Any], *, make: bool
) -> tuple[QueueState, str]:
    try:
        found = admin.get_queue(name)
    except ResourceNotFoundError:
        if make:
            admin.create_queue(name, **form)
        return QueueState.CREATED if make else QueueState.MISSING, _said(form)
    if foreign := list(_foreign(found)):
        return QueueState.DIFFERENT, f"{'; '.join(foreign)}: let it run empty, delete it, then apply"
    differing = {field: getattr(found, field) for field, wanted in form.items() if getattr(found, field) != wanted}
    if not differing:
        return QueueState.PRESENT, _said(form)
    told = "; ".join(
        f"{_TITLES[field]} is {_show(theirs)}, and {_show(form[field])} is wanted"
        for field, theirs in differing.items()
    )
    if not make:
        return QueueState.DIFFERENT, f"{told}: apply changes it"
    for field in differing:
        setattr(found, field, form[field])
    admin.update_queue(found)
    return QueueState.CREATED, f"changed: {told}"


def _foreign(found: QueueProperties) -> Iterable[str]:
    """What stays as it is until a person deletes the queue, and would lose or hold up messages."""
    checks: tuple[tuple[Callable[[QueueProperties], object], str], ...] = (
        (lambda queue: queue.requires_session, "it wants sessions, which no worker opens"),
        (lambda queue: queue.forward_to, "it forwards what it gets, so that no worker can receive"),
        (lambda queue: queue.requires_duplicate_detection, "it drops what it takes for a duplicate"),
    )
    return (told for differs, told in checks if differs(found))


_TITLES = {
    "max_size_in_megabytes": "the size in megabytes",
    "lock_duration": "the lock",
    "max_delivery_count": "MaxDeliveryCount",
    "dead_lettering_on_message_expiration": "dead lettering of expired messages",
}


def _said(form: dict[str, Any]) -> str:
    return ", ".join(f"{_TITLES[field]} {_show(wanted)}" for field, wanted in form.items())


def _show(value: object) -> str:
    seconds = getattr(value, "total_seconds", None)
    return f"{seconds():g} s" if seconds is not None else {True: "on", False: "off"}.get(value, f"{value:,}")  # type: ignore[call-overload] # (numbers are no keys of it)
