"""Lane health: a lane whose engine can't be reached rests, so that a dead lane, always with room, draws no work.

A lane is believed well until it shows otherwise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from broker.domain.errors import ErrorCode

__all__ = ["Health", "LaneHealth", "rest_seconds_after"]

_REST_SECONDS_MIN = 1.0
_REST_SECONDS_MAX = 60.0

_log = structlog.get_logger(__name__)


class Health(Protocol):
    """Each fault in a row doubles the rest, from 1 s to 60 s; one success ends it. Then the next shard tries again."""

    def fault(self, lane: str, code: ErrorCode) -> None:
        """The lane itself is at fault. Faults that come while it rests already are the same one."""

    def success(self, lane: str) -> None:
        """The lane did its work."""

    def resting(self) -> Mapping[str, ErrorCode]:
        """The lanes that get no shards now, each with its last fault."""


def rest_seconds_after(last_rest_seconds: float) -> float:
    """How long a lane rests that has failed again, after its last rest; 0 for none."""
    return min(max(2 * last_rest_seconds, _REST_SECONDS_MIN), _REST_SECONDS_MAX)


class LaneHealth:
    """The health of the lanes as one process knows it, forgotten with it."""

    def __init__(self, monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_seconds = monotonic_seconds
        self._lock = threading.Lock()
        self._rests: dict[str, tuple[float, float, ErrorCode]] = {}

    def fault(self, lane: str, code: ErrorCode) -> None:
        """See `Health.fault`."""
        with self._lock:
            now = self._monotonic_seconds()
            until, last_rest, _ = self._rests.get(lane, (0.0, 0.0, code))
            if now < until:
                return
            rest = rest_seconds_after(last_rest)
            self._rests[lane] = (now + rest, rest, code)
        _log.warning("lane_rested", lane=lane, error_code=code, seconds=rest)

    def success(self, lane: str) -> None:
        """See `Health.success`."""
        if lane in self._rests:
            with self._lock:
                self._rests.pop(lane, None)
            _log.info("lane_recovered", lane=lane)

    def resting(self) -> dict[str, ErrorCode]:
        """See `Health.resting`."""
        with self._lock:
            now = self._monotonic_seconds()
            return {lane: code for lane, (until, _, code) in self._rests.items() if now < until}
