"""The in-memory bus: a real driver whose broker is this process.

A bus is named by its URL, `lanemem://name`, and lives as long as the process or until `discard_bus`. Its
settings are URL query or transport options: `lease_seconds` (30), and for whoever opens the bus first
`max_messages` (100,000 per queue), `max_queue_bytes` (1 GiB per queue) and `max_message_bytes` (64 MiB).
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from broker.bus.driver import BusUnavailable, LaneDriver, MessageRefused, PublishError, QueueMissing, Received
from broker.bus.transport import LaneTransport

__all__ = ["DeadLetter", "MemoryDriver", "MemoryLaneTransport", "MemoryOptions", "QueueFull", "discard_bus"]

DEAD_LETTERS_MAX = 1_000


class QueueFull(MessageRefused):
    """The queue holds as much as it may; the producer must wait for consumers."""


class LeaseLost(Exception):
    """The lease ended, or the message was settled before."""


class MemoryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a `lanemem` URL may say; see the module's text."""

    lease_seconds: float = 30.0
    max_messages: int = 100_000
    max_queue_bytes: int = 1 << 30
    max_message_bytes: int = 64 << 20


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that was moved aside."""

    data: bytes
    attempts: int
    reason: str


class _Message:
    __slots__ = ("attempts", "data", "lease_until", "owner")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.attempts = 0
        self.lease_until = 0.0
        self.owner: MemoryDriver | None = None


class _Queue:
    def __init__(self) -> None:
        self.ready: deque[_Message] = deque()
        self.leased: dict[Hashable, _Message] = {}
        self.ends: list[tuple[float, int]] = []  # heap of (lease end, handle); stale entries are skipped
        self.bytes_held = 0
        self.waiters: set[threading.Condition] = set()
        self.dead: deque[DeadLetter] = deque(maxlen=DEAD_LETTERS_MAX)

    def notify_waiters(self) -> None:
        for waiter in self.waiters:
            waiter.notify()

    def next_end(self, now: float) -> float | None:
        """Take expired messages back and tell when the next lease ends, on the monotonic clock."""
        while self.ends:
            until, handle = self.ends[0]
            message = self.leased.get(handle)
            if message is None or message.lease_until > until:
                heapq.heappop(self.ends)
                if message is not None:
                    heapq.heappush(self.ends, (message.lease_until, handle))
                continue
            if until > now:
                return until
            heapq.heappop(self.ends)
            self.give_back(handle)
        return None

    def give_back(self, handle: Hashable) -> bool:
        message = self.leased.pop(handle, None)
        if message is None:
            return False
        message.owner = None
        self.ready.appendleft(message)
        self.notify_waiters()
        return True

    def remove(self, handle: Hashable) -> _Message | None:
        message = self.leased.pop(handle, None)
        if message is not None:
            self.bytes_held -= len(message.data)
        return message


class _Bus:
    def __init__(self, options: MemoryOptions) -> None:
        self.options = options
        self.lock = threading.Lock()
        self.queues: dict[str, _Queue] = {}
        self.handles = itertools.count(1)


_buses: dict[str, _Bus] = {}
_buses_lock = threading.Lock()


def discard_bus(name: str) -> None:
    """Forget the bus of that name and what it holds; drivers still open keep their own view of it."""
    with _buses_lock:
        _buses.pop(name, None)


class MemoryDriver:
    """One connection to a named in-memory bus; keeps every promise of `LaneDriver`.

    A full queue pushes back: `publish` raises PublishError with QueueFull instead of waiting. Queues come into
    being on first use. Closing gives back what this connection still leases, at once.
    """

    max_receive = 1_000
    max_publish = 10_000
    native_dead_letter = True
    settles_locally = True

    def __init__(self, name: str, options: MemoryOptions) -> None:
        with _buses_lock:
            self._bus = _buses.setdefault(name, _Bus(options))
        self.lease_seconds = options.lease_seconds
        self.max_message_bytes = self._bus.options.max_message_bytes
        self._wakes = 0
        self._wakes_seen = threading.local()  # a wake that comes just before a receive must still end it
        self._waiting: set[threading.Condition] = set()
        self._closed = False

    def ensure(self, queue: str) -> None:
        with self._bus.lock:
            self._queue(queue)

    def publish(self, queue: str, items: Sequence[bytes]) -> None:
        options = self._bus.options
        errors: dict[int, Exception] = {}
        with self._bus.lock:
            self._check_open()
            target = self._queue(queue)
            for index, data in enumerate(items):
                count = len(target.ready) + len(target.leased)
                if count >= options.max_messages or target.bytes_held + len(data) > options.max_queue_bytes:
                    held = f"{count} messages of {target.bytes_held} bytes"
                    limit = f"{options.max_messages} messages, {options.max_queue_bytes} bytes"
                    errors[index] = QueueFull(f"queue {queue!r} is full: it holds {held}; the limit is {limit}")
                    continue
                target.ready.append(_Message(data))
                target.bytes_held += len(data)
            target.notify_waiters()
        if errors:
            raise PublishError(errors)

    def receive(self, queue: str, count: int, wait_seconds: float) -> list[Received]:
        return self.receive_any([queue], count, wait_seconds)

    def receive_any(self, queues: Sequence[str], count: int, wait_seconds: float) -> list[Received]:
        """As `receive`, from whichever of the queues has messages, taking from each in turn."""
        deadline = time.monotonic() + wait_seconds
        waiter: threading.Condition | None = None
        watched: list[_Queue] = []
        with self._bus.lock:
            wakes = getattr(self._wakes_seen, "count", 0)
            try:
                while True:
                    self._check_open()
                    now = time.monotonic()
                    present = [(name, self._present(name)) for name in queues]
                    ends = [end for _, queue in present if (end := queue.next_end(now)) is not None]
                    received = self._take(present, count, now)
                    if received or now >= deadline or self._wakes != wakes:
                        return received
                    if waiter is None:
                        waiter = threading.Condition(self._bus.lock)
                        self._waiting.add(waiter)
                        watched = [queue for _, queue in present]
                        for queue in watched:
                            queue.waiters.add(waiter)
                    waiter.wait(min([deadline, *ends]) - now)
            finally:
                self._wakes_seen.count = self._wakes
                if waiter is not None:
                    self._waiting.discard(waiter)
                    for queue in watched:
                        queue.waiters.discard(waiter)

    def _take(self, present: list[tuple[str, _Queue]], count: int, now: float) -> list[Received]:
        received: list[Received] = []
        until = now + self.lease_seconds
        waiting = [(name, queue) for name, queue in present if queue.ready]
        while waiting and len(received) < count:
            for name, queue in waiting:
                if len(received) >= count:
                    break
                message = queue.ready.popleft()
                message.attempts += 1
                message.lease_until = until
                message.owner = self
                handle = next(self._bus.handles)
                queue.leased[handle] = message
                heapq.heappush(queue.ends, (until, handle))
                received.append(Received(name, handle, message.data, message.attempts))
            waiting = [(name, queue) for name, queue in waiting if queue.ready]
        return received

    def ack(self, queue: str, handles: Sequence[Hashable]) -> dict[Hashable, Exception]:
        with self._bus.lock:
            source = self._queue(queue)
            return {handle: LeaseLost(str(handle)) for handle in handles if source.remove(handle) is None}

    def release(self, queue: str, handles: Sequence[Hashable], delay_seconds: float) -> None:
        now = time.monotonic()
        with self._bus.lock:
            source = self._queue(queue)
            # Last one first, so that the front of the queue is in the order of delivery again.
            for handle in reversed(handles):
                if delay_seconds <= 0:
                    source.give_back(handle)
                elif (message := source.leased.get(handle)) is not None:
                    message.lease_until = now + delay_seconds
                    message.owner = None
                    heapq.heappush(source.ends, (message.lease_until, int(str(handle))))
            if delay_seconds > 0:
                source.notify_waiters()

    def extend(self, queue: str, handles: Sequence[Hashable], seconds: float) -> dict[Hashable, Exception]:
        until = time.monotonic() + seconds
        lost: dict[Hashable, Exception] = {}
        with self._bus.lock:
            source = self._queue(queue)
            for handle in handles:
                message = source.leased.get(handle)
                if message is None:
                    lost[handle] = LeaseLost(str(handle))
                else:
                    message.lease_until = until
        return lost

    def dead_letter(self, queue: str, received: Sequence[Received], reason: str) -> None:
        with self._bus.lock:
            source = self._queue(queue)
            for each in received:
                message = source.remove(each.handle)
                if message is not None:
                    source.dead.append(DeadLetter(message.data, message.attempts, reason))

    def dead_letters(self, queue: str) -> list[DeadLetter]:
        """The last 1,000 messages of the queue that were moved aside, oldest first."""
        with self._bus.lock:
            return list(self._queue(queue).dead)

    def size(self, queue: str) -> int | None:
        with self._bus.lock:
            target = self._present(queue)
            target.next_end(time.monotonic())
            return len(target.ready)

    def purge(self, queue: str) -> int:
        with self._bus.lock:
            target = self._queue(queue)
            count = len(target.ready)
            target.bytes_held -= sum(len(message.data) for message in target.ready)
            target.ready.clear()
            return count

    def delete(self, queue: str) -> None:
        with self._bus.lock:
            gone = self._bus.queues.pop(queue, None)
            if gone is not None:
                gone.notify_waiters()  # receivers notice that their queue is gone

    def wake(self) -> None:
        with self._bus.lock:
            self._wakes += 1
            for waiter in self._waiting:
                waiter.notify()

    def close(self) -> None:
        with self._bus.lock:
            self._closed = True
            for queue in self._bus.queues.values():
                mine = [handle for handle, message in queue.leased.items() if message.owner is self]
                for handle in reversed(mine):
                    queue.give_back(handle)
            for waiter in self._waiting:
                waiter.notify()

    def _check_open(self) -> None:
        if self._closed:
            raise BusUnavailable("this connection to the in-memory bus is closed")

    def _queue(self, name: str) -> _Queue:
        queue = self._bus.queues.get(name)
        if queue is None:
            queue = self._bus.queues[name] = _Queue()
        return queue

    def _present(self, name: str) -> _Queue:
        queue = self._bus.queues.get(name)
        if queue is None:
            raise QueueMissing(f"queue {name!r} doesn't exist")
        return queue


class MemoryLaneTransport(LaneTransport):
    """kombu's way to `lanemem://` URLs."""

    driver_type = "lanemem"
    driver_name = "lanemem"

    def open_driver(self, url: str, options: Mapping[str, Any]) -> LaneDriver:
        parts = urlsplit(url)
        settings: dict[str, Any] = dict(parse_qsl(parts.query))
        settings.update({name: options[name] for name in MemoryOptions.__struct_fields__ if name in options})
        return MemoryDriver(parts.netloc + parts.path, msgspec.convert(settings, MemoryOptions, strict=False))
