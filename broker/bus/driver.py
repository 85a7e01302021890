"""The lane driver port: what one kind of bus must be able to do for the transport.

A driver is small and blocking. Everything that is the same on every cloud (credit, wake-ups, batches of
settlements, renewal of leases, retries, dead letters, logging) lives once, in `broker.bus.puller` and
`broker.bus.transport`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

__all__ = [
    "BusUnavailable",
    "LaneDriver",
    "MessageRefused",
    "MessageTooLarge",
    "PublishError",
    "QueueMissing",
    "Received",
    "SharedReceive",
]


class BusUnavailable(Exception):
    """The bus can't be reached, or refused the whole call; what it did with the call is unknown. Try again later."""


class QueueMissing(BusUnavailable):
    """The queue doesn't exist, and this driver may not or did not create it."""


class PublishError(Exception):
    """Some messages of a call were not confirmed. Those whose index isn't in `errors` were.

    `errors` maps an index into the call's sequence to what went wrong with that message.
    """

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        first_index, first = min(errors.items())
        super().__init__(f"{len(errors)} messages were not confirmed; the first, at index {first_index}: {first}")
        self.errors: dict[int, Exception] = dict(errors)


class MessageTooLarge(Exception):
    """The message has more bytes than the bus takes; its body belongs into the object store."""


class MessageRefused(Exception):
    """The bus is there and does not take this message, mostly because its queue is full. Try again later."""


class Received(msgspec.Struct, frozen=True):
    """One delivered message, ours until its lease ends.

    `handle` names this delivery, not the message; `attempts` counts deliveries including this one, 1 where
    the bus doesn't count; `queue` is where it came from.
    """

    queue: str
    handle: Hashable
    data: bytes
    attempts: int = 1


class LaneDriver(Protocol):
    """One connection to a bus.

    Every method may raise BusUnavailable, and may be called from any thread at any time: several threads receive,
    settle, extend and publish at once. A driver whose SDK isn't thread-safe makes its calls take turns, and lets none
    of them wait for a receive's whole `wait_seconds`.
    """

    max_receive: int
    """The most messages one `receive` may ask for."""
    max_publish: int
    """The most messages one `publish` may carry; splitting further by bytes is the driver's own business."""
    max_message_bytes: int
    """The most bytes of one message; the transport refuses larger ones before they reach the driver."""
    lease_seconds: float
    """How long a received message stays ours without `extend`."""
    native_dead_letter: bool
    """Whether `dead_letter` uses the bus's own dead-letter queue rather than a second queue of ours."""
    settles_locally: bool
    """Whether settling costs no round trip; then it happens in the caller's thread."""

    def ensure(self, queue: str) -> None:
        """Make sure that the queue exists.

        In passive mode, which is the rule on clouds, only check: workers hold no administrative rights there, and
        a missing queue raises QueueMissing.
        """

    def publish(self, queue: str, items: Sequence[bytes]) -> None:
        """Return when the bus has confirmed every item; raise PublishError naming those it has not."""

    def receive(self, queue: str, count: int, wait_seconds: float) -> list[Received]:
        """Up to `count` messages. Waits until there is one or the wait is over; then an empty list."""

    def ack(self, queue: str, handles: Sequence[Hashable]) -> dict[Hashable, Exception]:
        """Remove messages for good. The answer names those that could not be, mostly because the lease was lost."""

    def release(self, queue: str, handles: Sequence[Hashable], delay_seconds: float) -> None:
        """Give messages back, so that anyone may receive them after the delay. Lost leases are no error."""

    def extend(self, queue: str, handles: Sequence[Hashable], seconds: float) -> dict[Hashable, Exception]:
        """Let leases end `seconds` from now. The answer names those that were already lost."""

    def dead_letter(self, queue: str, received: Sequence[Received], reason: str) -> None:
        """Move messages aside with a reason, where a person can look at them."""

    def size(self, queue: str) -> int | None:
        """How many messages wait, not counting leased ones; None where the bus can't say. QueueMissing if it can."""

    def purge(self, queue: str) -> int:
        """Drop every waiting message; how many, or 0 where the bus can't say."""

    def delete(self, queue: str) -> None:
        """Remove the queue with all it holds; harmless where it doesn't exist."""

    def wake(self) -> None:
        """Let receives in flight return early. A hint: where the SDK can't, they return when their wait is over."""

    def close(self) -> None:
        """Give back what is still leased where the bus allows it, and free everything. Harmless a second time."""


@runtime_checkable
class SharedReceive(Protocol):
    """What a driver adds when one call can wait on several queues at once.

    With it, one thread serves all queues of a channel and the prefetch limit holds exactly across them;
    without it each queue has a puller of its own.
    """

    def receive_any(self, queues: Sequence[str], count: int, wait_seconds: float) -> list[Received]:
        """As `receive`, from whichever of the queues has messages, fairly."""
