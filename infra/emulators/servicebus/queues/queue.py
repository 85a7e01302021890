"""One queue with its dead-letter queue: pure state, told the time in milliseconds.

Promises: a message is under at most one lock; what is settled under a lock that ended changes nothing and says so;
messages are handed out in the order of their sequence numbers, and come back to their place.
"""

from __future__ import annotations

import heapq
import uuid
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from infra.emulators.servicebus.queues.description import FOREVER_MS, QueueDescription, QueueStatus
from infra.emulators.servicebus.queues.message import Content
from infra.emulators.servicebus.queues.refusals import (
    ArgumentError,
    EntityDisabled,
    LockLost,
    MessageNotFound,
    MessageTooLarge,
    NotAllowed,
    QueueFull,
)
from infra.emulators.servicebus.queues.stored import Delivery, State, Stored

__all__ = ["Counts", "Keeper", "Queue"]

REASON = "DeadLetterReason"
DESCRIPTION = "DeadLetterErrorDescription"


class Keeper(Protocol):
    """Who is told what must outlive the process."""

    def kept(self, entity: str, message: Stored) -> None:
        """The message is in the queue as it is now."""

    def dropped(self, entity: str, sequence: int) -> None:
        """The message isn't in the queue any more."""

    def created(self, name: str, description: QueueDescription) -> None:
        """There is such a queue, now with these settings."""

    def deleted(self, name: str) -> None:
        """The queue is gone with all it held."""


class Counts(NamedTuple):
    """How many messages are in which state; locked ones are active too."""

    active: int
    deferred: int
    scheduled: int
    locked: int
    dead: int
    size_bytes: int


