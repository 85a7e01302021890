"""Bus URLs, their transports, and what a lane's queue looks like on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from kombu import Connection, Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

from broker.bus.serializer import register_serializer

__all__ = ["LANE_TRANSPORTS", "lane_queue", "open_connection", "prepare_kombu", "transport_options_for"]

LANE_TRANSPORTS = {"lanemem": "broker.bus.drivers.memory:MemoryLaneTransport"}
"""Our own URL schemes; kombu imports the module only when the scheme is used, and with it the cloud's SDK."""

_AMQP = frozenset({"amqp", "amqps", "pyamqp", "librabbitmq"})


def prepare_kombu() -> None:
    """Teach kombu our transports and our serializer. Every factory here does; plain kombu users call it first."""
    TRANSPORT_ALIASES.update(LANE_TRANSPORTS)
    register_serializer()


def lane_queue(bus_url: str, name: str) -> Queue:
    """The queue as producer and consumer both declare it: direct, by name; a quorum queue on AMQP."""
    arguments = {"x-queue-type": "quorum"} if _scheme(bus_url) in _AMQP else None
    return Queue(name, Exchange(""), routing_key=name, durable=True, queue_arguments=arguments)


def transport_options_for(bus_url: str, transport_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The caller's options over those without which the transport isn't safe for us."""
    safe: dict[str, Any] = {}
    if _scheme(bus_url) in _AMQP:
        safe["confirm_publish"] = True
    elif _scheme(bus_url) in {"redis", "rediss"}:
        # The unacknowledged are restored by a sweep; kombu's throttle of 10 would make that every 100 s.
        safe.update(unacked_restore_throttle=1, socket_keepalive=True, health_check_interval=10)
    return {**safe, **(transport_options or {})}


def open_connection(bus_url: str, transport_options: Mapping[str, Any] | None = None) -> Connection:
    """A lazy kombu connection to any bus URL; nothing happens until it is used."""
    prepare_kombu()
    return Connection(bus_url, transport_options=transport_options_for(bus_url, transport_options))


def _scheme(bus_url: str) -> str:
    return urlsplit(bus_url).scheme
