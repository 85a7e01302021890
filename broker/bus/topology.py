"""Bus URLs, their transports and options, and what a lane's queue looks like on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from kombu import Connection, Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

from broker.bus.serializer import register_serializer
from broker.domain.desired import DESIRED_MESSAGES_MAX, DESIRED_QUEUE

__all__ = [
    "AMQP_SCHEMES",
    "LANE_TRANSPORTS",
    "dead_letter_queue",
    "lane_queue",
    "newest_kept",
    "open_connection",
    "plain_url",
    "prepare_kombu",
    "transport_for",
    "transport_options_for",
]

LANE_TRANSPORTS = {
    "laneasb": "broker.bus.drivers.servicebus:ServiceBusLaneTransport",
    "lanemem": "broker.bus.drivers.memory:MemoryLaneTransport",
    "laneoci": "broker.bus.drivers.ociqueue:OciQueueLaneTransport",
    "lanepubsub": "broker.bus.drivers.pubsub:PubSubLaneTransport",
}
"""Our own URL schemes; kombu imports the module only when the scheme is used, and with it the cloud's SDK."""

_OVER_STOCK = {
    "amqp": "broker.bus.amqp:AmqpTransport",
    "amqps": "broker.bus.amqp:AmqpsTransport",
    "redis": "broker.bus.redis:RedisTransport",
    "rediss": "broker.bus.redis:RedissTransport",
}
"""Ours in place of kombu's, for our own connections only: whoever else uses kombu in this process keeps kombu's."""

AMQP_SCHEMES = frozenset({"amqp", "amqps"})
_REDIS_SCHEMES = frozenset({"redis", "rediss"})

DEAD_LETTERS_MAX = 10_000
QUEUE_TYPES = ("quorum", "classic")
_NEWEST_KEPT = {DESIRED_QUEUE: DESIRED_MESSAGES_MAX}
"""Queues that never refuse: when full, their oldest messages go. All others push back."""

_AMQP_OPTIONS: dict[str, Callable[[str], Any]] = {
    "queue_type": str,
    "max_messages": int,
    "delivery_limit": int,
    "max_message_bytes": int,
    "confirm_seconds": float,
    "answer_seconds": float,
}
_REDIS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "visibility_timeout": float,
    "max_messages": int,
    "max_message_bytes": int,
    "max_attempts": int,
    "socket_timeout": float,
    "health_check_interval": int,
    "global_keyprefix": str,
}
"""What a URL's query may set. Times in seconds."""

_AMQP_DEFAULTS = {"confirm_publish": True, "queue_type": "quorum", "max_messages": 100_000, "delivery_limit": 20}
_REDIS_DEFAULTS = {
    "visibility_timeout": 60.0,  # renewed four times in that time, so it needn't outlast a shard
    "socket_timeout": 15.0,  # well above the one second that a consumer waits on the server
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "health_check_interval": 10,
}


def prepare_kombu() -> None:
    """Teach kombu our transports and our serializer. Every factory here does; plain kombu users call it first."""
    TRANSPORT_ALIASES.update(LANE_TRANSPORTS)
    register_serializer()


def transport_for(bus_url: str) -> str | None:
    """The transport to name to kombu; None where its own choice by scheme is right."""
    return _OVER_STOCK.get(_scheme(bus_url))


def plain_url(bus_url: str) -> str:
    """The URL as kombu takes it: without our options in its query, on the schemes that kombu parses."""
    known = _query_options(bus_url)
    if not known:
        return bus_url
    parts = urlsplit(bus_url)
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in known]
    return urlunsplit(parts._replace(query=urlencode(kept)))


