"""Receiving: the door on the bus. Producers' signed jobs come in bulk, are stored, and only then acknowledged.

A message's jobs belong to the tenant of the identity that its key gives, whatever it says. Each is admitted by
itself, under the rules of the HTTP door. A message that comes again stores nothing twice: a job without an idempotency
key has one by its envelope. Where the door is full nothing more is received until it isn't, so what waits, waits on
the bus.
"""

from __future__ import annotations

import queue
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Protocol

import msgspec
import structlog

from broker.bus.envelope import EnvelopeError, KeyRing, open_jobs
from broker.bus.inbox import Delivery
from broker.clock import Clock
from broker.database import submissions
from broker.database.connection import Connection, Database
from broker.database.failures import is_passing
from broker.database.replies import AskedReply, ask
from broker.domain.bus_jobs import JOBS_PER_MESSAGE_MAX, MESSAGE_BYTES_MAX, REPLY_QUEUES, derived_key
from broker.domain.errors import BrokerError, ErrorCode
from broker.domain.identity import Identity, producer_identity
from broker.domain.lane import Lane
from broker.intake.single_jobs import Answer, DoorFull, KeyTaken, Submitted, Submitting
from broker.rules.admission import Refusal
from broker.rules.placement.feasible import Prospect
from broker.rules.submission import Admitted, JobRequest, admit_job, fingerprint
from broker.wakeups import Topic, Wakeups

__all__ = ["MESSAGES_PER_STEP", "JobsInbox", "LanesOutlook", "Receiving"]

MESSAGES_PER_STEP = 64
_WAIT_SECONDS = 0.2  # how late it may notice that it is to stop
_FULL_SECONDS = 0.05
_ANSWER_SECONDS = 60.0
_REPLY_TO_CHARS_MAX = 100
_TOLD_CHARS_MAX = 500

_log = structlog.get_logger(__name__)

_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_one = msgspec.json.Decoder(JobRequest).decode


