"""The threads of a process. One that ends though nobody stopped it ends the process, with exit code 1.

For a process in which one role is missing looks well, and nobody starts it again: its other roles would keep their
leadership, and work would wait for the missing one for ever. What was accepted is in the database, so that whoever
starts it again, or another process that stands by, goes on from there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import structlog

from broker.bootstrap.loop import Loop, Runner
from broker.database.failures import is_disk_full
from broker.domain.errors import BrokerError
from broker.wakeups import Topic, Wakeups

__all__ = ["Threads"]

_log = structlog.get_logger(__name__)


class Threads:
    """Threads with one stop. `failure` holds what a loop could not get past, for the person to see.

    `on_death` is called when a thread has ended by itself: have the main thread stop everything and raise `death`.
    Where that takes more than `end_seconds`, the process ends without it, by `end_process`.
    """

    def __init__(
        self,
        wakeups: Wakeups,
        *,
        full_disk_sentence: str,
        end_seconds: float,
        on_death: Callable[[], None] = lambda: None,
        end_process: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        self.stopping = threading.Event()
        self.death: BrokerError | None = None
        self._wakeups = wakeups
        self._full_disk_sentence = full_disk_sentence
        self._end_seconds = end_seconds
        self._on_death = on_death
        self._end_process = end_process
        self._failure: BrokerError | None = None
        self._threads: dict[str, threading.Thread] = {}
        self._outlasting: set[threading.Thread] = set()
        self._ended_in_order = threading.Event()

    @property
    def failure(self) -> BrokerError | None:
        """None while all goes well, or tries again."""
        return self.death or self._failure

    def start(self, loop: Loop) -> None:
        """Run a loop until `stop`."""
        self.spawn(loop.name, Runner(loop, self.stopping, self._wakeups, self._note_failure).run)

    def spawn(
        self,
        name: str,
        run: Callable[[], None],
        is_over: Callable[[], bool] = lambda: False,
        *,
        outlasts: bool = False,
    ) -> None:
        """Run it in a thread of its own. It may end after `stop`, or once `is_over`; before, that ends the process.

        One that `outlasts` the others serves them until they have ended: `join` doesn't wait for it.
        """

        def watched() -> None:
            error: BaseException | None = None
            try:
                run()
            except BaseException as raised:  # noqa: BLE001 (whatever ends a thread is reported, and ends the process)
                error = raised
            if not self.stopping.is_set() and not is_over():
                self.report_end(name, error)
            elif error is not None:
                _log.error("stage_failed", stage=name, exc_info=error)

        thread = threading.Thread(target=watched, name=name, daemon=True)
        self._threads[_unused(name, self._threads)] = thread
        if outlasts:
            self._outlasting.add(thread)
        thread.start()

    def runs(self, name: str) -> bool:
        """Whether a thread of this name was started."""
        return name in self._threads

    def report_end(self, name: str, error: BaseException | None) -> None:
        """A part that must not end has ended, and `error` is why: so does the process."""
        reason = f"{type(error).__name__}: {error}" if error is not None else "it returned"
        _log.critical("thread_ended", stage=name, reason=reason, exc_info=error)
        if self.death is not None:
            return
        self.death = BrokerError(
            f"the thread {name} ended ({reason}), so this process ends too; nothing accepted is lost: start it again"
        )
        threading.Thread(target=self._end_in_time, name="last-resort", daemon=True).start()
        self._on_death()

    def check(self) -> None:
        """Raises `death`, if there was one."""
        if self.death is not None:
            raise self.death

    def stop(self) -> None:
        """Have all of them end what they are at; returns at once."""
        self.stopping.set()
        self._wakeups.wake(*Topic)

    def join(self, timeout_seconds: float) -> None:
        """Wait until all have ended but those that outlast the others, or the time is over."""
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads.values():
            if thread in self._outlasting:
                continue
            thread.join(max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        """All is closed; what remains is for the main thread to return."""
        self._ended_in_order.set()

    def _end_in_time(self) -> None:
        if not self._ended_in_order.wait(self._end_seconds):
            _log.critical("process_ended", reason="it could not stop in order", seconds=self._end_seconds)
            self._end_process()

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, BrokerError):
            self._failure = error
        elif is_disk_full(error):
            self._failure = BrokerError(self._full_disk_sentence)


def _unused(name: str, taken: dict[str, threading.Thread]) -> str:
    """Several buses have a recorder each."""
    return name if name not in taken else f"{name}-{len(taken)}"
