"""One queue's messages: visible, in flight or gone. Pure: told the time, and tells its keeper what to remember."""

from __future__ import annotations

import asyncio
import heapq
import random
import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from infra.emulators.ociqueue.limits import Limits
from infra.emulators.ociqueue.refusals import missing

__all__ = ["Counts", "Keeper", "Message", "Messages"]

CHANNEL_ID = "channelId"


@dataclass(slots=True)
class Message:
    """What was put, and what became of it. `visible_ms` is when it may be delivered again."""

    number: int
    content: str
    metadata: Mapping[str, Any]
    created_ms: int
    expires_ms: int
    delivery_count: int = 0
    visible_ms: int = 0
    receipt: str | None = field(default=None, compare=False)

    @property
    def channel(self) -> str:
        """Empty for the queue itself."""
        return str(self.metadata.get(CHANNEL_ID) or "")

    @property
    def size_bytes(self) -> int:
        return len(self.content.encode())


class Counts(NamedTuple):
    visible: int
    in_flight: int
    size_bytes: int


class Keeper(Protocol):
    """Who must outlive the process."""

    def kept(self, queue: str, message: Message) -> None: ...

    def delivered(self, queue: str, message: Message) -> None: ...

    def dropped(self, queue: str, number: int) -> None: ...


class Messages:
    """A queue, or the dead letters of one. A receipt is good until its message becomes visible again.

    `burying` takes what was delivered `deliveries_max` times without being deleted; 0 for no limit.
    """

    def __init__(self, name: str, keeper: Keeper | None, burying: Messages | None = None) -> None:
        self.name = name
        self.deliveries_max = 0
        self.listeners: set[asyncio.Event] = set()
        self._keeper = keeper
        self._burying = burying
        self._visible: dict[str, deque[Message]] = {}
        self._flights: list[tuple[int, int, str]] = []  # heap of (end, number, receipt); stale entries are skipped
        self._in_flight: dict[str, Message] = {}
        self._by_age: deque[Message] = deque()
        self._all: dict[int, Message] = {}
        self._bytes = 0

    # What a client may do.

    def put(self, message: Message) -> None:
        self._enter(message)
        self._visible.setdefault(message.channel, deque()).append(message)
        if self._keeper is not None:
            self._keeper.kept(self.name, message)
        self._tell()

    def take(self, now_ms: int, limit: int, visibility_ms: int, channel: str | None, limits: Limits) -> list[Message]:
        """Deliver up to so many of one channel, the one named or any that has some."""
        self.pass_time(now_ms)
        name = self._channel(channel)
        source = self._visible.get(name) if name is not None else None
        taken: list[Message] = []
        size = 0
        while source and len(taken) < limit and len(self._in_flight) < limits.in_flight_messages:
            size += source[0].size_bytes
            if taken and size > limits.response_bytes:
                break
            message = source.popleft()
            message.delivery_count += 1
            message.receipt = secrets.token_urlsafe(24)
            message.visible_ms = now_ms + visibility_ms
            self._in_flight[message.receipt] = message
            heapq.heappush(self._flights, (message.visible_ms, message.number, message.receipt))
            taken.append(message)
            if self._keeper is not None:
                self._keeper.delivered(self.name, message)
        if visibility_ms == 0:
            self.pass_time(now_ms)
        return taken

    def delete(self, now_ms: int, receipt: str) -> None:
        """Raises Refusal when the receipt is unknown or no longer good."""
        message = self._held(now_ms, receipt)
        del self._in_flight[receipt]
        self._leave(message)

    def update(self, now_ms: int, receipt: str, visibility_ms: int) -> Message:
        """Let the message be visible so much later; 0 gives it back. Raises Refusal as `delete`."""
        message = self._held(now_ms, receipt)
        message.visible_ms = now_ms + visibility_ms
        heapq.heappush(self._flights, (message.visible_ms, message.number, receipt))
        self.pass_time(now_ms)
        self._tell()
        return message

    def purge(self, now_ms: int, channels: Iterable[str] | None) -> None:
        self.pass_time(now_ms)
        wanted = None if channels is None else set(channels)
        for message in list(self._all.values()):
            if wanted is None or message.channel in wanted:
                self._remove(message)

    # What is there.

    def counts(self, now_ms: int, channel: str | None = None) -> Counts:
        self.pass_time(now_ms)
        if channel is None:
            return Counts(len(self._all) - len(self._in_flight), len(self._in_flight), self._bytes)
        ours = [message for message in self._all.values() if message.channel == channel]
        visible = len(self._visible.get(channel, ()))
        return Counts(visible, len(ours) - visible, sum(message.size_bytes for message in ours))

    def channels(self, now_ms: int) -> list[str]:
        """Those that hold a message, the queue itself not counted."""
        self.pass_time(now_ms)
        return sorted({message.channel for message in self._all.values()} - {""})

    def next_return_ms(self) -> int | None:
        """When a message in flight is visible again, if nobody does anything before."""
        return self._flights[0][0] if self._flights else None

    # Time.

    def pass_time(self, now_ms: int) -> None:
        """Give back what was held too long, bury what came too often, drop what is too old."""
        back: list[Message] = []
        while self._flights and self._flights[0][0] <= now_ms:
            ended_ms, _, receipt = heapq.heappop(self._flights)
            message = self._in_flight.get(receipt)
            if message is not None and message.visible_ms == ended_ms:
                del self._in_flight[receipt]
                back.append(message)
        for message in sorted(back, key=lambda each: -each.number):
            message.receipt = None
            if self._bury(message):
                self._leave(message)
            else:
                self._visible.setdefault(message.channel, deque()).appendleft(message)
        while self._by_age and (self._by_age[0].number not in self._all or self._by_age[0].expires_ms <= now_ms):
            self._remove(self._by_age.popleft())

    # How.

    def restore(self, message: Message) -> None:
        """Take in what was kept; visible, since who held it holds no longer, or buried if that was too often."""
        if not self._bury(message):
            self._enter(message)
            self._visible.setdefault(message.channel, deque()).append(message)

    def held(self) -> list[Message]:
        return list(self._all.values())

    def _bury(self, message: Message) -> bool:
        """Whether it was delivered too often and is among the dead letters now."""
        if self._burying is None or not 0 < self.deliveries_max <= message.delivery_count:
            return False
        self._burying.put(replace(message, delivery_count=0))
        return True

    def _channel(self, wanted: str | None) -> str | None:
        if wanted is not None:
            return wanted
        some = [name for name, waiting in self._visible.items() if waiting]
        return random.choice(some) if some else None  # noqa: S311 (any will do)

    def _held(self, now_ms: int, receipt: str) -> Message:
        self.pass_time(now_ms)
        message = self._in_flight.get(receipt)
        if message is None:
            raise missing("the receipt is unknown, or its message became visible again")
        return message

    def _enter(self, message: Message) -> None:
        self._all[message.number] = message
        self._by_age.append(message)
        self._bytes += message.size_bytes

    def _leave(self, message: Message) -> None:
        if self._all.pop(message.number, None) is not None:
            self._bytes -= message.size_bytes
            if self._keeper is not None:
                self._keeper.dropped(self.name, message.number)

    def _remove(self, message: Message) -> None:
        if message.number not in self._all:
            return
        if message.receipt is not None:
            self._in_flight.pop(message.receipt, None)
        else:
            self._visible[message.channel].remove(message)
        self._leave(message)

    def _tell(self) -> None:
        for changed in self.listeners:
            changed.set()