def transport_options_for(bus_url: str, transport_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The caller's options, over those in the URL, over those without which the transport isn't safe for us."""
    scheme = _scheme(bus_url)
    given = {**_query_options(bus_url), **(transport_options or {})}
    if scheme in AMQP_SCHEMES:
        options = {**_AMQP_DEFAULTS, **given}
        if options["queue_type"] not in QUEUE_TYPES:
            raise ValueError(f"queue_type is {options['queue_type']!r}; RabbitMQ has {' and '.join(QUEUE_TYPES)}")
        return options
    if scheme in _REDIS_SCHEMES:
        options = {**_REDIS_DEFAULTS, **given}
        # kombu's throttle of 10 would look for abandoned messages every tenth time only.
        return {"unacked_restore_interval": options["visibility_timeout"] / 4, "unacked_restore_throttle": 1, **options}
    return given


def lane_queue(bus_url: str, name: str, transport_options: Mapping[str, Any] | None = None) -> Queue:
    """The queue as producer and consumer both declare it: direct, by name.

    On AMQP it is bounded and pushes back when full, and what it can't deliver goes to `<name>-dead`. Where the newest
    are kept, it drops what is oldest, and what it can't deliver.
    """
    if _scheme(bus_url) not in AMQP_SCHEMES:
        # kombu's gcpubsub makes topics for exchanges alone; where to publish is the queue's name on every bus.
        exchange = name if _scheme(bus_url) == "gcpubsub" else ""
        return Queue(name, Exchange(exchange), routing_key=name, durable=True)
    options = transport_options_for(bus_url, transport_options)
    kept = newest_kept(name)
    if kept is not None:
        dropping = {"x-queue-type": options["queue_type"], "x-max-length": kept, "x-overflow": "drop-head"}
        return LaneQueue(name, Exchange(""), routing_key=name, durable=True, queue_arguments=dropping)
    arguments = {
        "x-queue-type": options["queue_type"],
        "x-max-length": options["max_messages"],
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": _dead(name),
    }
    if options["queue_type"] == "quorum":
        arguments["x-delivery-limit"] = options["delivery_limit"]
    return LaneQueue(name, Exchange(""), routing_key=name, durable=True, queue_arguments=arguments)


def newest_kept(name: str) -> int | None:
    """How many messages this queue keeps, the newest; None for one that refuses what is too much."""
    return _NEWEST_KEPT.get(name)


def dead_letter_queue(queue: Queue) -> Queue | None:
    """Where the queue's dead letters go, keeping the newest; None where no queue is needed for them."""
    arguments = queue.queue_arguments or {}
    name = arguments.get("x-dead-letter-routing-key")
    if name is None:
        return None
    kept = {"x-queue-type": arguments["x-queue-type"], "x-max-length": DEAD_LETTERS_MAX, "x-overflow": "drop-head"}
    return Queue(name, Exchange(""), routing_key=name, durable=True, queue_arguments=kept)


class LaneQueue(Queue):
    """A queue whose declaration declares first where its dead letters go: RabbitMQ drops them if that is missing."""

    def declare(self, nowait: bool = False, channel: Any = None) -> Any:
        dead = dead_letter_queue(self)
        if dead is not None:
            dead(channel or self.channel).declare(nowait=nowait)
        return super().declare(nowait=nowait, channel=channel)


def open_connection(bus_url: str, transport_options: Mapping[str, Any] | None = None) -> Connection:
    """A lazy kombu connection to any bus URL; nothing happens until it is used."""
    prepare_kombu()
    options = transport_options_for(bus_url, transport_options)
    return Connection(plain_url(bus_url), transport=transport_for(bus_url), transport_options=options)


def _query_options(bus_url: str) -> dict[str, Any]:
    scheme = _scheme(bus_url)
    if scheme in AMQP_SCHEMES:
        known = _AMQP_OPTIONS
    elif scheme in _REDIS_SCHEMES:
        known = _REDIS_OPTIONS
    else:
        return {}
    options = {}
    for name, value in parse_qsl(urlsplit(bus_url).query):
        if name.startswith("ssl_"):
            continue  # kombu's own
        if name not in known:
            raise ValueError(f"a {scheme} URL has no option {name!r}; it has {', '.join(known)}")
        try:
            options[name] = known[name](value)
        except ValueError:
            raise ValueError(f"{name} is {value!r} in a {scheme} URL; it must be a number") from None
    return options


def _dead(name: str) -> str:
    return f"{name}-dead"


def _scheme(bus_url: str) -> str:
    return urlsplit(bus_url).scheme
