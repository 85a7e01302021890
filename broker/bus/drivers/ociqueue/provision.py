"""What lanes need of OCI Queue: each queue and the one for its dead letters, compared and made."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from broker.bus.bus_plan import BusPlanLine, QueueState
from broker.bus.drivers.ociqueue.address import OciQueueOptions, address_of, dead_letters_of

__all__ = ["provision"]

DAY_SECONDS = 86_400


def provision(url: str, queues: Sequence[str], *, make: bool) -> Iterable[BusPlanLine]:
    """A line for each queue and each queue of dead letters; what is missing is made if `make`.

    Queues that are there are never changed. Making twice changes nothing. Raises BusUnavailable, or ValueError when
    the URL makes no sense or the SDK is not installed.
    """
    address = address_of(url, {})
    options = address.options
    sdk = importlib.import_module("broker.bus.drivers.ociqueue.sdk").Sdk(address)
    directory = importlib.import_module("broker.bus.drivers.ociqueue.directory").Directory(sdk, address)
    try:
        names = [name for queue in queues for name in (dead_letters_of(queue, options), queue) if name is not None]
        for name in dict.fromkeys(names):
            state, note = _queue(directory, name, options, make=make)
            yield BusPlanLine(bus=url, name=name, state=state, note=note)
    finally:
        sdk.close()


def _queue(directory: Any, name: str, options: OciQueueOptions, *, make: bool) -> tuple[QueueState, str]:
    found = directory.named(name)
    if not found:
        if make:
            directory.create(name)
        return QueueState.CREATED if make else QueueState.MISSING, f"keeps messages {_long(options.retention_seconds)}"
    described = directory.describe(name, found[0].id)
    differences = list(_differences(described, options))
    if len(found) > 1:
        differences.append(f"{len(found)} queues have this name and the oldest, {described.id}, is used: delete others")
    if differences:
        return QueueState.DIFFERENT, "; ".join(differences)
    return QueueState.PRESENT, f"keeps messages {_long(described.retention_in_seconds)}"


def _differences(described: Any, options: OciQueueOptions) -> Iterator[str]:
    """What a person must decide on, each with the way out."""
    if described.lifecycle_state not in {"ACTIVE", "UPDATING"}:
        yield f"it is {described.lifecycle_state}, and must be ACTIVE: wait a minute, else delete it and apply"
    count = described.dead_letter_queue_delivery_count
    if count:
        yield (
            f"deadLetterQueueDeliveryCount is {count}, and must be 0, else what was only handed back is moved aside: "
            f"`oci queue queue-admin queue update --queue-id {described.id} --dead-letter-queue-delivery-count 0`"
        )
    kept, wanted = described.retention_in_seconds, options.retention_seconds
    if kept < wanted:
        yield (
            f"retentionInSeconds is {kept}, {wanted} is wanted, and it can't be changed: either set "
            f"retention_seconds={kept} in the bus's URL, or let it run empty, delete it, then apply"
        )


def _long(seconds: int) -> str:
    days, rest = divmod(seconds, DAY_SECONDS)
    if rest or not days:
        return f"for {seconds} seconds"
    return "for a day" if days == 1 else f"for {days} days"
