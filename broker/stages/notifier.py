"""Notifier: producers on the bus are told how their jobs ended, each at least once, in the queue that they named.

It is woken by endings. What it may have missed, it finds by going through all that is waited for, a page at a time.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import msgspec
import structlog

from broker.bus.driver import PublishError
from broker.bus.envelope import Kind, seal
from broker.clock import Clock
from broker.database import replies
from broker.database.connection import Connection, Database
from broker.domain.bus_jobs import MESSAGE_BYTES_MAX, JobReply
from broker.domain.errors import named
from broker.ledger.replies_due import DueReply, due_of, due_page, refusals
from broker.signing import Signer
from broker.wakeups import Topic, Wakeups

__all__ = ["Notifier", "ReplyPublisher"]

_ENDINGS_KEPT_MAX = 20_000
_ENDINGS_PER_STEP = 200
_ROWS_PER_PAGE = 500
_REFUSALS_PER_STEP = 500
_MESSAGES_TOGETHER = 200
_REST_SECONDS = 5.0
_AWAY_SECONDS = 5.0
_VALID_US = 7 * 86_400 * 1_000_000
_FIRST = bytes(16)

_log = structlog.get_logger(__name__)


class ReplyPublisher(Protocol):
    """The part of `broker.bus.publisher.Publisher` that the notifier needs."""

    def publish_events(self, queue: str, envelopes: Sequence[bytes]) -> None:
        """Returns when the bus has confirmed every message; PublishError names by index those that it has not."""


class _Found(NamedTuple):
    """What is due, and the last of the page that was looked at; None at the end. `requests`: how many were known."""

    due: list[DueReply]
    requests: int
    last: bytes | None
    has_looked: bool
    was_empty: bool


class Notifier:
    """Empties `reply`. `step` is for one thread; endings come in on others.

    A reply that would have more than `message_bytes_max` bytes goes without its body.
    """

    def __init__(
        self,
        *,
        database: Database,
        publisher: ReplyPublisher,
        signer: Signer,
        clock: Clock,
        wakeups: Wakeups,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._signer = signer
        self._clock = clock
        self._wakeups = wakeups
        self._message_bytes_max = message_bytes_max
        self._lock = threading.Lock()
        self._heard: deque[bytes] = deque(maxlen=_ENDINGS_KEPT_MAX)
        self._after = _FIRST
        self._goes_through = True  # all that is waited for, without a pause
        self._requests = self._requests_seen = 0  # to go through it, each from its start
        self._began_at_start = True
        self._stepped_at = time.monotonic()
        self._rests_until: dict[str, float] = {}
        wakeups.endings.listen(self._hear)

    def step(self) -> bool:
        """Tell what is due; whether there may be more at once."""
        now = time.monotonic()
        resting = {name: until for name, until in self._rests_until.items() if until > now}
        if now - self._stepped_at > _AWAY_SECONDS or len(resting) < len(self._rests_until):
            self._go_through()  # another led meanwhile, or nobody did; or what was heard for a queue that rested is due
        self._stepped_at, self._rests_until = now, resting
        heard = self._take_heard()
        try:
            told = self._tell_due(heard)
        except BaseException:
            self._give_back(heard)
            raise
        return bool(told or self._heard or self._goes_through)

    def _tell_due(self, heard: Sequence[bytes]) -> int:
        found = self._database.read(lambda connection: self._find_due(connection, heard))
        told = [one for queue, ours in _by_queue(found.due).items() for one in self._tell(queue, ours)]
        if told:
            self._database.write(
                lambda connection: replies.forget(connection, [one.asked for one in told]), idempotent=True
            )
            _log.info("replies_sent", count=len(told))
        self._move_on(found)
        return len(told)

    def _go_through(self) -> None:
        with self._lock:
            self._goes_through = True
            self._requests += 1

    def _hear(self, job_ids: Sequence[bytes]) -> None:
        with self._lock:
            full = len(self._heard) + len(job_ids) > _ENDINGS_KEPT_MAX
            self._heard.extend(job_ids)
        if full or not job_ids:
            self._go_through()
        self._wakeups.wake(Topic.NOTIFIER)

    def _take_heard(self) -> list[bytes]:
        with self._lock:
            return [self._heard.popleft() for _ in range(min(_ENDINGS_PER_STEP, len(self._heard)))]

    def _give_back(self, heard: Sequence[bytes]) -> None:
        """It could not be told now: it is heard again."""
        with self._lock:
            has_room = len(self._heard) + len(heard) <= _ENDINGS_KEPT_MAX
            if has_room:
                self._heard.extendleft(reversed(heard))
        if not has_room:
            self._go_through()

    def _find_due(self, connection: Connection, heard: Sequence[bytes]) -> _Found:
        """Changes nothing here, for it may run twice; see `_move_on`."""
        if not replies.any_waiting(connection):
            return _Found([], self._requests, None, has_looked=True, was_empty=True)
        silent, requests = list(self._rests_until), self._requests
        due = refusals(connection, silent, _REFUSALS_PER_STEP)
        due += due_of(connection, heard, silent)
        looks, last = self._goes_through or not heard, None
        if looks:
            page, last = due_page(connection, self._after, _ROWS_PER_PAGE, silent)
            due += page
        due = list({(one.asked.message_digest, one.asked.place): one for one in due}.values())
        return _Found(due, requests, last, has_looked=looks, was_empty=False)

    def _move_on(self, found: _Found) -> None:
        if not found.has_looked:
            return
        if found.requests != self._requests_seen:  # it must be gone through from its start, since then
            self._requests_seen, self._began_at_start = found.requests, self._after == _FIRST
        at_end = found.last is None
        self._after = found.last or _FIRST
        with self._lock:
            is_through = found.was_empty or (at_end and self._began_at_start)
            if is_through and found.requests == self._requests:
                self._goes_through = False
        self._began_at_start = self._began_at_start or at_end

    def _tell(self, queue: str, due: Sequence[DueReply]) -> list[DueReply]:
        """Those that the bus has confirmed. A queue that fails is left alone for a while; its rows stay."""
        rest = iter(due)
        told: list[DueReply] = []
        while part := list(islice(rest, _MESSAGES_TOGETHER)):
            try:
                self._publisher.publish_events(queue, [self._sealed(one) for one in part])
            except PublishError as error:
                told += [one for place, one in enumerate(part) if place not in error.errors]
                self._leave_alone(queue, error)
                break
            except Exception as error:  # noqa: BLE001 (one queue must not hold up the others; noted below)
                self._leave_alone(queue, error)
                break
            told += part
        return told

    def _leave_alone(self, queue: str, error: Exception) -> None:
        _log.warning("replies_not_sent", queue=queue, error=named(error))
        self._rests_until[queue] = time.monotonic() + _REST_SECONDS

    def _sealed(self, due: DueReply) -> bytes:
        told = JobReply(
            key=due.asked.idempotency_key,
            job_id=due.asked.job_id,
            status=due.status,
            error_code=due.error_code,
            message=due.message,
            status_code=due.status_code,
            body_bytes=due.body_bytes,
            body=due.body,
        )
        sealed = self._envelope(due.asked.tenant_id, told)
        if len(sealed) > self._message_bytes_max and told.body:
            sealed = self._envelope(due.asked.tenant_id, msgspec.structs.replace(told, body=b""))
        return sealed

    def _envelope(self, tenant_id: str, told: JobReply) -> bytes:
        return seal(self._signer, Kind.REPLY, tenant_id, told, now_us=self._clock(), valid_us=_VALID_US)


def _by_queue(due: Sequence[DueReply]) -> dict[str, list[DueReply]]:
    found: dict[str, list[DueReply]] = defaultdict(list)
    for one in due:
        found[one.asked.reply_to].append(one)
    return found
