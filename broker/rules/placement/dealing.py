"""Dealing: free capacity goes to waiting work, one bite after another, in the running broker and in the simulation.

Whose turn it is says `turns`; which lanes a group may use, and in which order, says the plan, and `steadied` corrects
it for what was preempted. How much a bite is, and whether a lane has room for it, is the caller's: a shard in the
running broker, an amount of fluid in the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from broker.rules.placement.policy import Policy
from broker.rules.placement.turns import Hand, W

__all__ = ["deal", "steadied"]

_LAST_CHANCE_S = 60.0
"""A job with less time than this that was preempted would be late if it were preempted once more."""

L = TypeVar("L")


def deal(hand: Hand[W], is_open: Callable[[], bool], give: Callable[[W], float | None]) -> None:
    """While any lane is open, whose turn it is is given a bite.

    `give` returns the work in it, in seconds of the fastest lane; None when the group has nothing left, or no lane of
    it has room, and then the hand is dealt without it.
    """
    while is_open() and (waiting := hand.first()) is not None:
        work = give(waiting)
        if work is None:
            hand.pass_over()
        else:
            hand.served(work)


def steadied(
    lanes: Sequence[L], is_interruptible: Callable[[L], bool], preemptions: int, left_s: float, policy: Policy
) -> Sequence[L]:
    """The lanes for jobs that were preempted so often and must start within `left_s`.

    Too often: those alone that are not taken away, where there is one. Before that, with little time left: those
    first.
    """
    if not preemptions:
        return lanes
    steady = [lane for lane in lanes if not is_interruptible(lane)]
    if preemptions >= policy.preemptions_max:
        return steady or lanes
    if left_s < _LAST_CHANCE_S:
        return [*steady, *(lane for lane in lanes if is_interruptible(lane))]
    return lanes
