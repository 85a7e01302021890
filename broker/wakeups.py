"""Wake-ups between stages: a hint that there is work, never the work itself; every waiter also polls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

__all__ = ["Carrier", "Endings", "Topic", "Waiter", "Wakeups"]


class Topic(StrEnum):
    """Who is woken."""

    PLANNER = "planner"
    DISPATCHER = "dispatcher"
    RELAY = "relay"
    ASSEMBLER = "assembler"
    CLOSER = "closer"
    READER = "reader"
    NOTIFIER = "notifier"


class Carrier(Protocol):
    """Takes wake-ups on to other processes; on PostgreSQL it is `PostgresWakeups`. Neither waits."""

    def carry_topics(self, topics: Sequence[Topic]) -> None:
        """Wake the stages of these topics elsewhere."""

    def carry_endings(self, job_ids: Sequence[bytes]) -> None:
        """Tell those who wait elsewhere that these jobs have ended."""


class Waiter:
    """One thread's wake-ups of a topic. One that comes while the thread works is kept until it waits again."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self) -> None:
        """Let it wait no longer, or not at all where it comes to wait."""
        self._event.set()

    def wait(self, timeout_seconds: float) -> bool:
        """Sleep until woken, or for `timeout_seconds`; whether woken."""
        woken = self._event.wait(timeout_seconds)
        if woken:  # else one that comes just now would be lost, which is kept for the next wait
            self._event.clear()
        return woken


class Wakeups:
    """Of one process. `wait` is for a topic's only thread; where several wait for one topic, each has a waiter."""

    def __init__(self) -> None:
        self.endings = Endings()
        self._waiters = {topic: [Waiter()] for topic in Topic}
        self._carrier: Carrier | None = None

    def carry_on(self, carrier: Carrier) -> None:
        """From now on wake-ups go to other processes too."""
        self._carrier = self.endings.carrier = carrier

    def notify(self, *topics: Topic) -> None:
        """Wake the stages of these topics, wherever they run."""
        self.wake(*topics)
        if self._carrier:
            self._carrier.carry_topics(topics)

    def wake(self, *topics: Topic) -> None:
        """Wake those of this process."""
        for topic in topics:
            for waiter in self._waiters[topic]:
                waiter.wake()

    def waiter(self, topic: Topic) -> Waiter:
        """One more thread that is woken with the topic."""
        waiter = Waiter()
        self._waiters[topic] = [*self._waiters[topic], waiter]  # not in place: others may be waking these
        return waiter

    def wait(self, topic: Topic, timeout_seconds: float) -> bool:
        """Sleep until notified, or for `timeout_seconds`; whether notified."""
        return self._waiters[topic][0].wait(timeout_seconds)


class Endings:
    """Tells those who wait for single jobs that these have ended, as soon as that is durable."""

    def __init__(self) -> None:
        self.carrier: Carrier | None = None
        self._lock = threading.Lock()
        self._watchers: dict[bytes, list[Callable[[], None]]] = {}
        self._listeners: list[Callable[[Sequence[bytes]], None]] = []

    def listen(self, told: Callable[[Sequence[bytes]], None]) -> None:
        """Call `told` with all jobs that end from now on; with none where some may have been missed."""
        self._listeners.append(told)

    def watch(self, job_id: bytes, told: Callable[[], None]) -> None:
        """Call `told` once the job has ended, on the thread that knows. Look whether it had ended after this."""
        with self._lock:
            self._watchers.setdefault(job_id, []).append(told)

    def unwatch(self, job_id: bytes, told: Callable[[], None]) -> None:
        """Call it no more; harmless when it was called."""
        with self._lock:
            watchers = self._watchers.get(job_id, [])
            if told in watchers:
                watchers.remove(told)
            if not watchers:
                self._watchers.pop(job_id, None)

    def announce(self, job_ids: Sequence[bytes]) -> None:
        """These jobs' ends are committed."""
        self.tell(job_ids)
        if self.carrier and job_ids:
            self.carrier.carry_endings(job_ids)

    def tell(self, job_ids: Sequence[bytes]) -> None:
        """Tell those who wait in this process."""
        for listener in self._listeners if job_ids else ():
            listener(job_ids)
        if not self._watchers:
            return
        with self._lock:
            told = [watcher for job_id in job_ids for watcher in self._watchers.pop(job_id, ())]
        for watcher in told:
            watcher()

    def announce_stop(self) -> None:
        """Nothing will end any more: let go of everyone who waits."""
        self.tell_all()

    def tell_all(self) -> None:
        """Have everyone who waits in this process look again: something may have been missed."""
        for listener in self._listeners:
            listener(())
        with self._lock:
            watchers, self._watchers = self._watchers, {}
        for told in [one for waiting in watchers.values() for one in waiting]:
            told()
