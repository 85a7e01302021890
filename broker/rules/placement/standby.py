"""How much capacity stands by for urgent work, idle if need be: what costs least in expectation, by the last day.

The trade is a newsvendor's. Capacity for one more job a second, standing by, costs what doing those jobs would cost.
It saves a job where arrivals exceed what was planned for by more than what stands by already. So it is worth its cost
as long as the chance of that is at least the cost of a job over the cost of a missed one: what stands by is the
quantile `1 - job / missed` of the shortfalls there were, minute by minute.
"""

from __future__ import annotations

from broker.domain.lane import Market
from broker.rules.placement.arrivals import ArrivalLog
from broker.rules.placement.filters import bits
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.work import Terms

__all__ = ["standby_rate", "worthwhile_part"]

MISSED_TIMES = 100
"""What a missed urgent job is taken to cost where nobody said: so many times what doing it costs."""


def standby_rate(
    table: LaneTable, terms: Terms, log: ArrivalLog, now_s: float, ahead_s: float, policy: Policy
) -> float:
    """Jobs a second of urgent work to stand by for, beyond the expected rate and its margin.

    `ahead_s`: how long it takes until an instance that is started now can help.
    """
    if policy.standby is not None:
        return policy.standby * log.day_rate(now_s)
    part = worthwhile_part(table, terms, policy.missed_job_nano_usd)
    return log.shortfall(now_s, ahead_s, policy.urgent_margin, part)


def worthwhile_part(table: LaneTable, terms: Terms, missed_nano_usd: int | None) -> float:
    """In which part of all minutes no urgent job should be missed; none where that costs less than the work."""
    if missed_nano_usd is None:
        return 1.0 - 1.0 / MISSED_TIMES
    steady = [
        table.job_cost_nano_usd(index, terms.kind)
        for index in bits(table.eligible(terms).mask)
        if table.lanes[index].market is not Market.SPOT
    ]
    if not steady:
        return 0.0
    return max(0.0, 1.0 - min(steady) / max(1, missed_nano_usd))
