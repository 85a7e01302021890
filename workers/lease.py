"""The lease port: claim a shard, renew the right to it, and know when that right is gone.

A worker hears of time only as lengths. It counts each lease on its own monotonic clock from before it asked,
so it never believes in a lease longer than the broker does.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Protocol

from broker.domain.shard import ClaimAnswer, ClaimShard, RenewAnswer, RenewLease

__all__ = ["ClaimedOnce", "Lease", "LeaseDoor"]

_CLAIMS_REMEMBERED = 10_000
_AGAIN_SECONDS = 1.0
"""The rescuer waits two thirds of a lease after an outage: a question that hangs, this pause, and one more fit in."""


class LeaseDoor(Protocol):
    """The broker's side: `broker.leasing.LeaseDoor` itself in the embedded form."""

    def claim(self, question: ClaimShard) -> ClaimAnswer:
        """May this worker run the shard? Blocks; raises when the broker can't be asked."""

    def renew(self, question: RenewLease) -> RenewAnswer:
        """May it go on? Blocks; raises when the broker can't be asked."""


class ClaimedOnce:
    """A door through which this process gets no shard twice.

    The broker gives one worker the same answer again, for the first may have got lost. So a message that the bus
    brings again, while its shard runs here or after it ran, is told apart on this side.
    """

    def __init__(self, door: LeaseDoor) -> None:
        self._door = door
        self._lock = threading.Lock()
        self._claimed: OrderedDict[bytes, None] = OrderedDict()

    def claim(self, question: ClaimShard) -> ClaimAnswer:
        """See `LeaseDoor.claim`."""
        with self._lock:
            if question.shard_id in self._claimed:
                return ClaimAnswer(granted=False)
            self._claimed[question.shard_id] = None
            if len(self._claimed) > _CLAIMS_REMEMBERED:
                self._claimed.popitem(last=False)
        try:
            return self._door.claim(question)
        except Exception:
            with self._lock:
                self._claimed.pop(question.shard_id, None)  # it never ran here, so the bus may bring it again
            raise

    def renew(self, question: RenewLease) -> RenewAnswer:
        """See `LeaseDoor.renew`."""
        return self._door.renew(question)


class Lease:
    """The right to one shard, as this worker may count on it."""

    def __init__(self, door: LeaseDoor, shard_id: bytes, lane: str, worker_id: str) -> None:
        self._door = door
        self._shard_id = shard_id
        self._lane = lane
        self._worker_id = worker_id
        self._until = 0.0
        self._seconds = 0.0
        self._in_vain = False
        self.cancelled = False
        self.cancelled_jobs = b""

    def claim(self) -> bool:
        """Ask for the shard; False when it is another's."""
        asked = time.monotonic()
        answer = self._door.claim(ClaimShard(self._shard_id, self._lane, self._worker_id))
        self._follow(asked, answer.lease_seconds)
        self.cancelled = answer.cancelled
        self.cancelled_jobs = answer.cancelled_jobs
        return answer.granted

    def renew(self, running: bytes) -> bool:
        """Ask for more time, naming the indices under way; False when the lease is lost."""
        asked = time.monotonic()
        self._in_vain = True
        answer = self._door.renew(RenewLease(self._shard_id, self._lane, self._worker_id, running))
        self._in_vain = False
        if answer.granted:
            self._follow(asked, answer.lease_seconds)
        self.cancelled = answer.cancelled
        self.cancelled_jobs = answer.cancelled_jobs
        return answer.granted

    @property
    def is_over(self) -> bool:
        """Whether its time ran out without a renewal."""
        return time.monotonic() >= self._until

    @property
    def renew_seconds(self) -> float:
        """When to renew next: with a third of the lease gone, or soon where the broker could not be asked just now."""
        third = max(0.05, self._seconds / 3)
        return min(third, _AGAIN_SECONDS) if self._in_vain else third

    def _follow(self, asked: float, seconds: float) -> None:
        self._seconds = seconds
        self._until = asked + seconds
