"""The emulated namespace at work: queues, who waits for their messages, and who is connected.

Everything here runs on one event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from infra.emulators.servicebus.clock import Alarm, Clock
from infra.emulators.servicebus.faults import Fault
from infra.emulators.servicebus.queues.description import QueueDescription
from infra.emulators.servicebus.queues.namespace import Namespace
from infra.emulators.servicebus.queues.queue import Keeper, Queue
from infra.emulators.servicebus.queues.stored import Delivery
from infra.emulators.serving.faults import Faults

__all__ = ["Consumer", "Peer", "Service"]

SHARE_MAX = 64


class Consumer(Protocol):
    """A link that takes a queue's messages."""

    locks: bool

    def room(self) -> int:
        """How many messages it can take now."""

    def deliver(self, delivery: Delivery) -> None: ...

    def detach(self, condition: str, description: str) -> None: ...


class Peer(Protocol):
    """A connection, as far as whoever injects faults is concerned."""

    def abort(self) -> None:
        """Cut it without a word."""

    def close(self, condition: str, description: str) -> None: ...

    def detach_links(self, entity: str, condition: str, description: str) -> int: ...

    def flush(self) -> None: ...


class Service:
    """What all connections share."""

    def __init__(
        self,
        clock: Clock,
        keys: Mapping[str, str],
        *,
        keeper: Keeper | None = None,
        strict: bool = False,
        auto_create: bool = False,
        first_delivery_id: int = 1 << 20,
        idle_seconds: float = 240.0,
    ) -> None:
        self.clock = clock
        self.keys = dict(keys)
        self.namespace = Namespace(keeper, strict=strict)
        self.faults: Faults[Fault] = Faults()
        self.peers: set[Peer] = set()
        self.auto_create = auto_create
        self.first_delivery_id = first_delivery_id
        self.idle_seconds = idle_seconds
        self.created_ms = clock.now_ms()
        self._consumers: dict[str, list[Consumer]] = {}
        self._touched: dict[str, Queue] = {}
        self._alarm: Alarm | None = None
        self._alarm_at_ms = 0
        self._loop = asyncio.get_running_loop()

    def find(self, address: str) -> Queue | None:
        """The queue at an address; makes it first when that was asked for."""
        queue = self.namespace.find(address)
        name = address.partition("/$")[0]
        if queue is None and self.auto_create and not self.namespace.find(name):
            self.namespace.create(self.clock.now_ms(), name, QueueDescription())
            queue = self.namespace.find(address)
        return queue

    def delete(self, name: str) -> bool:
        """Remove a queue and detach whoever is at it."""
        entry = self.namespace.delete(name)
        if entry is None:
            return False
        text = f"The messaging entity '{name}' could not be found. It was deleted."
        for peer in list(self.peers):
            peer.detach_links(name, "amqp:not-found", text)
            peer.detach_links(f"{name}/$DeadLetterQueue", "amqp:not-found", text)
        return True

    def resume(self) -> None:
        """Look at every queue, for instance after they were restored."""
        for entry in self.namespace.entries():
            self._look_at(entry.queue)

    # Who waits.

    def join(self, queue: Queue, consumer: Consumer) -> None:
        self._consumers.setdefault(queue.name.lower(), []).append(consumer)

    def leave(self, queue: Queue, consumer: Consumer) -> None:
        waiting = self._consumers.get(queue.name.lower(), [])
        if consumer in waiting:
            waiting.remove(consumer)

    def touch(self, queue: Queue) -> None:
        """A client did something there: hand out what can be, once the work at hand is done."""
        if (entry := self.namespace.entry(queue.name.partition("/$")[0])) is not None:
            entry.accessed_ms = self.clock.now_ms()
        self._look_at(queue)

    def _look_at(self, queue: Queue) -> None:
        if not self._touched:
            self._loop.call_soon(self._hand_out)
        self._touched[queue.name] = queue

    def _hand_out(self) -> None:
        touched, self._touched = self._touched, {}
        now_ms = self.clock.now_ms()
        for queue in touched.values():
            queue.sweep(now_ms)
            for each in (queue, queue.dead):
                if each is not None and each.has_ready():
                    self._share_out(now_ms, each)
        for peer in list(self.peers):
            peer.flush()
        self._set_alarm()

    def _share_out(self, now_ms: int, queue: Queue) -> None:
        """Messages to those who have room, in turns, so that nobody is left without while another gets all."""
        waiting = self._consumers.get(queue.name.lower(), [])
        while queue.has_ready():
            able = [consumer for consumer in waiting if consumer.room() > 0]
            if not able:
                return
            share = SHARE_MAX if len(able) == 1 else 1
            for consumer in able:
                for delivery in queue.take(now_ms, min(share, consumer.room()), lock=consumer.locks):
                    consumer.deliver(delivery)
                waiting.append(waiting.pop(waiting.index(consumer)))

    def _set_alarm(self) -> None:
        moments = [due for entry in self.namespace.entries() if (due := entry.queue.next_due_ms()) is not None]
        if not moments:
            return
        soonest = min(moments)
        if self._alarm is not None:
            if self._alarm_at_ms <= soonest:
                return
            self._alarm.cancel()
        self._alarm_at_ms = soonest
        self._alarm = self.clock.call_at(soonest, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        now_ms = self.clock.now_ms()
        for entry in self.namespace.entries():
            due = entry.queue.next_due_ms()
            if due is not None and due <= now_ms:
                self._look_at(entry.queue)
        if not self._touched:
            self._set_alarm()
