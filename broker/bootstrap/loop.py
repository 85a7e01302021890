"""A loop: what it does, how it rests, and whether it leads. It outlives whatever a turn of it meets.

A turn is guarded whole: the step, the rest and the question who leads. What one raises is logged, and a second later
the loop goes on. Only what is no `Exception` (SystemExit, say) ends a loop, and with it the process: see `threads`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, assert_never

import msgspec
import structlog

from broker.domain.errors import BrokerError
from broker.wakeups import Topic, Waiter, Wakeups

__all__ = ["ALONE", "POLL_SECONDS", "Every", "Leads", "Loop", "Runner", "Woken"]

POLL_SECONDS = 1.0
"""How long a loop rests where nobody wakes it, stands by before it asks again, and waits after a failure."""

_STUCK_SECONDS = 30.0
_RESIGNED_SECONDS = 3.0

_log = structlog.get_logger(__name__)


class Leads(Protocol):
    """Whether this process is the one that does a role's work. Used by one thread."""

    def is_leader(self) -> bool:
        """Whether it leads now; takes over where nobody does."""

    def close(self) -> None:
        """Make room for another; asked again, it may lead again."""


class _Alone:
    def is_leader(self) -> bool:
        return True

    def close(self) -> None:
        pass


ALONE: Leads = _Alone()
"""Of a loop that runs in every process, and of the embedded form, whose process is the only one."""


class Every(msgspec.Struct, frozen=True):
    """Rest for a number of seconds. A leader that loses its lead meanwhile stands by at once."""

    seconds: float


class Woken(msgspec.Struct, frozen=True, kw_only=True):
    """Rest until the topic is notified, at most `poll_seconds()`.

    With `brief_seconds` it first rests for so long without asking for that: where to ask is work, which would be in
    the way of what the step has just begun. For the first `deaf_seconds` nothing wakes it, but a notification is kept.
    """

    topic: Topic
    poll_seconds: Callable[[], float] = lambda: POLL_SECONDS
    brief_seconds: float = 0.0
    deaf_seconds: float = 0.0


def _nothing() -> None:
    pass


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """`step` works, and returns whether there is more to do at once; if not, the loop rests.

    `leads`: while another process leads, it stands by and asks again every second. `finish` runs once, after the last
    step of a loop that was stopped.
    """

    name: str
    step: Callable[[], bool | None]
    rest: Every | Woken = Every(POLL_SECONDS)
    leads: Leads = ALONE
    finish: Callable[[], None] = _nothing


class Runner:
    """Turns one loop on the thread that calls `run`, until `stopping` is set. `failed` hears of each failure."""

    def __init__(
        self, loop: Loop, stopping: threading.Event, wakeups: Wakeups, failed: Callable[[Exception], None]
    ) -> None:
        self._loop = loop
        self._stopping = stopping
        # Of its own: several loops may rest on one topic, as the relays of several buses do.
        self._waiter = wakeups.waiter(loop.rest.topic) if isinstance(loop.rest, Woken) else None
        self._failed = failed
        self._failing_since: float | None = None

    def run(self) -> None:
        """Returns once stopped. However it ends, another process may lead from then on."""
        try:
            while not self._stopping.is_set():
                if not self._guarded(self._turn):
                    self._stopping.wait(self._pause_seconds())
            self._guarded(self._loop.finish)
        finally:
            self._loop.leads.close()

    def _turn(self) -> None:
        if not self._loop.leads.is_leader():
            self._stopping.wait(POLL_SECONDS)
        elif not self._loop.step():
            self._rest()

    def _rest(self) -> None:
        match self._loop.rest:
            case Every(seconds):
                self._rest_for(seconds)
            case Woken() as rest:
                assert self._waiter is not None  # noqa: S101 (made with the loop)
                self._rest_until_woken(rest, self._waiter)
            case _:
                assert_never(self._loop.rest)

    def _rest_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stopping.wait(min(left, POLL_SECONDS)) or not self._loop.leads.is_leader():
                return

    def _rest_until_woken(self, rest: Woken, waiter: Waiter) -> None:
        if rest.deaf_seconds:
            self._stopping.wait(rest.deaf_seconds)
        if not (rest.brief_seconds and waiter.wait(rest.brief_seconds)):
            waiter.wait(rest.poll_seconds())

    def _guarded(self, part: Callable[[], None]) -> bool:
        """Whether it went well; if not, that is logged."""
        try:
            part()
        except BrokerError as error:
            _log.warning("stage_stuck", stage=self._loop.name, reason=str(error))
            self._note(error)
        except Exception as error:  # noqa: BLE001 (a loop outlives whatever one turn meets)
            _log.exception("stage_failed", stage=self._loop.name)
            self._note(error)
        else:
            self._failing_since = None
            return True
        return False

    def _note(self, error: Exception) -> None:
        self._failing_since = self._failing_since or time.monotonic()
        self._failed(error)

    def _pause_seconds(self) -> float:
        """After a failure. A leader that could do nothing for a while makes room: another process may be able to."""
        since = self._failing_since
        if self._loop.leads is ALONE or since is None or time.monotonic() - since < _STUCK_SECONDS:
            return POLL_SECONDS
        _log.warning("leadership_given_up", role=self._loop.name)
        self._loop.leads.close()
        self._failing_since = None
        return _RESIGNED_SECONDS
