"""The service's limits, as Oracle's pages and its SDK's texts name them; each may be changed for a test."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bytes are of UTF-8, times in seconds."""

    batch_messages: int = 20
    message_bytes: int = 128 << 10
    request_bytes: int = 512 << 10
    response_bytes: int = 2 << 20
    queue_bytes: int = 2 << 30
    in_flight_messages: int = 100_000
    queues: int | None = None  # the service grants 10 a region; tests want more
    visibility_seconds: int = 43_200
    timeout_seconds: int = 30
    retention_seconds_min: int = 10
    retention_seconds: int = 604_800
    delivery_count: int = 20
