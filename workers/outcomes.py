"""Outcome events: gathered as jobs finish, signed, and published until the bus has confirmed them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import structlog

from broker.bus.driver import MessageTooLarge, PublishError
from broker.bus.envelope import Kind, seal
from broker.clock import Clock
from broker.domain.errors import ErrorCode, named
from broker.domain.events import JobRan, JobsRan, ShardReturned, WorkerEvent
from broker.domain.outcome import Outcome
from broker.signing import Signer

__all__ = ["FLUSH_BYTES", "FLUSH_SECONDS", "EventOutlet", "EventPublisher", "OutcomeReport"]

FLUSH_SECONDS = 0.2
FLUSH_BYTES = 64_000
_VALID_US = 7 * 24 * 3_600 * 1_000_000
_RETRY_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class EventPublisher(Protocol):
    """The part of `broker.bus.publisher.Publisher` that a worker needs."""

    def publish_events(self, queue: str, envelopes: Sequence[bytes]) -> None:
        """Returns when the bus has confirmed every message."""


class EventOutlet:
    """One lane's way to the bus, for the event loop: what gathers while one call publishes goes with the next."""

    def __init__(self, publisher: EventPublisher, queue: str) -> None:
        self._publisher = publisher
        self._queue = queue
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._publishing: asyncio.Task[None] | None = None

    async def send(self, envelope: bytes) -> None:
        """Returns when the bus has confirmed it. Raises whatever the publisher raised; it may be there all the same."""
        confirmed = asyncio.get_running_loop().create_future()
        self._waiting.append((envelope, confirmed))
        if self._publishing is None:
            self._publishing = asyncio.get_running_loop().create_task(self._publish_all())
        await confirmed

    async def _publish_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            sent, self._waiting = self._waiting, []
            envelopes = [envelope for envelope, _ in sent]
            failures: Mapping[int, Exception] = {}
            try:
                await loop.run_in_executor(None, self._publisher.publish_events, self._queue, envelopes)
            except PublishError as error:
                failures = error.errors
            except Exception as error:  # noqa: BLE001 (it belongs to those who wait for their events)
                failures = dict.fromkeys(range(len(sent)), error)
            for index, (_, confirmed) in enumerate(sent):
                if confirmed.done():
                    continue  # whoever waited for it was cancelled
                if index in failures:
                    confirmed.set_exception(failures[index])
                else:
                    confirmed.set_result(None)
        self._publishing = None


class OutcomeReport:
    """The events of one shard, numbered from 0. For the event loop; publishing happens on other threads."""

    def __init__(
        self,
        *,
        shard_id: bytes,
        lane: str,
        worker_id: str,
        outlet: EventOutlet,
        signer: Signer,
        clock: Clock,
    ) -> None:
        self._shard_id = shard_id
        self._lane = lane
        self._worker_id = worker_id
        self._outlet = outlet
        self._signer = signer
        self._clock = clock
        self._given_up = False
        self._number = 0
        self._pending: list[JobRan] = []
        self._pending_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def give_up(self) -> None:
        """Send nothing again that the bus didn't confirm: this process ends."""
        self._given_up = True

    def add(self, ran: JobRan) -> None:
        """One job ended. Sent after FLUSH_SECONDS, with what else has gathered, or once FLUSH_BYTES are reached."""
        self._pending.append(ran)
        self._pending_bytes += len(ran.body)
        if self._pending_bytes >= FLUSH_BYTES:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    async def finish(self, returned: ErrorCode | None = None) -> None:
        """Send the rest and wait for the bus to confirm all of it; then, if so, say that the shard is handed back."""
        self._flush()
        while self._sending:
            await asyncio.gather(*self._sending)
        if returned is not None:
            await self._publish(
                ShardReturned(self._shard_id, self._lane, self._worker_id, self._next_number(), returned)
            )

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        event = self._event(tuple(self._pending))
        self._pending, self._pending_bytes = [], 0
        task = asyncio.get_running_loop().create_task(self._publish(event))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _next_number(self) -> int:
        number = self._number
        self._number += 1
        return number

    def _smaller(self, event: WorkerEvent, error: MessageTooLarge) -> list[JobsRan]:
        """The same in two halves; a single reply that the bus can't carry is given up, and its job fails."""
        if not isinstance(event, JobsRan) or not any(ran.body for ran in event.jobs):
            return []
        if len(event.jobs) > 1:
            middle = len(event.jobs) // 2
            return [self._event(event.jobs[:middle]), self._event(event.jobs[middle:])]
        (ran,) = event.jobs
        _log.warning("reply_given_up", lane=self._lane, shard=self._shard_id.hex(), reason=str(error))
        given_up = msgspec.structs.replace(
            ran,
            outcome=Outcome.FAILED,
            body=b"",
            reply_digest=b"",
            error_code=ErrorCode.REPLY_TOO_LARGE,
            message=f"the lane's bus can't carry the reply: {error}",
        )
        return [self._event((given_up,))]

    def _event(self, jobs: tuple[JobRan, ...]) -> JobsRan:
        return JobsRan(self._shard_id, self._lane, self._worker_id, self._next_number(), jobs)

    async def _publish(self, event: WorkerEvent) -> None:
        """Until confirmed: results exist nowhere else. Given up only when this process ends."""
        envelope = seal(self._signer, Kind.EVENT, "broker", event, now_us=self._clock(), valid_us=_VALID_US)
        while True:
            try:
                await self._outlet.send(envelope)
            except Exception as error:  # noqa: BLE001 (whatever the bus raises, the answer is to try again)
                if isinstance(error, MessageTooLarge) and (smaller := self._smaller(event, error)):
                    for each in smaller:
                        await self._publish(each)
                    return
                _log.warning("event_publish_failed", lane=self._lane, error=named(error))
                if self._given_up:
                    return
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return
