"""Lane health: a lane whose server is in trouble rests, so that a sick lane, always with room, draws no work.

A lane is believed well until it shows otherwise. The rule is `rules.placement.health`; this keeps what it says.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import structlog

from broker.domain.errors import ErrorCode
from broker.rules.placement import health as rule
from broker.rules.placement.health import LIVE

__all__ = [
    "RESTING",
    "HealthBook",
    "LaneFault",
    "LaneHealth",
    "Rest",
    "jitter",
    "lane_trusts",
    "lanes_on_trial",
    "resting_lanes",
    "trusted_slots",
]

RESTING = "resting"
"""How the trouble of a lane begins, in a plan's words, that its health alone keeps from work."""

_log = structlog.get_logger(__name__)


class Rest(msgspec.Struct, frozen=True):
    """Why a lane gets no work now: its last fault, for how long it has been away, and for how long it still rests."""

    code: ErrorCode
    away_s: float
    left_s: float


class HealthBook(Protocol):
    """Each fault in a row doubles the rest, from 1 s to 4 s, and longer once the lane was away for 10 minutes.

    A server that names a time is left alone for as long. After the rest one job tries the lane; one success ends its
    trouble. From then on the lane gets more and more of its slots back, within 5 s.
    """

    def fault(self, lane: str, code: ErrorCode, retry_after_s: float = 0.0) -> None:
        """The lane itself is at fault. Faults that come while it rests already are the same one.

        `retry_after_s`: for how long its server asks to be left alone.
        """

    def success(self, lane: str) -> None:
        """The lane did its work."""

    def resting(self) -> Mapping[str, Rest]:
        """The lanes that get no shards now."""

    def on_trial(self) -> Mapping[str, float]:
        """The lanes whose rest is over and which have not succeeded since, each with the time when it ended.

        The times are of the book's own clock: they tell one rest from the next.
        """

    def trusts(self) -> Mapping[str, float]:
        """What part of its slots each lane gets work for, 0 to 1; a lane that isn't named, for all."""


class LaneFault(msgspec.Struct, frozen=True):
    """The state of a lane that isn't well, and its last fault. Seconds are of one clock."""

    health: rule.Health
    code: ErrorCode


def jitter() -> float:
    """By how much to shorten a rest: lanes of one server don't come back all at once."""
    return random.uniform(0.8, 1.0)  # noqa: S311 (nobody gains by guessing it)


def resting_lanes(states: Mapping[str, LaneFault], now_s: float) -> dict[str, Rest]:
    """Those that get nothing now."""
    return {
        lane: Rest(one.code, max(0.0, now_s - one.health.since_s), one.health.rests_until_s - now_s)
        for lane, one in states.items()
        if rule.is_resting(one.health, now_s)
    }


def lanes_on_trial(states: Mapping[str, LaneFault], now_s: float) -> dict[str, float]:
    """Those that one job may try."""
    return {lane: one.health.rests_until_s for lane, one in states.items() if rule.is_on_trial(one.health, now_s)}


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

    def __init__(
        self, monotonic_seconds: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = jitter
    ) -> None:
        self._monotonic_seconds = monotonic_seconds
        self._jitter = jitter
        self._lock = threading.Lock()
        self._states: dict[str, LaneFault] = {}

    def fault(self, lane: str, code: ErrorCode, retry_after_s: float = 0.0) -> None:
        """See `HealthBook.fault`."""
        with self._lock:
            now_s = self._monotonic_seconds()
            before = self._states[lane].health if lane in self._states else rule.WELL
            after = rule.faulted(before, now_s, LIVE, floor_s=retry_after_s, jitter=self._jitter())
            if after == before:
                return
            self._states[lane] = LaneFault(after, code)
        _log.warning(
            "lane_rested",
            lane=lane,
            error_code=code,
            seconds=round(after.rests_until_s - now_s, 1),
            away_seconds=round(now_s - after.since_s, 1),
        )

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

    def state_of(self, lane: str) -> LaneFault | None:
        """As it is kept; None of a lane that is well."""
        with self._lock:
            return self._states.get(lane)

    def now_s(self) -> float:
        """By the clock of its states."""
        return self._monotonic_seconds()

    def resting(self) -> dict[str, Rest]:
        """See `HealthBook.resting`."""
        with self._lock:
            return resting_lanes(self._states, self._monotonic_seconds())

    def on_trial(self) -> dict[str, float]:
        """See `HealthBook.on_trial`."""
        with self._lock:
            return lanes_on_trial(self._states, self._monotonic_seconds())

    def trusts(self) -> dict[str, float]:
        """See `HealthBook.trusts`."""
        with self._lock:
            return lane_trusts(self._states, self._monotonic_seconds())
