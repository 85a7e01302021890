"""What lanes' queues need on Pub/Sub, compared with what is there, made and mended where that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from google.pubsub_v1.types import Subscription

from broker.bus.bus_plan import BusPlanLine, QueueState
from broker.bus.drivers.pubsub.queues import Queues, dead_letters_of
from broker.bus.drivers.pubsub.sdk import open_clients, read_url, translated

__all__ = ["provision"]


def provision(url: str, queues: Sequence[str], *, make: bool) -> Iterable[BusPlanLine]:
    """Two lines per queue, its dead letters first. With `make` what is missing is made and what differs is changed.

    What can't be changed, and what a person has added, is named with the way out and left alone. Raises
    BusUnavailable, and ValueError for a URL or a name that Google doesn't take.
    """
    project, options = read_url(url)
    clients = open_clients(options)
    found = Queues(project, clients, options)
    lines = []
    try:
        for queue in queues:
            with translated(queue):
                for name in (dead_letters_of(queue), queue):
                    state, note = _settle(found, name, make=make)
                    lines.append(BusPlanLine(bus=url, name=name, state=state, note=note))
    finally:
        clients.channel.close()
    return lines


def _settle(queues: Queues, name: str, *, make: bool) -> tuple[QueueState, str]:
    wanted, found = queues.wanted(name), queues.find(name)
    foreign = [] if found is None else list(_foreign(found, wanted))
    if foreign:
        mend = f"`gcloud pubsub subscriptions delete {name} --project={queues.project}`, which drops what waits"
        return QueueState.DIFFERENT, f"{'; '.join(foreign)}: let it run empty, {mend}, then apply"
    faults = list(queues.faults(name, found))
    if faults:
        if not make:
            return QueueState.MISSING, f"{' and '.join(faults)}; wanted: {_form(wanted)}"
        queues.make_pair(name)
    differences = {} if found is None else _differences(found, wanted)
    if differences and not make:
        return QueueState.DIFFERENT, f"{'; '.join(differences.values())}: apply changes it"
    if differences:
        queues.change(name, list(differences))
        return QueueState.CREATED, f"changed: {'; '.join(differences.values())}"
    return (QueueState.CREATED if faults else QueueState.PRESENT), _form(wanted)


def _foreign(found: Subscription, wanted: Subscription) -> Iterator[str]:
    """What stays as it is until a person deletes the subscription."""
    if found.topic != wanted.topic:
        yield f"the subscription belongs to {found.topic!r}, and what is published to {wanted.topic!r} would be lost"
    if found.filter:
        yield f"the subscription has the filter {found.filter!r}, and what it drops would be lost"
    if found.push_config.push_endpoint:
        yield f"the subscription pushes to {found.push_config.push_endpoint!r}, so that no worker can pull"


def _differences(found: Subscription, wanted: Subscription) -> dict[str, str]:
    said = {}
    for field, (title, say) in _SAID.items():
        theirs, ours = say(found), say(wanted)
        if theirs != ours:
            said[field] = f"{title} is {theirs}, and {ours} is wanted"
    return said


def _form(subscription: Subscription) -> str:
    return "topic and subscription; " + ", ".join(f"{title} {say(subscription)}" for title, say in _SAID.values())


def _span(duration: Any) -> str:
    """Google's duration, or Python's, as whole seconds; days where they are whole."""
    seconds = round(duration.total_seconds()) if isinstance(duration, timedelta) else duration.seconds
    return f"{seconds // 86_400} days" if seconds and seconds % 86_400 == 0 else f"{seconds} s"


def _expiry(form: Subscription) -> str:
    # Google gives one that was made without a policy a month.
    if "expiration_policy" not in form:
        return "after 31 days"
    seconds = form.expiration_policy.ttl.total_seconds() if form.expiration_policy.ttl else 0
    return f"after {seconds / 86_400:g} days" if seconds else "never"


def _dead_letters(form: Subscription) -> str:
    policy = form.dead_letter_policy
    if not policy.dead_letter_topic:
        return "none"
    return f"to {policy.dead_letter_topic.rpartition('/')[2]} after {policy.max_delivery_attempts} deliveries"


_SAID: dict[str, tuple[str, Callable[[Subscription], str]]] = {
    "ack_deadline_seconds": ("ack deadline", lambda form: f"{form.ack_deadline_seconds} s"),
    "message_retention_duration": ("kept for", lambda form: _span(form.message_retention_duration)),
    "expiration_policy": ("unused subscription ends", _expiry),
    "dead_letter_policy": ("dead letters", _dead_letters),
}
"""What can be changed of a subscription, by Google's name of the field."""
