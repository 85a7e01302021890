"""Wake-ups between processes on PostgreSQL, by NOTIFY and LISTEN. A hint like all wake-ups: whoever waits polls too.

What is to be told gathers while the last message is on its way, so a busy process sends few. It has a connection
and a transaction of its own, since PostgreSQL lets transactions that notify commit only one after another.
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import msgspec
import psycopg
import structlog

from broker.database.drivers.postgres.connections import SessionLimits, WatchedConnection, connect, run
from broker.database.drivers.postgres.patience import Patience
from broker.domain.errors import named
from broker.domain.ids import new_id
from broker.wakeups import Topic, Wakeups

__all__ = ["PostgresWakeups"]

_log = structlog.get_logger(__name__)

CHANNEL = "broker_wakeups"
_PAYLOAD_BYTES_MAX = 7_900  # PostgreSQL takes less than 8000
_ENDINGS_PER_MESSAGE = 300
_ENDINGS_KEPT_MAX = 20_000  # when nobody takes them; who waits looks for itself
_STATEMENT_SECONDS = 5.0
_LISTEN_SECONDS = 1.0  # how late it may notice that it is to stop
_STOP_SECONDS = 2.0


def _spawn(name: str, run: Callable[[], None]) -> None:
    threading.Thread(target=run, name=name, daemon=True).start()


class _Message(msgspec.Struct, array_like=True):
    """Who sends it, whom it wakes, and which jobs have ended."""

    sender: bytes
    topics: list[str]
    job_ids: list[bytes]


_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(_Message).decode


class PostgresWakeups:
    """Carries the wake-ups of one process to all others on the same database, and theirs to it."""

    def __init__(self, url: str, wakeups: Wakeups) -> None:
        self._url = url
        self._wakeups = wakeups
        self._sender = new_id()
        self._changed = threading.Condition()
        self._topics: set[Topic] = set()
        self._job_ids: list[bytes] = []
        self._stopping = threading.Event()
        self._listening = threading.Event()
        self._ended = threading.Semaphore(0)
        self._started = 0

    @property
    def is_stopping(self) -> bool:
        """Whether it was stopped, so that its threads may end."""
        return self._stopping.is_set()

    def start(self, spawn: Callable[[str, Callable[[], None]], None] | None = None) -> None:
        """Begin to carry, on two threads that `spawn` starts; without it they are its own."""
        for name, turn in (("notify", self._send), ("listen", self._listen)):
            (spawn or _spawn)(f"wakeups-{name}", partial(self._keep_at_it, name, turn))
            self._started += 1
        self._wakeups.carry_on(self)

    def stop(self) -> None:
        """Send what has gathered, then end."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        while self._started and self._ended.acquire(timeout=_STOP_SECONDS):
            self._started -= 1

    def wait_until_listening(self, seconds: float) -> bool:
        """Whether wake-ups of other processes come in."""
        return self._listening.wait(seconds)

    def carry_topics(self, topics: Sequence[Topic]) -> None:
        """See `Carrier`."""
        with self._changed:
            self._topics.update(topics)
            self._changed.notify_all()

    def carry_endings(self, job_ids: Sequence[bytes]) -> None:
        """See `Carrier`."""
        with self._changed:
            if len(self._job_ids) < _ENDINGS_KEPT_MAX:
                self._job_ids.extend(job_ids)
            self._changed.notify_all()

    def _keep_at_it(self, name: str, turn: Callable[[WatchedConnection], None]) -> None:
        """Connect, work, and after a loss do both again."""
        try:
            self._turn_until_stopped(name, turn)
        finally:
            self._ended.release()

    def _turn_until_stopped(self, name: str, turn: Callable[[WatchedConnection], None]) -> None:
        patience = Patience(float("inf"), self._stopping)
        settings = SessionLimits(f"wakeups {name}", _STATEMENT_SECONDS)
        while True:
            try:
                with contextlib.closing(connect(self._url, settings)) as driver:
                    patience = Patience(float("inf"), self._stopping)
                    turn(driver)
                return
            except psycopg.Error as error:
                _log.info("wakeups_interrupted", thread=name, reason=named(error))
            except Exception:  # noqa: BLE001 (one who listens raised; the hints of all others must still come)
                _log.exception("wakeups_failed", thread=name)
            if not patience.outlasts():
                return

    def _send(self, driver: WatchedConnection) -> None:
        run(driver, "SET synchronous_commit = off")  # a wake-up that a crash takes back is none
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._topics or self._job_ids or self._stopping.is_set())
                topics, job_ids = self._topics, self._job_ids
                self._topics, self._job_ids = set(), []
            if not topics and not job_ids:
                return  # stopping, and nothing is left
            try:
                driver.execute(
                    "SELECT pg_notify(%s, message) FROM unnest(%s::text[]) AS message",
                    [CHANNEL, list(self._messages(topics, job_ids))],
                )
            except psycopg.Error:
                with self._changed:  # for the next connection
                    self._topics |= topics
                    self._job_ids = (job_ids + self._job_ids)[:_ENDINGS_KEPT_MAX]
                raise

    def _messages(self, topics: Iterable[Topic], job_ids: list[bytes]) -> Iterator[str]:
        names = [topic.value for topic in topics]
        for start in range(0, max(len(job_ids), 1), _ENDINGS_PER_MESSAGE):
            part = job_ids[start : start + _ENDINGS_PER_MESSAGE]
            payload = base64.b64encode(_encode(_Message(self._sender, names, part))).decode()
            names = []
            assert len(payload) < _PAYLOAD_BYTES_MAX  # noqa: S101 (300 ids of 18 bytes, a third more in base64)
            yield payload

    def _listen(self, driver: WatchedConnection) -> None:
        run(driver, f"LISTEN {CHANNEL}")
        # What was told while nobody listened is lost; so everyone looks once.
        self._wakeups.wake(*Topic)
        self._wakeups.endings.tell_all()
        self._listening.set()
        try:
            while not self._stopping.is_set():
                heard = list(driver.notifies(timeout=_LISTEN_SECONDS, stop_after=1))
                for one in heard:
                    self._hear(one.payload)
                if not heard:
                    run(driver, "SELECT 1")  # a connection that died in silence is noticed here
        finally:
            self._listening.clear()

    def _hear(self, payload: str) -> None:
        try:
            message = _decode(base64.b64decode(payload))
        except (ValueError, msgspec.MsgspecError):
            _log.warning("wakeup_not_understood")  # another version's, or none of ours
            return
        if message.sender != self._sender:
            known = Topic.__members__.values()
            self._wakeups.wake(*(topic for topic in known if topic.value in message.topics))
            self._wakeups.endings.tell(message.job_ids)
