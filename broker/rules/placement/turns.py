"""Whose waiting work is cut next, one shard at a time: what must start soon first, then tenants in turn.

The same order as in `dealing`, for work that goes out in bites. A tenant's turn comes when it has had the least work
done, by its weight; that is remembered from one look to the next, since often only one slot is free. Who comes anew
has nothing saved up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

__all__ = ["Hand", "Turns", "Waiting"]

_BANDS_S = (120.0, 1_200.0, 7_200.0)


class Waiting(msgspec.Struct, frozen=True):
    """A group that waits, and until when it may."""

    group_id: bytes
    tenant_id: str
    deadline_s: float


class Turns:
    """How much work each tenant had done, in seconds over its weight. Forgets those that no longer wait."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = weights or {}
        self._had: dict[str, float] = {}

    def hand(self, now_s: float, waiting: Sequence[Waiting]) -> Hand:
        """What waits now. `waiting`: earliest deadline first."""
        tenants = {one.tenant_id for one in waiting}
        had = {tenant: self._had[tenant] for tenant in tenants if tenant in self._had}
        least = min(had.values(), default=0.0)
        self._had = {tenant: had.get(tenant, least) - least for tenant in tenants}
        return Hand(self, now_s, waiting)

    def had(self, tenant_id: str) -> float:
        """Seconds of work over its weight, more than who had least."""
        return self._had[tenant_id]

    def serve(self, tenant_id: str, work_s: float) -> None:
        """The tenant gets so much work done."""
        self._had[tenant_id] += work_s / self._weights.get(tenant_id, 1.0)


class Hand:
    """One look at what waits; it shrinks as groups are used up or find no room."""

    def __init__(self, turns: Turns, now_s: float, waiting: Sequence[Waiting]) -> None:
        self._turns = turns
        self._now_s = now_s
        self._lines: dict[str, deque[Waiting]] = {}
        for one in waiting:
            self._lines.setdefault(one.tenant_id, deque()).append(one)

    def first(self) -> Waiting | None:
        """The group whose turn it is."""
        heads = [line[0] for line in self._lines.values()]
        return min(heads, key=self._rank, default=None)

    def served(self, one: Waiting, work_s: float) -> None:
        """The group, which was first, got so many seconds of a lane."""
        self._turns.serve(one.tenant_id, work_s)

    def pass_over(self, one: Waiting) -> None:
        """The group, which was first, has nothing left, or no lane has room for it."""
        line = self._lines[one.tenant_id]
        line.popleft()
        if not line:
            del self._lines[one.tenant_id]

    def _rank(self, one: Waiting) -> tuple[int, float, float, str]:
        left_s = one.deadline_s - self._now_s
        band = sum(left_s >= limit for limit in _BANDS_S)
        return band, self._turns.had(one.tenant_id), one.deadline_s, one.tenant_id
