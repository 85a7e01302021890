"""Pace: how much one engine is sent, by what it answered before. Plain arithmetic; who calls says what time it is.

Four ideas:

- *The ramp.* An engine that hasn't answered yet gets one call, and twice as many every RAMP_S, up to what it may take.
  With LISTEN_AT it is listened to for LISTEN_S, for a refusal from afar takes a while; 256 are reached in 0.36 s.
- *The limit.* A server that refuses a call while it does others takes as many at once as weren't refused. Now and then
  it is asked for more; each time that is refused, the next try is twice as far off.
- *The interval.* Where even one at once is refused now and then, it is so many in a time: calls go so far apart.
- *Trouble.* TROUBLE_ANSWERS answers in a row that speak against the server, and no good one between: it gets single
  calls, as probes, until one goes well. Then the ramp begins again. No probe goes while it asks to be left alone.
"""

from __future__ import annotations

import math

from broker.domain.errors import ErrorCode
from broker.rules.evidence import RETRY_AFTER_LONG_S, Evidence, evidence_of

__all__ = ["LISTEN_AT", "LISTEN_S", "PAUSE_MAX_S", "RAMP_LATE_S", "RAMP_S", "TROUBLE_ANSWERS", "Pace"]

RAMP_S = 0.03
RAMP_LATE_S = 0.045  # once it was listened to
LISTEN_AT, LISTEN_S = 16, 0.1
TROUBLE_ANSWERS = 3
PAUSE_MAX_S = RETRY_AFTER_LONG_S
"""A server that asks for more time than this is left to the broker, which has other lanes."""

_NEVER = math.inf
_NARROWS = frozenset({ErrorCode.ENGINE_BUSY, ErrorCode.ENGINE_UNAVAILABLE})
_EARLY_S = 0.001  # a timer's own inexactness
_LATELY_S = 2.0  # a success so long ago still says that the server works
_BURST_S = 0.02  # after a refusal nothing is sent until the calls beside it were refused too
_GROW_S = 0.25
_GROW_RATE_S = 0.5
_GROW_MAX_S = 60.0
_GROW_PART = 8  # a limit grows by an eighth, one at least
_RATE_PAUSE_S = 1.0  # the commonest window of a rate limit
_AGAIN_S = 0.3
_ABOVE, _SHORTER = 1.05, 0.95
_INTERVAL_MIN_S, _INTERVAL_MAX_S = 0.001, 5.0
_STEADY = 16  # so many successes after a refusal: the pace was about right
_IN_VAIN, _IN_VAIN_S = 8, 60.0  # so many refusals without, though calls are twice as far apart: it isn't the pace


