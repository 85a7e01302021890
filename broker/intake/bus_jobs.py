"""Jobs over the bus: the door on the bus. Producers' signed jobs come in bulk, are stored, and only then acknowledged.

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
from typing import Protocol, assert_never

import msgspec
import structlog

from broker.bus.envelope import EnvelopeError, UnknownKeyError, open_jobs
from broker.bus.inbox import Delivery
from broker.bus.late_keys import LateKeys
from broker.clock import Clock
from broker.database import submissions
from broker.database.connection import Connection, Database
from broker.database.failures import is_passing
from broker.database.replies import AskedReply, ask
from broker.domain.bus_jobs import JOBS_PER_MESSAGE_MAX, MESSAGE_BYTES_MAX, REPLY_QUEUES, derived_key
from broker.domain.errors import BrokerError, ErrorCode
from broker.domain.identity import Identity, producer_identity
from broker.domain.lane import Lane
from broker.intake.single_jobs import Answer, DoorFull, KeyTaken, SingleJobs, Submitted
from broker.rules.admission import Refusal
from broker.rules.placement.feasible import Prospect
from broker.rules.submission import Admitted, JobRequest, admit_job, fingerprint, is_key
from broker.signing import KeyRing
from broker.wakeups import Topic, Wakeups

__all__ = ["MESSAGES_PER_STEP", "BusJobs", "JobsInbox", "LanesOutlook"]

MESSAGES_PER_STEP = 64
_WAIT_SECONDS = 0.2  # how late it may notice that it is to stop
_FULL_SECONDS = 0.05
_ANSWER_SECONDS = 60.0
_REPLY_TO_CHARS_MAX = 100
_TOLD_CHARS_MAX = 500

_log = structlog.get_logger(__name__)

_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_job = msgspec.json.Decoder(JobRequest).decode


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


class _Accepted(msgspec.Struct, frozen=True):
    """A job of a message that is to be stored. `index` is where it is in the message's list."""

    index: int
    key: str
    job: Admitted


class _Refused(msgspec.Struct, frozen=True):
    """One that no job is made of. By `fingerprint` a job of then is known again; empty where there can't be one."""

    index: int
    key: str
    refusal: Refusal
    fingerprint: bytes = b""


class _Known(msgspec.Struct, frozen=True):
    """One that would be refused today, and was taken in when its message first came."""

    index: int
    key: str
    job_id: bytes


_Entry = _Accepted | _Refused | _Known


class _Message(msgspec.Struct, frozen=True):
    """A verified message that is not stored yet."""

    delivery: Delivery
    digest: bytes
    identity: Identity
    reply_to: str
    entries: tuple[_Entry, ...]

    @property
    def accepted(self) -> list[_Accepted]:
        return [entry for entry in self.entries if isinstance(entry, _Accepted)]

    @property
    def refused(self) -> list[_Refused]:
        return [entry for entry in self.entries if isinstance(entry, _Refused)]

    def replaced(self, changed: Mapping[int, _Entry]) -> _Message:
        """The message with other entries at these indices."""
        return msgspec.structs.replace(self, entries=tuple(changed.get(entry.index, entry) for entry in self.entries))


