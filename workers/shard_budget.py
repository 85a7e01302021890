"""What a shard's jobs cost while they run, where its batch has a budget."""

from __future__ import annotations

from broker.domain.events import JobRan
from broker.domain.lane import Price
from broker.rules.pricing import cost_nano_usd

__all__ = ["JobCosts", "ShardBudget"]

JobCosts = dict[str, int]
"""What a job of each model costs on a lane, in nano-USD: the mean of the last shard that had a budget."""


class ShardBudget:
    """Says whether one more job may begin. Costs are at the lane's price, and what is unknown counts with its bound.

    A job at the engine counts what the ended ones cost on average, or, before the first has ended, those of the shard
    before. So a shard goes beyond its budget by one job for each place at most, and only where nothing was known yet.
    """

    def __init__(self, budget_nano_usd: int, price: Price, model: str, costs: JobCosts) -> None:
        self._budget_nano_usd = budget_nano_usd
        self._price = price
        self._model = model
        self._costs = costs
        self._spent_nano_usd = 0
        self._ended = 0
        self._under_way = 0
        self._is_over = False

    def may_begin(self) -> bool:
        """Once it is False it stays so: what is left goes back in one piece. Without any under way one may begin."""
        expected = self._under_way * self._costs.get(self._model, 0)
        self._is_over = self._is_over or self._spent_nano_usd + expected >= self._budget_nano_usd
        return not self._is_over

    def begin(self) -> None:
        """A job reaches the engine."""
        self._under_way += 1

    def end(self, ran: JobRan) -> None:
        """One that began has ended."""
        self._under_way -= 1
        self._ended += 1
        self._spent_nano_usd += self._cost(ran)
        self._costs[self._model] = self._spent_nano_usd // self._ended

    def _cost(self, ran: JobRan) -> int:
        known = cost_nano_usd(self._price, ran.usage)
        return known if ran.usage_upper is None else max(known, cost_nano_usd(self._price, ran.usage_upper))
