"""Whose waiting work goes next: what must start soon first, then tenants in turn, then the earliest.

A tenant's turn comes when it has had the least work done, by its weight; that is remembered from one look to the
next, since often only one slot is free. Who comes anew has nothing saved up.

What can't be in time any more goes after all that must start soon and still can, and before what has time: were it
first, a moment's shortage would make everything late that comes after it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from broker.rules.placement.policy import Policy

__all__ = ["Hand", "Turns", "W", "Waits"]

_BANDS_S = (120.0, 1_200.0, 7_200.0)
_LATE_BAND = 0.5
"""After the first band, before the others."""


class Waits(Protocol):
    """Work of a tenant that must start by `start_by_s` to be in time."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def start_by_s(self) -> float:
        """On the clock that the hand is dealt by."""


W = TypeVar("W", bound=Waits)


class Turns:
    """How much work each tenant had done, over its weight. Forgets those that no longer wait."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._had: dict[str, float] = {}

    def hand(self, now_s: float, lines: Mapping[str, Iterable[W]]) -> Hand[W]:
        """What waits now, by tenant; each line by `start_by_s`, and read no further than it is dealt."""
        hand = Hand(self, now_s, lines, late_last=self._policy.late_last)
        had = {tenant: self._had[tenant] for tenant in hand.tenants if tenant in self._had}
        least = min(had.values(), default=0.0)
        self._had = {tenant: had.get(tenant, least) - least for tenant in hand.tenants}
        return hand

    def had(self, tenant: str) -> float:
        """Work over its weight, more than who had least."""
        return self._had[tenant]

    def serve(self, tenant: str, work: float) -> None:
        """The tenant gets so much work done."""
        self._had[tenant] += work / self._policy.tenant_weights.get(tenant, 1.0)


class Hand(Generic[W]):
    """One look at what waits; it shrinks as groups are used up or find no room."""

    def __init__(self, turns: Turns, now_s: float, lines: Mapping[str, Iterable[W]], *, late_last: bool) -> None:
        self._turns = turns
        late_before_s = now_s if late_last else float("-inf")
        self._due_s = tuple(now_s + band_s for band_s in _BANDS_S)
        self._lines = [
            line for tenant, groups in lines.items() for line in _lines_of(tenant, iter(groups), late_before_s)
        ]
        self.tenants = {line.tenant for line in self._lines}
        self.is_of_one = len(self.tenants) <= 1
        """Whether one tenant is all that is left, so that there are no turns to take."""
        self._next: _Line[W] | None = None

    def first(self) -> W | None:
        """The group whose turn it is."""
        lines = self._lines
        self._next = lines[0] if len(lines) == 1 else min(lines, key=self._rank, default=None)
        return self._next.head if self._next else None

    def served(self, work: float) -> None:
        """The first group got so much work done, in seconds of the fastest lane for it."""
        if self._next is not None:
            self._turns.serve(self._next.tenant, work)

    def pass_over(self) -> None:
        """The first group has nothing left, or no lane has room for it."""
        if self._next is not None and not self._next.advance():
            self._lines.remove(self._next)
            self.is_of_one = len({line.tenant for line in self._lines}) <= 1

    def _rank(self, line: _Line[W]) -> tuple[float, float, float, str]:
        start_by_s = line.head.start_by_s
        band = _LATE_BAND if line.is_late else float(bisect_right(self._due_s, start_by_s))
        return band, self._turns.had(line.tenant), start_by_s, line.tenant


class _Line(Generic[W]):
    """Groups of one tenant, by `start_by_s`: those that are late, or those that are not."""

    def __init__(self, tenant: str, head: W, rest: Iterator[W], *, is_late: bool) -> None:
        self.tenant = tenant
        self.head = head
        self.is_late = is_late
        self._rest = rest

    def advance(self) -> bool:
        """On to the next group; False where there is none."""
        following = next(self._rest, None)
        if following is None:
            return False
        self.head = following
        return True


def _lines_of(tenant: str, groups: Iterator[W], late_before_s: float) -> Iterator[_Line[W]]:
    """What of a tenant's groups is late, and the others; no line is empty."""
    late: deque[W] = deque()
    head = next(groups, None)
    while head is not None and head.start_by_s < late_before_s:
        late.append(head)
        head = next(groups, None)
    if late:
        yield _Line(tenant, late.popleft(), iter(late), is_late=True)
    if head is not None:
        yield _Line(tenant, head, groups, is_late=False)