class Pace:
    """What one engine may be sent now. `limit`: calls in flight at once; `sends_at_s`: none before then.

    `trouble` is the code of the last answer against a server in trouble, None while it isn't; until `alone_until_s` it
    asks for no call at all. At `changes_at_s` call `step`. While `is_calm` nothing restrains it: `limit` is all its
    places, and no call has to ask.
    """

    __slots__ = (
        "_after_refusal",
        "_against",
        "_before",
        "_before_growth",
        "_beside_refused",
        "_cap",
        "_epoch",
        "_grow_s",
        "_in_vain_until_s",
        "_interval_s",
        "_last_second",
        "_pause_s",
        "_peak",
        "_places",
        "_refused_at_s",
        "_second_ends_s",
        "_since_step",
        "_slowed",
        "_slowed_from_s",
        "_succeeded_at_s",
        "_this_second",
        "alone_until_s",
        "changes_at_s",
        "in_flight",
        "is_calm",
        "limit",
        "sends_at_s",
        "trouble",
    )

    def __init__(self, places: int) -> None:
        self._places = places
        self._cap = places  # where the ramp ends
        self.limit = 1
        self.in_flight = 0
        self.sends_at_s = 0.0
        self.changes_at_s = _NEVER
        self.trouble: ErrorCode | None = None
        self.alone_until_s = 0.0
        self.is_calm = False
        self._against = 0
        # Calls sent before the last refusal was known can't have followed it: what becomes of them is old news.
        self._epoch = 0
        # Cap and interval before the refusals since the last success: a server that does nothing teaches nothing.
        self._before: tuple[int, float] | None = None
        self._before_growth = 0
        self._grow_s = _GROW_S
        self._peak = 0
        self._interval_s = 0.0
        self._pause_s = _AGAIN_S
        # Slowing down without an end: how often, from which interval on, and until when that is known to be in vain.
        self._slowed = 0
        self._slowed_from_s = self._in_vain_until_s = 0.0
        self._refused_at_s = 0.0
        self._after_refusal = self._since_step = 0
        self._beside_refused = 0  # in flight when the last refusal came, and not refused with it
        self._succeeded_at_s = -_NEVER
        self._second_ends_s = 0.0
        self._this_second = self._last_second = 0

    @property
    def interval_s(self) -> float:
        """How far apart calls are sent, 0 where that isn't restrained."""
        return self._interval_s

    def begin(self, now_s: float) -> int:
        """A call is sent; the mark goes with its end."""
        self.in_flight += 1
        if not self.is_calm:
            self._peak = max(self._peak, self.in_flight)
            if self._interval_s:
                self.sends_at_s = now_s + self._interval_s
            if self.limit < self._cap and self.changes_at_s == _NEVER and self.trouble is None:
                self.changes_at_s = now_s + RAMP_S
        return self._epoch

    def let_go(self) -> None:
        """A call ended that says nothing of the server: it was cancelled."""
        self.in_flight -= 1

    def succeeded(self, now_s: float) -> None:
        """A call got what it was for."""
        self.in_flight -= 1
        self._count_success(now_s)
        if not self.is_calm:
            self.well(now_s)

    def failed(self, mark: int, code: ErrorCode, retry_after_s: float, now_s: float) -> None:
        """A call ended with this code."""
        self.in_flight -= 1
        evidence = evidence_of(code)
        if evidence is None:
            return
        if evidence in (Evidence.JOB, Evidence.UNSUITED):
            self._count_success(now_s)  # of the server: it answers, and not of itself
            self.well(now_s)
            return
        self.is_calm = False
        if retry_after_s:
            self.alone_until_s = max(self.alone_until_s, now_s + retry_after_s)
        if self.trouble is not None:
            self.trouble = code
            return
        works = self.in_flight > 0 or now_s - self._succeeded_at_s < max(_LATELY_S, 4 * self._interval_s)
        if code in _NARROWS and works:
            self._narrow(mark, retry_after_s, now_s)
        else:
            self._against += 1
        waits_too_long = retry_after_s > (PAUSE_MAX_S if works else 0.0)
        if self._against >= TROUBLE_ANSWERS or waits_too_long:
            self._begin_trouble(code)

    def well(self, now_s: float) -> None:
        """The server works: what spoke against it is forgotten, and trouble is over."""
        self._against = 0
        self._before = None
        self.alone_until_s = 0.0
        if self.trouble is not None:
            self.trouble = None
            # Calls of before may be in flight for long yet; the ramp begins above them.
            self.limit = max(1, min(self._cap, self.in_flight + 1))
            self.changes_at_s = now_s + RAMP_S
        self._calm_down(now_s)

    def step(self, now_s: float) -> None:
        """Time has passed: to be called once `changes_at_s` has come."""
        if now_s < self.changes_at_s - _EARLY_S:
            return
        self.changes_at_s = _NEVER
        if self.trouble is not None:
            return
        if self.limit < self._cap:
            self.limit = min(2 * self.limit, self._cap)
            self._before_growth = 0
        else:
            self._grow()
        if self.limit < self._cap:
            self.changes_at_s = now_s + _ramp_s(self.limit)
        elif self._cap < self._places or self._interval_s:
            self.changes_at_s = now_s + self._grow_s
        self._calm_down(now_s)

    def _count_success(self, now_s: float) -> None:
        self._succeeded_at_s = now_s
        if now_s >= self._second_ends_s:
            self._last_second = self._this_second if now_s < self._second_ends_s + 1.0 else 0
            self._this_second = 0
            self._second_ends_s = now_s + 1.0
        self._this_second += 1
        self._after_refusal += 1
        self._since_step += 1

    def _calm_down(self, now_s: float) -> None:
        self.is_calm = (
            self.limit >= self._places and not self._interval_s and not self._against and now_s >= self.sends_at_s
        )

    def _grow(self) -> None:
        """A little more, where all of it was used."""
        if self._peak >= self.limit and self._cap < self._places:
            self._before_growth = 0 if self._interval_s else self.limit
            self.limit = self._cap = min(self._places, self.limit + max(1, self.limit // _GROW_PART))
        self._peak = self.in_flight
        if self._interval_s and self._since_step:
            self._interval_s *= _SHORTER
            if self._interval_s < _INTERVAL_MIN_S:
                self._interval_s, self._grow_s = 0.0, _GROW_S
        self._since_step = 0

    def _narrow(self, mark: int, retry_after_s: float, now_s: float) -> None:
        """It takes others, so it has a limit: of calls at once, or, where one at once is refused, in a time."""
        is_news = mark == self._epoch
        # So many successes may all be of calls sent before the last refusal: then the limit it left was too high.
        is_again = is_news and self._after_refusal < self._beside_refused
        if is_news:
            self._epoch += 1
            if not self._after_refusal and not self.in_flight:
                self._against += 1
            self._before = self._before or (self._cap, self._interval_s)
        pause_s = retry_after_s or (_BURST_S if is_news else 0.0)
        if self._interval_s:
            if is_news:
                pause_s = max(retry_after_s, self._slow_down(now_s))
        elif is_news and self._cap == 1 and not self.in_flight:
            self._begin_interval(now_s)
            pause_s = retry_after_s or _RATE_PAUSE_S
        elif is_news and self._before_growth:
            self._set_limit(self._before_growth)
            self._grow_s = min(2 * self._grow_s, _GROW_MAX_S)
        else:
            self._set_limit(min(self._cap, self.in_flight) // (2 if is_again else 1))
        self._beside_refused = self.in_flight if is_news else self._beside_refused - 1
        if is_news:
            self._after_refusal, self._refused_at_s = 0, now_s
        self._before_growth = 0
        self.sends_at_s = max(self.sends_at_s, now_s + min(pause_s, PAUSE_MAX_S))
        if now_s >= self._in_vain_until_s:
            self.changes_at_s = self.sends_at_s + self._grow_s
        if retry_after_s and self._cap > 1:  # what waits meanwhile must not come all at once
            self.limit, self.changes_at_s = 1, self.sends_at_s + RAMP_S

    def _set_limit(self, limit: int) -> None:
        self.limit = self._cap = max(1, limit)
        self._peak = self.in_flight

    def _begin_interval(self, now_s: float) -> None:
        """As many in a second as it did in the last one."""
        done = self._this_second
        if now_s >= self._second_ends_s:
            done = 0 if now_s >= self._second_ends_s + 1.0 else self._this_second
        else:
            done += int(self._last_second * (self._second_ends_s - now_s))
        self._interval_s = min(_ABOVE / max(1, done), _INTERVAL_MAX_S)
        self._grow_s, self._pause_s, self._slowed = _GROW_RATE_S, _AGAIN_S, 0
        self._set_limit(1)

    def _slow_down(self, now_s: float) -> float:
        """Too fast: by what it did since the last refusal. How long to send nothing."""
        if now_s < self._in_vain_until_s:
            return self._interval_s
        self._grow_s = min(2 * self._grow_s, _GROW_MAX_S)
        if self._after_refusal >= _STEADY or not self._slowed:
            self._slowed, self._slowed_from_s = 0, self._interval_s
        self._slowed += 1
        if self._after_refusal:
            measured_s = (now_s - self._refused_at_s) / self._after_refusal
            interval_s = max(self._interval_s, min(measured_s, 2 * self._interval_s)) * _ABOVE
            self._pause_s = _AGAIN_S
        else:
            interval_s = 1.5 * self._interval_s
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
        self._interval_s = min(interval_s, _INTERVAL_MAX_S)
        if self._slowed >= _IN_VAIN and self._interval_s >= 2 * self._slowed_from_s:
            # One of several servers at this address refuses all, say: it does so at any pace.
            self._interval_s, self._grow_s = self._slowed_from_s, _GROW_RATE_S
            self._in_vain_until_s, self._slowed = now_s + _IN_VAIN_S, 0
            return self._interval_s
        return max(self._interval_s, self._pause_s)

    def _begin_trouble(self, code: ErrorCode) -> None:
        self.trouble = code
        if self._before is not None:
            self._cap, self._interval_s = self._before
        self._before, self._before_growth = None, 0
        self.limit, self.sends_at_s, self.changes_at_s = 1, 0.0, _NEVER


def _ramp_s(limit: int) -> float:
    """How long the ramp stays there."""
    if limit == LISTEN_AT:
        return LISTEN_S
    return RAMP_S if limit < LISTEN_AT else RAMP_LATE_S
