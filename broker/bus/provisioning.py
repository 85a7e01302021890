"""What lanes need on their buses, compared with what is there, and made where it is missing.

On RabbitMQ workers and the broker declare their queues themselves; on clouds they only open them, for they have no
right to more. This is for the person who sets a bus up, moves it, or mends it: a queue that exists in another form
can't always be changed, and then whatever uses it fails until it is deleted.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from kombu import Connection, Queue
from kombu.exceptions import OperationalError
from kombu.utils.url import sanitize_url

from broker.bus.bus_plan import BusPlan, BusPlanLine, QueueState
from broker.bus.driver import BusUnavailable
from broker.bus.topology import AMQP_SCHEMES, dead_letter_queue, lane_queue, open_connection

__all__ = ["BusPlan", "BusPlanLine", "QueueState", "apply_bus", "plan_bus"]

REDIS_VERSION_MIN = (6, 2)
_PROVISIONERS = {
    "lanepubsub": "broker.bus.drivers.pubsub.provision",
    "laneasb": "broker.bus.drivers.servicebus.provision",
    "laneoci": "broker.bus.drivers.ociqueue.provision",
}
_OPTION_OF_ARGUMENT = {
    "x-queue-type": "queue_type",
    "x-max-length": "max_messages",
    "x-delivery-limit": "delivery_limit",
}


def plan_bus(urls_and_queues: Mapping[str, Sequence[str]]) -> BusPlan:
    """What these queues need on these buses; changes nothing. Raises BusUnavailable."""
    return _all(urls_and_queues, make=False)


def apply_bus(urls_and_queues: Mapping[str, Sequence[str]]) -> BusPlan:
    """Make what is missing, and say what was. Raises BusUnavailable; applying twice changes nothing."""
    return _all(urls_and_queues, make=True)


def _all(urls_and_queues: Mapping[str, Sequence[str]], *, make: bool) -> BusPlan:
    lines: list[BusPlanLine] = []
    for url, names in urls_and_queues.items():
        scheme = urlsplit(url).scheme
        if scheme in AMQP_SCHEMES:
            lines += _reaching(url, partial(_amqp, url=url, names=names, make=make))
        elif scheme in {"redis", "rediss"}:
            lines += _reaching(url, partial(_redis, url=url))
        elif scheme in _PROVISIONERS:
            lines += _by_its_driver(_PROVISIONERS[scheme], url, names, make=make)
        else:
            lines += [_line(url, name, QueueState.NOT_NEEDED, "comes into being on first use") for name in names]
    return BusPlan(tuple(lines))


def _by_its_driver(module: str, url: str, names: Sequence[str], *, make: bool) -> list[BusPlanLine]:
    """A cloud's SDK is loaded only where one of its queues is asked about."""
    try:
        return list(importlib.import_module(module).provision(url, names, make=make))
    except PermissionError as error:
        raise BusUnavailable(f"{sanitize_url(url)} can't be administered: {error}") from error


def _reaching(url: str, ask: Callable[[Connection], Iterable[BusPlanLine]]) -> list[BusPlanLine]:
    with open_connection(url) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0)
            return list(ask(connection))
        except (OperationalError, BusUnavailable, OSError, *connection.connection_errors) as error:
            raise BusUnavailable(f"{sanitize_url(url)} can't be used: {error}") from error


def _amqp(connection: Connection, url: str, names: Sequence[str], *, make: bool) -> Iterable[BusPlanLine]:
    for name in names:
        queue = lane_queue(url, name)
        for each in filter(None, (dead_letter_queue(queue), queue)):
            yield _amqp_queue(connection, url, each, make=make)


def _amqp_queue(connection: Connection, url: str, queue: Queue, *, make: bool) -> BusPlanLine:
    # A refused declaration closes its channel, so each has one of its own.
    try:
        with connection.channel() as channel:
            Queue.queue_declare(queue(channel), passive=True)
    except connection.channel_errors as error:
        if getattr(error, "reply_code", None) != 404:
            return _line(url, queue.name, QueueState.DIFFERENT, str(error))
        if not make:
            return _line(url, queue.name, QueueState.MISSING, _form(queue))
        with connection.channel() as channel:
            Queue.queue_declare(queue(channel))
        return _line(url, queue.name, QueueState.CREATED, _form(queue))
    try:
        with connection.channel() as channel:
            Queue.queue_declare(queue(channel))  # of what exists, a declaration only compares
    except connection.channel_errors as error:
        return _line(url, queue.name, QueueState.DIFFERENT, _how_to_mend(queue, str(error)))
    return _line(url, queue.name, QueueState.PRESENT, _form(queue))


def _form(queue: Queue) -> str:
    arguments = queue.queue_arguments or {}
    return f"{arguments['x-queue-type']}, at most {arguments['x-max-length']} messages, {arguments['x-overflow']}"


def _how_to_mend(queue: Queue, refusal: str) -> str:
    found = re.search(
        r"inequivalent arg '(?P<arg>[^']+)'.*received (?P<ours>.+?) but current is (?P<theirs>.+)", refusal
    )
    if found is None:
        return refusal
    name, ours, theirs = found["arg"], _value(found["ours"]), _value(found["theirs"])
    mend = f"let it run empty, `rabbitmqctl delete_queue {queue.name} --if-empty`, then apply"
    option = _OPTION_OF_ARGUMENT.get(name)
    if option is not None and theirs != "none":
        mend = f"either set {option}={theirs} in the bus's URL, or {mend}"
    return f"{name} is {theirs}, and '{ours}' is wanted: {mend}"


def _value(said: str) -> str:
    """RabbitMQ says: the value 'quorum' of type 'longstr'; or: none; or: '5'."""
    quoted = re.search(r"'([^']*)'", said)
    return quoted[1] if quoted else said.strip()


def _redis(connection: Connection, url: str) -> Iterable[BusPlanLine]:
    info: dict[str, Any] = connection.default_channel.client.info()
    version = str(info["redis_version"])
    if tuple(map(int, version.split(".")[:2])) < REDIS_VERSION_MIN:
        yield _line(url, "redis_version", QueueState.DIFFERENT, f"it is {version}; 6.2 or newer is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield _line(url, "maxmemory-policy", QueueState.DIFFERENT, f"{policy} may drop whole queues; set noeviction")
    kept = "on" if info.get("aof_enabled") else "off: what waits is lost with the server, and sent again by the broker"
    yield _line(url, "queues", QueueState.NOT_NEEDED, f"lists come into being on first use; appendonly is {kept}")


def _line(url: str, name: str, state: QueueState, note: str) -> BusPlanLine:
    return BusPlanLine(bus=sanitize_url(url), name=name, state=state, note=note)