class BusJobs:
    """Takes jobs in from one bus, for every tenant with a producer's key in force. `step` is for one thread."""

    def __init__(
        self,
        *,
        inbox: JobsInbox,
        database: Database,
        submitting: SingleJobs,
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
        self._late_keys = LateKeys(ring)
        self._put_off: list[Delivery] = []
        self._clock = clock
        self._wakeups = wakeups
        self._held: list[_Message] = []

    def step(self) -> bool:
        """Store what has come, or what could not be stored before; False where it can't be stored now either."""
        if not self._held:
            self._held = self._recognise(self._open(self._inbox.receive(MESSAGES_PER_STEP, _WAIT_SECONDS)))
        stored, given_up = self._store(self._held)
        self._inbox.acknowledge([message.delivery for message in stored])
        self._inbox.reject([message.delivery for message in given_up])
        self._tell(stored)
        settled = {id(message.delivery) for message in (*stored, *given_up)}
        self._held = [message for message in self._held if id(message.delivery) not in settled]
        return not self._held

    # What came.

    def _open(self, deliveries: Sequence[Delivery]) -> list[_Message]:
        messages, foreign = [], []
        deliveries, self._put_off = [*self._put_off, *deliveries], []
        since = time.monotonic()
        for delivery in deliveries:
            try:
                messages.append(self._verified(delivery))
            except EnvelopeError as error:
                if isinstance(error, UnknownKeyError) and self._late_keys.may_come(delivery, error.key_id, since):
                    self._put_off.append(delivery)
                    continue
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
        entries = self._admit_all(identity, opened.body.jobs, digest)
        return _Message(delivery, digest, identity, reply_to, entries)

    def _admit_all(self, identity: Identity, text: bytes, digest: bytes) -> tuple[_Entry, ...]:
        try:
            if not text.isascii():
                text.decode()  # what the decoder skips, it does not check
            parts = _read_list(text)
            if not 0 < len(parts) <= JOBS_PER_MESSAGE_MAX:
                raise ValueError(f"the list has {len(parts):,} jobs; it must have 1 to {JOBS_PER_MESSAGE_MAX:,}")
        except (ValueError, RecursionError) as error:  # msgspec's and UTF-8's errors are ValueErrors
            message = f"jobs is not a list of jobs in JSON and UTF-8: {error}"
            return (_Refused(0, derived_key(digest, 0), Refusal(ErrorCode.INVALID_FIELD, "jobs", message)),)
        return tuple(self._admit(identity, part, index, derived_key(digest, index)) for index, part in enumerate(parts))

    def _admit(self, identity: Identity, part: msgspec.Raw, index: int, key: str) -> _Entry:
        """`key` is that of a job without one of its own."""
        try:
            request = _read_job(part)
        except (msgspec.DecodeError, RecursionError) as error:
            message = f"the job is not as it should be: {error}"
            return _Refused(index, key, Refusal(ErrorCode.INVALID_FIELD, f"[{index}]", message))
        if request.idempotency_key is None:
            request = msgspec.structs.replace(request, idempotency_key=key)
        own_key = request.idempotency_key or key
        lanes, prospects = self._outlook.lanes(), self._outlook.prospects()
        # What is no key is none to ask or to be answered by, whatever the job was refused for.
        answer_key = own_key if is_key(own_key) else key
        match admit_job(request, lanes, identity.tenant, self._clock(), prospects):
            case Refusal() as refusal:
                return _Refused(index, answer_key, refusal, fingerprint(request))
            case Admitted() as job:
                return _Accepted(index, own_key, job)

    def _recognise(self, messages: list[_Message]) -> list[_Message]:
        """A job that was taken in when its message first came stays so, though it would be refused today."""
        asked: dict[str, list[str]] = defaultdict(list)
        for message in messages:
            if keys := [entry.key for entry in message.refused if entry.fingerprint]:
                asked[message.identity.tenant] += keys
        if not asked:
            return messages

        def work(connection: Connection) -> dict[str, dict[str, submissions.Known]]:
            return {tenant_id: submissions.known_keys(connection, tenant_id, keys) for tenant_id, keys in asked.items()}

        known = self._database.read(work)
        return [message.replaced(_known_of(message, known.get(message.identity.tenant, {}))) for message in messages]

    # Storing.

    def _store(self, messages: list[_Message]) -> tuple[list[_Message], list[_Message]]:
        """Those that are durable now, and those that never will be; the others' time has not come."""
        stored, failed = self._offer_all(messages)
        given_up: list[_Message] = []
        for message, error in failed:
            last = error
            if len(messages) > 1 and not is_passing(error):  # it may be another's fault: once more, alone
                stored_alone, failed_alone = self._offer_all([message])
                stored += stored_alone
                if not failed_alone:
                    continue
                ((_, last),) = failed_alone
            if is_passing(last):
                _log.warning("jobs_not_stored_yet", error=type(last).__name__)
            else:
                _log.error("message_left_out", message=message.digest.hex()[:32], error=type(last).__name__)
                given_up.append(message)
        return stored, given_up

    def _offer_all(self, messages: list[_Message]) -> tuple[list[_Message], list[tuple[_Message, Exception]]]:
        """Those that are durable now, and those that could not be stored, each with its error.

        One that the door doesn't take, as it stops, is in neither.
        """
        answers: queue.SimpleQueue[tuple[_Message, Answer]] = queue.SimpleQueue()
        stored: list[_Message] = []
        failed: list[tuple[_Message, Exception]] = []
        under_way = sum(self._offer(message, answers) for message in messages)
        while under_way:
            message, answer = answers.get(timeout=_ANSWER_SECONDS)
            under_way -= 1
            match answer:
                case KeyTaken(place=position):
                    under_way += self._offer(_without_taken_key(message, position), answers)
                case Exception():
                    failed.append((message, answer))
                case list():
                    stored.append(message)
                case _:
                    assert_never(answer)
        return stored, failed

    def _offer(self, message: _Message, answers: queue.SimpleQueue[tuple[_Message, Answer]]) -> int:
        """Whether it was taken; waits while the door is full."""
        jobs = [entry.job for entry in message.accepted]

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

    def _tell(self, stored: list[_Message]) -> None:
        if any(message.reply_to and message.refused for message in stored):
            self._wakeups.notify(Topic.NOTIFIER)
        for message in stored:
            for entry in () if message.reply_to else message.refused:
                _log.info(
                    "job_refused",
                    message=message.digest.hex()[:32],
                    place=entry.index,
                    code=entry.refusal.code,
                    reason=_reason(entry.refusal),
                )
        if stored:
            _log.info("jobs_received", messages=len(stored), jobs=sum(len(message.accepted) for message in stored))


def _is_reply_queue(name: str) -> bool:
    rest = name.removeprefix(REPLY_QUEUES)
    plain = rest.replace("-", "").replace("_", "").replace(".", "")
    return rest != name and plain.isascii() and plain.isalnum() and len(rest) <= _REPLY_TO_CHARS_MAX


def _known_of(message: _Message, known: Mapping[str, submissions.Known]) -> dict[int, _Entry]:
    """The refused jobs of a message that were taken in before, by index."""
    return {
        entry.index: _Known(entry.index, entry.key, before.job_id)
        for entry in message.refused
        if (before := known.get(entry.key)) and before.fingerprint == entry.fingerprint
    }


def _without_taken_key(message: _Message, position: int) -> _Message:
    """The message with that one of its accepted jobs refused."""
    taken = message.accepted[position]
    text = "this idempotency key stands for another job already"
    refusal = Refusal(ErrorCode.INVALID_FIELD, "idempotency_key", text)
    return message.replaced({taken.index: _Refused(taken.index, taken.key, refusal)})


def _asked(message: _Message, submitted: Sequence[Submitted]) -> list[AskedReply]:
    """The replies that a message asks for; `submitted` are its accepted jobs, in order."""
    stored = iter(submitted)
    asked = []
    for entry in message.entries:
        job_id: bytes | None = None
        code: str | None = None
        reason: str | None = None
        match entry:
            case _Accepted():
                job_id = next(stored).job_id
            case _Known():
                job_id = entry.job_id
            case _Refused():
                code, reason = entry.refusal.code, _reason(entry.refusal)
            case _:
                assert_never(entry)
        asked.append(
            AskedReply(
                message_digest=message.digest,
                place=entry.index,
                tenant_id=message.identity.tenant,
                reply_to=message.reply_to,
                idempotency_key=entry.key,
                job_id=job_id,
                error_code=code,
                message=reason,
            )
        )
    return asked


def _reason(refusal: Refusal) -> str:
    text = refusal.message
    if not text.startswith(refusal.field):
        text = f"{refusal.field}: {text}"
    return text[:_TOLD_CHARS_MAX]
