"""How much work of a stream came, minute by minute over the last day, and what that says of the next minutes."""

from __future__ import annotations

from collections import deque
from itertools import islice, pairwise
from math import ceil

__all__ = ["ArrivalLog"]

_MINUTE_S = 60
_DAY_MINUTES = 1_440
_TREND_MINUTES = 30
_SMOOTH_MINUTES = 10
_RISE_MINUTES = 10
_GROWTH_MIN, _GROWTH_MAX = 0.5, 2.0


class ArrivalLog:
    """Jobs per minute over a day and half an hour. Told the time; holds nothing of the jobs themselves."""

    def __init__(self) -> None:
        self._minutes: deque[float] = deque(maxlen=_DAY_MINUTES + _TREND_MINUTES + 1)
        self._minute = 0
        self._day_total = 0.0
        self._shortfalls: tuple[int, list[float]] = (-_RISE_MINUTES, [])
        self._rise: tuple[int, float, float] = (-_RISE_MINUTES, 0.0, 0.0)

    def add(self, now_s: float, jobs: float) -> None:
        """Count jobs that arrive now."""
        self._advance(now_s)
        self._minutes[-1] += jobs
        self._day_total += jobs

    def recent_rate(self, now_s: float, minutes: int = 2) -> float:
        """Mean jobs per second over the last whole minutes."""
        self._advance(now_s)
        newest = len(self._minutes) - 1
        count = min(minutes, newest)
        return sum(islice(self._minutes, newest - count, newest)) / (count * _MINUTE_S) if count else 0.0

    def day_rate(self, now_s: float) -> float:
        """Mean jobs per second over the last 24 hours, or since the first job."""
        self._advance(now_s)
        # A short history is spread over at least an hour, so that one early burst doesn't pass for the day's demand.
        minutes = min(max(len(self._minutes) - 1, 60), _DAY_MINUTES)
        return max(0.0, self._day_total) / (minutes * _MINUTE_S)

    def expected_rate(self, now_s: float, ahead_s: float) -> float:
        """The highest rate to expect within `ahead_s`: yesterday's at this hour, scaled to today, or today's.

        Without a day of history it is the last half hour's.
        """
        today = self.recent_rate(now_s, _TREND_MINUTES)
        newest = len(self._minutes) - 1
        if newest < _DAY_MINUTES + _TREND_MINUTES or today == 0.0:
            return today
        ahead = round(ahead_s / _MINUTE_S) + _SMOOTH_MINUTES
        coming = list(islice(self._minutes, _TREND_MINUTES, _TREND_MINUTES + ahead))
        highest = window = sum(coming[:_SMOOTH_MINUTES])
        for index in range(_SMOOTH_MINUTES, len(coming)):
            window += coming[index] - coming[index - _SMOOTH_MINUTES]
            highest = max(highest, window)
        yesterday = sum(islice(self._minutes, 0, _TREND_MINUTES)) / (_TREND_MINUTES * _MINUTE_S)
        growth = min(_GROWTH_MAX, max(_GROWTH_MIN, today / yesterday)) if yesterday > 0 else 1.0
        return max(today, growth * highest / (_SMOOTH_MINUTES * _MINUTE_S))

    def sudden_rate(self, now_s: float, ahead_s: float) -> float:
        """The rate that may come within `ahead_s`, were it to rise as steeply as it ever did in the last day.

        At most what the day's busiest minute brought.
        """
        recent = self.recent_rate(now_s)
        if self._minute - self._rise[0] >= _RISE_MINUTES:
            self._rise = (self._minute, *self._steepest(max(1, round(ahead_s / _MINUTE_S))))
        _, rise, peak = self._rise
        return max(recent, min(recent + rise, peak))

    def shortfall(self, now_s: float, ahead_s: float, margin: float, part: float) -> float:
        """By how many jobs per second arrivals exceeded `margin` times the rate of `ahead_s` before.

        In this part of the last day's minutes, 0 to 1, it was no more.
        """
        self._advance(now_s)
        if self._minute - self._shortfalls[0] >= _RISE_MINUTES:
            self._shortfalls = (self._minute, self._sorted_shortfalls(max(1, ceil(ahead_s / _MINUTE_S)), margin))
        ranked = self._shortfalls[1]
        if not ranked or part <= 0:
            return 0.0
        return ranked[min(len(ranked) - 1, int(part * len(ranked)))]

    def _sorted_shortfalls(self, ahead: int, margin: float) -> list[float]:
        newest = len(self._minutes) - 1
        minutes = list(islice(self._minutes, max(0, newest - _DAY_MINUTES), newest))
        # What was known `ahead` minutes before each: the mean of the two minutes that had just passed.
        return sorted(
            max(0.0, came - margin * (before + after) / 2) / _MINUTE_S
            for came, (before, after) in zip(minutes[ahead + 2 :], pairwise(minutes), strict=False)
        )

    def _steepest(self, ahead: int) -> tuple[float, float]:
        """The greatest rise within so many minutes, and the highest rate, over the last day and a bit."""
        newest = len(self._minutes) - 1
        minutes = list(islice(self._minutes, max(0, newest - _DAY_MINUTES - _TREND_MINUTES), newest))
        # Two minutes at a time, as that is what the rise will be added to.
        rates = [(before + after) / (2 * _MINUTE_S) for before, after in pairwise(minutes)]
        lowest: deque[int] = deque()
        rise = 0.0
        for index, rate in enumerate(rates):
            while lowest and rates[lowest[-1]] >= rate:
                lowest.pop()
            lowest.append(index)
            if lowest[0] < index - ahead:
                lowest.popleft()
            if (risen := rate - rates[lowest[0]]) > rise:  # a call of max would take a third of this loop's time
                rise = risen
        return rise, max(rates, default=0.0)

    def _advance(self, now_s: float) -> None:
        minute = int(now_s // _MINUTE_S)
        if not self._minutes:
            self._minute = minute
            self._minutes.append(0.0)
        while self._minute < minute:
            if len(self._minutes) > _DAY_MINUTES:
                self._day_total -= self._minutes[len(self._minutes) - 1 - _DAY_MINUTES]
            self._minutes.append(0.0)
            self._minute += 1