class JobsInbox(Protocol):
    """The part of `broker.bus.inbox.Inbox` that receiving needs."""

    def receive(self, limit: int, wait_seconds: float) -> list[Delivery]:
        """Deliveries, once there are any."""

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Remove them from the bus."""

    def reject(self, deliveries: Sequence[Delivery]) -> None:
        """Move them aside."""


class LanesOutlook(Protocol):
    """The part of `broker.intake.outlook.Outlook` that receiving needs; both answers come at once."""

    def lanes(self) -> Sequence[Lane]:
        """The lanes of the catalog, at the prices that hold."""

    def prospects(self) -> Mapping[str, Prospect]:
        """What the planner last said of each lane."""


class _Entry(msgspec.Struct):
    """One job of a message: admitted, refused, or known from before (`job_id`), when it came for the first time."""

    place: int
    key: str
    fingerprint: bytes = b""
    admitted: Admitted | None = None
    refusal: Refusal | None = None
    job_id: bytes | None = None


class _Message(msgspec.Struct, frozen=True):
    """A verified message that is not stored yet."""

    delivery: Delivery
    digest: bytes
    identity: Identity
    reply_to: str
    entries: list[_Entry]

    @property
    def admitted(self) -> list[_Entry]:
        return [entry for entry in self.entries if entry.admitted]

    @property
    def refused(self) -> list[_Entry]:
        return [entry for entry in self.entries if entry.refusal]


class Receiving:
    """Takes jobs in from one bus, for every tenant with a producer's key in force. `step` is for one thread."""

    def __init__(
        self,
        *,
        inbox: JobsInbox,
        database: Database,
        submitting: Submitting,
        outlook: LanesOutlook,
        ring: KeyRing,
        clock: Clock,
        wakeups: Wakeups,
    ) -> None:
        self._inbox = inbox
        self._database = database
        self._submitting = submitting
        self._outlook = outlook
        self._ring = ring
        self._clock = clock
        self._wakeups = wakeups
        self._held: list[_Message] = []

    def step(self) -> bool:
        """Store what has come, or what could not be stored before; False where it can't be stored now either."""
        if not self._held:
            self._held = self._recognise(self._open(self._inbox.receive(MESSAGES_PER_STEP, _WAIT_SECONDS)))
        stored = self._store(self._held)
        self._inbox.acknowledge([message.delivery for message in stored])
        self._tell(stored)
        done = set(map(id, stored))
        self._held = [message for message in self._held if id(message) not in done]
        return not self._held

    # What came.

    def _open(self, deliveries: Sequence[Delivery]) -> list[_Message]:
        messages, foreign = [], []
        for delivery in deliveries:
            try:
                messages.append(self._verified(delivery))
            except EnvelopeError as error:
                foreign.append(delivery)
                _log.warning("jobs_rejected", queue=delivery.queue, reason=str(error))
        self._inbox.reject(foreign)
        return messages

    def _verified(self, delivery: Delivery) -> _Message:
        opened = open_jobs(self._ring, delivery.envelope, self._clock())
        if opened.audience != "broker":
            raise EnvelopeError("it is for somebody else")
        reply_to = opened.body.reply_to
        if reply_to and not _is_reply_queue(reply_to):
            raise EnvelopeError(f"reply_to must be {REPLY_QUEUES} and at most {_REPLY_TO_CHARS_MAX} letters and digits")
        if len(delivery.envelope) > MESSAGE_BYTES_MAX:
            raise EnvelopeError(f"it has {len(delivery.envelope):,} bytes; the limit is {MESSAGE_BYTES_MAX:,}")
        digest = sha256(delivery.envelope).digest()
        identity = producer_identity(opened.owner)
        return _Message(delivery, digest, identity, reply_to, self._admit_all(identity, opened.body.jobs, digest))

    def _admit_all(self, identity: Identity, text: bytes, digest: bytes) -> list[_Entry]:
        try:
            if not text.isascii():
                text.decode()  # what the decoder skips, it does not check
            parts = _read_list(text)
            if not 0 < len(parts) <= JOBS_PER_MESSAGE_MAX:
                raise ValueError(f"the list has {len(parts):,} jobs; it must have 1 to {JOBS_PER_MESSAGE_MAX:,}")
        except (ValueError, RecursionError) as error:  # msgspec's and UTF-8's errors are ValueErrors
            message = f"jobs is not a list of jobs in JSON and UTF-8: {error}"
            return [_Entry(0, derived_key(digest, 0), refusal=Refusal(ErrorCode.INVALID_FIELD, "jobs", message))]
        return [self._admit(identity, part, place, derived_key(digest, place)) for place, part in enumerate(parts)]

    def _admit(self, identity: Identity, part: msgspec.Raw, place: int, key: str) -> _Entry:
        try:
            request = _read_one(part)
        except (msgspec.DecodeError, RecursionError) as error:
            message = f"the job is not as it should be: {error}"
            return _Entry(place, key, refusal=Refusal(ErrorCode.INVALID_FIELD, f"[{place}]", message))
        if request.idempotency_key is None:
            request = msgspec.structs.replace(request, idempotency_key=key)
        lanes, prospects = self._outlook.lanes(), self._outlook.prospects()
        found = admit_job(request, lanes, identity.tenant, self._clock(), prospects)
        asked = _Entry(place, request.idempotency_key or key, fingerprint(request))
        match found:
            case Refusal(field="idempotency_key"):
                asked.key = key  # what was refused is no key to be told by
                asked.refusal = found
            case Refusal():
                asked.refusal = found
            case Admitted():
                asked.admitted = found
        return asked

    def _recognise(self, messages: list[_Message]) -> list[_Message]:
        """A job that was taken in when its message first came stays so, though it would be refused today."""
        by_tenant: dict[str, list[_Entry]] = defaultdict(list)
        for message in messages:
            by_tenant[message.identity.tenant] += [entry for entry in message.refused if entry.fingerprint]
        asked = {tenant_id: [entry.key for entry in refused] for tenant_id, refused in by_tenant.items() if refused}

        def work(connection: Connection) -> dict[str, dict[str, submissions.Known]]:
            return {tenant_id: submissions.known_keys(connection, tenant_id, keys) for tenant_id, keys in asked.items()}

        for tenant_id, known in (self._database.read(work) if asked else {}).items():
            for entry in by_tenant[tenant_id]:
                before = known.get(entry.key)
                if before and before.fingerprint == entry.fingerprint:
                    entry.job_id, entry.refusal = before.job_id, None
        return messages

    # Storing.

    def _store(self, messages: list[_Message]) -> list[_Message]:
        """Those that are durable now; the others' time has not come."""
        answers: queue.SimpleQueue[tuple[_Message, Answer]] = queue.SimpleQueue()
        stored, failed = [], []
        under_way = sum(self._offer(message, answers) for message in messages)
        while under_way:
            message, answer = answers.get(timeout=_ANSWER_SECONDS)
            under_way -= 1
            match answer:
                case KeyTaken(place=place):
                    _refuse_key(message.admitted[place])
                    under_way += self._offer(message, answers)
                case Exception():
                    failed.append((message, answer))
                case _:
                    stored.append(message)
        return stored + [message for message, error in failed if self._leave_out(message, error, len(messages))]

    def _offer(self, message: _Message, answers: queue.SimpleQueue[tuple[_Message, Answer]]) -> int:
        """Whether it was taken; waits while the door is full."""
        jobs = [entry.admitted for entry in message.entries if entry.admitted]

        def also(connection: Connection, submitted: list[Submitted]) -> None:
            if message.reply_to:
                ask(connection, message.identity.tenant, _asked(message, submitted))

        while True:
            try:
                self._submitting.offer(message.identity, jobs, lambda answer: answers.put((message, answer)), also)
            except DoorFull:
                time.sleep(_FULL_SECONDS)
            except BrokerError:
                return 0  # stopping: it stays on the bus
            else:
                return 1

    def _leave_out(self, message: _Message, error: Exception, messages_count: int) -> bool:
        """Whether it is given up: alone, and with a database that works, it could not be stored."""
        if is_passing(error):
            _log.warning("jobs_not_stored_yet", error=type(error).__name__)
            return False
        if messages_count > 1:  # it may be another's fault
            return self._store([message]) == [message]
        _log.error("message_left_out", message=message.digest.hex()[:32], error=type(error).__name__)
        self._inbox.reject([message.delivery])
        return True

    def _tell(self, stored: list[_Message]) -> None:
        if any(message.reply_to and message.refused for message in stored):
            self._wakeups.notify(Topic.NOTIFIER)
        for message in stored:
            for entry in () if message.reply_to else message.refused:
                _log.info("job_refused", message=message.digest.hex()[:32], place=entry.place, **_why(entry))
        if stored:
            _log.info("jobs_received", messages=len(stored), jobs=sum(len(one.admitted) for one in stored))


