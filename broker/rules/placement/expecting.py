"""What keeps coming, by terms and time allowed: the streams that the planner expects more of."""

from __future__ import annotations

from collections.abc import Callable

from broker.rules.placement.arrivals import ArrivalLog
from broker.rules.placement.policy import Policy
from broker.rules.placement.standby import standby_rate
from broker.rules.placement.table import LaneTable
from broker.rules.placement.work import Stream, Terms

__all__ = ["Expecting", "stream_of", "window_class_s"]

_WINDOWS_S = (60, 300, 900, 3_600, 4 * 3_600, 12 * 3_600, 86_400)
_STREAMS_MAX = 500


def window_class_s(window_s: float) -> int:
    """The class of a window: the longest of a few that is not longer; a minute for those that are shorter."""
    return max((one for one in _WINDOWS_S if one <= window_s), default=_WINDOWS_S[0])


class Expecting:
    """One log of arrivals per terms and window, at most 500; what is rarer is planned when it waits."""

    def __init__(self) -> None:
        self._logs: dict[tuple[Terms, int], ArrivalLog] = {}

    def add(self, now_s: float, terms: Terms, window_s: int, jobs: float) -> None:
        """Jobs came."""
        log = self._logs.get((terms, window_s))
        if log is None and len(self._logs) < _STREAMS_MAX:
            log = self._logs[terms, window_s] = ArrivalLog()
        if log is not None:
            log.add(now_s, jobs)

    def streams(
        self, table: LaneTable, now_s: float, ahead_s: float, service_s: Callable[[Terms], float], policy: Policy
    ) -> list[Stream]:
        """What to expect within `ahead_s`; streams that brought nothing for a day are forgotten."""
        coming = []
        for (terms, window_s), log in list(self._logs.items()):
            if log.day_rate(now_s) <= 0:
                del self._logs[terms, window_s]
                continue
            start_within_s = max(1.0, window_s - service_s(terms))
            coming.append(stream_of(table, terms, start_within_s, log, now_s, ahead_s, policy))
        return coming


def stream_of(
    table: LaneTable,
    terms: Terms,
    start_within_s: float,
    log: ArrivalLog,
    now_s: float,
    ahead_s: float,
    policy: Policy,
) -> Stream:
    """What is believed of a stream, by what came of it. `ahead_s`: how long a start takes, from decision to help."""
    is_urgent = start_within_s <= 2 * ahead_s
    return Stream(
        terms=terms,
        start_within_s=start_within_s,
        recent_rate=log.recent_rate(now_s),
        expected_rate=log.expected_rate(now_s, ahead_s),
        sudden_rate=log.sudden_rate(now_s, ahead_s),
        day_rate=log.day_rate(now_s),
        standby_rate=standby_rate(table, terms, log, now_s, ahead_s, policy) if is_urgent else 0.0,
    )
