"""Lane health: a lane whose engine can't be reached rests, so that a dead lane, always with room, draws no work.

A lane is believed well until it shows otherwise. The rule is `rules.placement.health`; this keeps what it says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import structlog

from broker.domain.errors import ErrorCode
from broker.rules.placement import health as rule
from broker.rules.placement.health import LIVE

__all__ = ["HealthBook", "LaneFault", "LaneHealth", "lane_trusts", "resting_lanes", "trusted_slots"]

_log = structlog.get_logger(__name__)


class HealthBook(Protocol):
    """Each fault in a row doubles the rest, from 1 s to 60 s; then a few of the lane's slots try again.

    One success ends the rest. From then on the lane gets more and more of its slots back, in half the time that it
    was away, at most 2 minutes.
    """

    def fault(self, lane: str, code: ErrorCode) -> None:
        """The lane itself is at fault. Faults that come while it rests already are the same one."""

    def success(self, lane: str) -> None:
        """The lane did its work."""

    def resting(self) -> Mapping[str, ErrorCode]:
        """The lanes that get no shards now, each with its last fault."""

    def trusts(self) -> Mapping[str, float]:
        """What part of its slots each lane gets work for, 0 to 1; a lane that isn't named, for all."""


class LaneFault(msgspec.Struct, frozen=True):
    """The state of a lane that isn't well, and its last fault. Seconds are of one clock."""

    health: rule.Health
    code: ErrorCode


def resting_lanes(states: Mapping[str, LaneFault], now_s: float) -> dict[str, ErrorCode]:
    """Those that get nothing now."""
    return {lane: one.code for lane, one in states.items() if rule.is_resting(one.health, now_s)}


def lane_trusts(states: Mapping[str, LaneFault], now_s: float) -> dict[str, float]:
    """What part of each to use, where that isn't all."""
    found = {lane: rule.trust(one.health, now_s, LIVE) for lane, one in states.items()}
    return {lane: part for lane, part in found.items() if part < 1.0}


def trusted_slots(slots: Mapping[str, int], trusts: Mapping[str, float]) -> dict[str, int]:
    """The slots to use of those that are there: whole ones, and at least one of a lane that doesn't rest."""
    return {lane: count if lane not in trusts else _part(count, trusts[lane]) for lane, count in slots.items()}


def _part(count: int, part: float) -> int:
    return min(count, max(1, int(count * part))) if part > 0 else 0


class LaneHealth:
    """The health of the lanes as one process knows it, forgotten with it."""

    def __init__(self, monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_seconds = monotonic_seconds
        self._lock = threading.Lock()
        self._states: dict[str, LaneFault] = {}

    def fault(self, lane: str, code: ErrorCode) -> None:
        """See `HealthBook.fault`."""
        with self._lock:
            now_s = self._monotonic_seconds()
            before = self._states[lane].health if lane in self._states else rule.WELL
            after = rule.faulted(before, now_s, LIVE)
            if after == before:
                return
            self._states[lane] = LaneFault(after, code)
        _log.warning("lane_rested", lane=lane, error_code=code, seconds=after.rest_s)

    def success(self, lane: str) -> None:
        """See `HealthBook.success`."""
        if lane not in self._states:
            return
        with self._lock:
            state = self._states.get(lane)
            if state is None:
                return
            after = rule.succeeded(state.health, self._monotonic_seconds(), LIVE)
            if after == rule.WELL:
                del self._states[lane]
            else:
                self._states[lane] = msgspec.structs.replace(state, health=after)
        if after != state.health:
            _log.info("lane_recovered", lane=lane, is_well=after == rule.WELL)

    def resting(self) -> dict[str, ErrorCode]:
        """See `HealthBook.resting`."""
        with self._lock:
            return resting_lanes(self._states, self._monotonic_seconds())

    def trusts(self) -> dict[str, float]:
        """See `HealthBook.trusts`."""
        with self._lock:
            return lane_trusts(self._states, self._monotonic_seconds())