def _is_reply_queue(name: str) -> bool:
    rest = name.removeprefix(REPLY_QUEUES)
    plain = rest.replace("-", "").replace("_", "").replace(".", "")
    return rest != name and plain.isascii() and plain.isalnum() and len(rest) <= _REPLY_TO_CHARS_MAX


def _refuse_key(entry: _Entry) -> None:
    entry.admitted = None
    message = "this idempotency key stands for another job already"
    entry.refusal = Refusal(ErrorCode.INVALID_FIELD, "idempotency_key", message)


def _asked(message: _Message, submitted: Sequence[Submitted]) -> list[AskedReply]:
    ids = iter(submitted)
    return [
        AskedReply(
            message_digest=message.digest,
            place=entry.place,
            tenant_id=message.identity.tenant,
            reply_to=message.reply_to,
            idempotency_key=entry.key,
            job_id=next(ids).job_id if entry.admitted else entry.job_id,
            error_code=_why(entry)["code"] or None,
            message=_why(entry)["reason"] or None,
        )
        for entry in message.entries
    ]


def _why(entry: _Entry) -> dict[str, str]:
    if entry.refusal is None:
        return {"code": "", "reason": ""}
    told = entry.refusal.message
    if not told.startswith(entry.refusal.field):
        told = f"{entry.refusal.field}: {told}"
    return {"code": entry.refusal.code, "reason": told[:_TOLD_CHARS_MAX]}