class Queue:
    """A queue and, in `dead`, its dead-letter queue, which has none of its own."""

    def __init__(self, name: str, description: QueueDescription, keeper: Keeper | None = None) -> None:
        self.name = name
        self.description = description
        self.dead: Queue | None = None
        self.size_bytes = 0
        self.sequence = 0  # the last one given
        self._keeper = keeper
        self._messages: dict[int, Stored] = {}
        self._order: list[int] = []  # sequence numbers, sorted; those of messages gone are skipped
        self._ready: list[int] = []  # heap of sequence numbers that may be handed out; checked when taken
        self._locks: dict[UUID, Stored] = {}
        self._due: list[tuple[int, int]] = []  # heap of (moment, sequence number): look at that message then
        self._known_ids: dict[str, tuple[int, int]] = {}  # message id -> (when, sequence number), oldest first

    @classmethod
    def with_dead_letters(cls, name: str, description: QueueDescription, keeper: Keeper | None = None) -> Queue:
        queue = cls(name, description, keeper)
        queue.dead = cls(f"{name}/$DeadLetterQueue", description, keeper)
        return queue

    # Sending.

    def send(self, now_ms: int, contents: Sequence[Content], size_bytes: int | None = None) -> list[int]:
        """Take all messages or none; their sequence numbers. `size_bytes` is what they had together on the wire."""
        self.sweep(now_ms)
        self._check_send(contents, size_bytes)
        return [self._add(now_ms, content) for content in contents]

    def _check_send(self, contents: Sequence[Content], size_bytes: int | None) -> None:
        if self.dead is None:
            raise NotAllowed("nothing can be sent to a dead-letter queue")
        if self.description.status not in {QueueStatus.ACTIVE, QueueStatus.RECEIVE_DISABLED}:
            raise EntityDisabled(f"messaging entity '{self.name}' is currently {self.description.status.value}")
        total = sum(content.size_bytes for content in contents)
        limit = self.description.max_message_kilobytes * 1024
        if (largest := size_bytes or total) > limit:
            raise MessageTooLarge(f"the message has {largest} bytes; queue '{self.name}' takes {limit}")
        quota = self.description.max_size_megabytes << 20
        if self.size_bytes + total > quota:
            raise QueueFull(f"queue '{self.name}' would hold {self.size_bytes + total} bytes; its quota is {quota}")

    def _add(self, now_ms: int, content: Content) -> int:
        if self.description.requires_duplicate_detection:
            self._forget_old_ids(now_ms)
            if (known := self._known_ids.get(content.message_id)) is not None:
                return known[1]
        self.sequence += 1
        if self.description.requires_duplicate_detection:
            self._known_ids[content.message_id] = (now_ms, self.sequence)
        message = Stored(content, self.sequence, now_ms, self._expiry(content, now_ms))
        if content.scheduled_at_ms is not None and content.scheduled_at_ms > now_ms:
            message.state, message.due_ms, message.expires_ms = State.SCHEDULED, content.scheduled_at_ms, None
        self._store(message)
        return self.sequence

    def _forget_old_ids(self, now_ms: int) -> None:
        while self._known_ids:
            message_id, (when, _) = next(iter(self._known_ids.items()))
            if when + self.description.duplicate_window_ms > now_ms:
                return
            del self._known_ids[message_id]

    def _expiry(self, content: Content, now_ms: int) -> int | None:
        ttl_ms = min(FOREVER_MS if content.ttl_ms is None else content.ttl_ms, self.description.default_ttl_ms)
        return None if ttl_ms >= FOREVER_MS else now_ms + ttl_ms

    def cancel_scheduled(self, now_ms: int, sequences: Sequence[int]) -> None:
        """Remove messages that still wait for their time; all or none."""
        self.sweep(now_ms)
        found = [self._messages.get(sequence) for sequence in sequences]
        for sequence, message in zip(sequences, found, strict=True):
            if message is None or message.state is not State.SCHEDULED:
                raise MessageNotFound(f"no scheduled message has the sequence number {sequence}")
        for sequence in set(sequences):
            self._remove(self._messages[sequence])

    # Receiving.

    def take(self, now_ms: int, count: int, *, lock: bool = True) -> list[Delivery]:
        """Up to `count` messages: each under a lock, or removed at once."""
        self.sweep(now_ms)
        deliveries: list[Delivery] = []
        while self._ready and len(deliveries) < count:
            message = self._messages.get(heapq.heappop(self._ready))
            if message is not None and message.state is State.ACTIVE and message.lock_token is None:
                deliveries.append(self._hand_out(now_ms, message, lock=lock))
        return deliveries

    def take_deferred(self, now_ms: int, sequences: Sequence[int], *, lock: bool = True) -> list[Delivery]:
        """The deferred messages of these numbers; all or none."""
        self.sweep(now_ms)
        found = []
        for sequence in dict.fromkeys(sequences):
            message = self._messages.get(sequence)
            if message is None or message.state is not State.DEFERRED or message.lock_token is not None:
                raise MessageNotFound(f"no deferred message free to be taken has the sequence number {sequence}")
            found.append(message)
        return [self._hand_out(now_ms, message, lock=lock) for message in found]

    def _hand_out(self, now_ms: int, message: Stored, *, lock: bool) -> Delivery:
        if not lock:
            data = message.encoded()
            self._remove(message)
            return Delivery(message.sequence, None, data)
        token = uuid.uuid4()
        message.lock_token = token
        self._locks[token] = message
        self._lock_until(message, now_ms + self.description.lock_duration_ms)
        return Delivery(message.sequence, token, message.encoded())

    def peek(self, now_ms: int, from_sequence: int, count: int) -> list[Stored]:
        """Messages in any state, locked ones too, from that number on."""
        self.sweep(now_ms)
        found: list[Stored] = []
        for sequence in self._order[bisect_left(self._order, from_sequence) :]:
            if len(found) >= count:
                break
            if (message := self._messages.get(sequence)) is not None:
                found.append(message)
        return found

    # Settling.

    def _locked(self, now_ms: int, token: UUID) -> Stored:
        self.sweep(now_ms)
        message = self._locks.get(token)
        if message is None:
            raise LockLost(f"the lock {token} is unknown or has ended; receive the message again")
        return message

    def complete(self, now_ms: int, token: UUID) -> None:
        self._remove(self._locked(now_ms, token))

    def abandon(self, now_ms: int, token: UUID, modified: Mapping[str, Any] | None = None) -> None:
        """Back to the queue; counts as a failed delivery."""
        message = self._locked(now_ms, token)
        message.extra.update(modified or {})
        self._fail(now_ms, message)

    def release(self, now_ms: int, token: UUID) -> None:
        """Back to the queue as if it had never been handed out."""
        message = self._locked(now_ms, token)
        self._unlock(message)
        self._make_ready(message)

    def defer(self, now_ms: int, token: UUID, modified: Mapping[str, Any] | None = None) -> None:
        """Keep it for whoever asks by its sequence number."""
        message = self._locked(now_ms, token)
        self._unlock(message)
        message.extra.update(modified or {})
        message.state = State.DEFERRED
        message.expires_ms = None  # the service doesn't expire deferred messages
        self._tell(message)

    def dead_letter(
        self,
        now_ms: int,
        token: UUID,
        reason: str | None,
        description: str | None,
        modified: Mapping[str, Any] | None = None,
    ) -> None:
        if self.dead is None:
            raise NotAllowed("a message in a dead-letter queue can't be dead-lettered again")
        message = self._locked(now_ms, token)
        message.extra.update(modified or {})
        self._bury(message, reason, description)

    def renew(self, now_ms: int, tokens: Sequence[UUID]) -> list[int]:
        """When each lock ends now; all or none."""
        messages = [self._locked(now_ms, token) for token in tokens]
        if not messages:
            raise ArgumentError("no lock tokens were given")
        until = now_ms + self.description.lock_duration_ms
        for message in messages:
            self._lock_until(message, until)
        return [until] * len(messages)

    def holds(self, token: UUID) -> bool:
        return token in self._locks

    # Time.

    def next_due_ms(self) -> int | None:
        """When `sweep` may have something to do; never later than that."""
        moments = [self._due[0][0]] if self._due else []
        later = self.dead.next_due_ms() if self.dead is not None else None
        return min([*moments, later] if later is not None else moments, default=None)

    def sweep(self, now_ms: int) -> None:
        """Activate what was scheduled, end locks, drop or bury what has expired."""
        if self.dead is not None and self.dead._due and self.dead._due[0][0] <= now_ms:  # noqa: SLF001 (one of our own)
            self.dead.sweep(now_ms)
        while self._due and self._due[0][0] <= now_ms:
            _, sequence = heapq.heappop(self._due)
            message = self._messages.get(sequence)
            if message is not None:
                self._look_at(now_ms, message)

    def _look_at(self, now_ms: int, message: Stored) -> None:
        if message.state is State.SCHEDULED:
            if message.due_ms is not None and message.due_ms <= now_ms:
                self._activate(message, message.due_ms)
        elif message.lock_token is not None:
            if message.locked_until_ms <= now_ms:
                self._fail(now_ms, message)
        elif message.expires_ms is not None and message.expires_ms <= now_ms:
            self._expire(message)

    def _activate(self, message: Stored, due_ms: int) -> None:
        # The service gives a scheduled message a new number when its time comes.
        self._remove(message)
        self.sequence += 1
        active = Stored(message.content, self.sequence, due_ms, self._expiry(message.content, due_ms))
        self._store(active)

    def _fail(self, now_ms: int, message: Stored) -> None:
        """One more delivery that came to nothing."""
        self._unlock(message)
        message.delivery_count += 1
        if message.expires_ms is not None and message.expires_ms <= now_ms:
            self._expire(message)
        elif self.dead is not None and message.delivery_count >= self.description.max_delivery_count:
            text = f"Message could not be consumed after {self.description.max_delivery_count} delivery attempts."
            self._bury(message, "MaxDeliveryCountExceeded", text)
        else:
            self._tell(message)
            self._make_ready(message)

    def _expire(self, message: Stored) -> None:
        if self.dead is not None and self.description.dead_letters_expired:
            self._bury(message, "TTLExpiredException", "The message expired and was dead lettered.")
        else:
            self._remove(message)

    def _bury(self, message: Stored, reason: str | None, description: str | None) -> None:
        self._remove(message)
        message.state, message.expires_ms = State.ACTIVE, None
        message.extra.update({key: text for key, text in ((REASON, reason), (DESCRIPTION, description)) if text})
        if self.dead is not None:
            self.dead._store(message)  # noqa: SLF001 (one of our own)

    # The store.

    def restore(self, message: Stored) -> None:
        """Put back what a keeper kept. Locks are gone; numbers go on behind the highest."""
        self.sequence = max(self.sequence, message.sequence)
        self._store(message, tell=False)

    def _store(self, message: Stored, *, tell: bool = True) -> None:
        self._messages[message.sequence] = message
        insort(self._order, message.sequence)
        self.size_bytes += message.content.size_bytes
        if tell:
            self._tell(message)
        if message.state is State.SCHEDULED and message.due_ms is not None:
            heapq.heappush(self._due, (message.due_ms, message.sequence))
        elif message.state is State.ACTIVE:
            self._make_ready(message)

    def _remove(self, message: Stored) -> None:
        self._unlock(message)
        del self._messages[message.sequence]
        self.size_bytes -= message.content.size_bytes
        if len(self._order) > 2 * len(self._messages) + 64:
            self._order = sorted(self._messages)
        if self._keeper is not None:
            self._keeper.dropped(self.name, message.sequence)

    def _make_ready(self, message: Stored) -> None:
        if message.state is not State.ACTIVE:
            return
        heapq.heappush(self._ready, message.sequence)
        if message.expires_ms is not None:
            heapq.heappush(self._due, (message.expires_ms, message.sequence))

    def _lock_until(self, message: Stored, until_ms: int) -> None:
        message.locked_until_ms = until_ms
        heapq.heappush(self._due, (until_ms, message.sequence))

    def _unlock(self, message: Stored) -> None:
        if message.lock_token is not None:
            del self._locks[message.lock_token]
            message.lock_token = None

    def _tell(self, message: Stored) -> None:
        if self._keeper is not None:
            self._keeper.kept(self.name, message)

    def has_ready(self) -> bool:
        return bool(self._ready)

    def counts(self, now_ms: int) -> Counts:
        self.sweep(now_ms)
        by_state = dict.fromkeys(State, 0)
        for message in self._messages.values():
            by_state[message.state] += 1
        dead = 0 if self.dead is None else len(self.dead._messages)  # noqa: SLF001 (one of our own)
        size = self.size_bytes + (0 if self.dead is None else self.dead.size_bytes)
        active, deferred, scheduled = by_state.values()
        return Counts(active, deferred, scheduled, len(self._locks), dead, size)
