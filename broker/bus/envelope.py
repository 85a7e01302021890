"""The one wire form: a versioned MessagePack envelope, signed with Ed25519.

`[content, signature]`, where `content` is the MessagePack array
`[version, kind, key id, audience, issued, expires, trace, body]` and the signature covers those bytes as they are
(`broker.signing`). What a transport adds around it (Celery's headers, a queue's properties) is never trusted.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from broker.domain.bus_jobs import JobReply, SubmitJobs
from broker.domain.desired import LaneDesired
from broker.domain.events import WorkerEvent
from broker.domain.parked import AskToPark, Ticket
from broker.domain.presence import WorkerPresence
from broker.domain.shard import ClaimShards, RenewLease, RunShard
from broker.signing import KeyRing, KeyRole, Signer

__all__ = [
    "EnvelopeError",
    "Kind",
    "LeaseQuestion",
    "Opened",
    "UnknownKeyError",
    "Written",
    "open_as",
    "open_desired",
    "open_event",
    "open_jobs",
    "open_lease_question",
    "open_reply",
    "open_shard",
    "open_ticket",
    "read_own",
    "seal",
]

ENVELOPE_VERSION = 2

T = TypeVar("T")

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What foreign bytes can make a decoder raise."""


LeaseQuestion = ClaimShards | RenewLease | WorkerPresence | AskToPark
"""What a lane's worker says at the lease door."""


class Kind(StrEnum):
    """What an envelope carries."""

    SHARD = "shard"  # broker -> lane
    EVENT = "event"  # lane -> broker
    LEASE = "lease"  # likewise, at the lease door
    JOBS = "jobs"  # producer -> broker
    REPLY = "reply"  # broker -> producer
    DESIRED = "desired"  # broker -> whoever starts and stops instances
    SHARD_TICKET = "shard-ticket"  # for a shard that waits in the object store
    EVENT_TICKET = "event-ticket"  # likewise


class EnvelopeError(Exception):
    """The bytes are no envelope that we accept; retrying is no use."""


class UnknownKeyError(EnvelopeError):
    """Nobody knows the key yet that these bytes name; see `KeyRing.is_settled`."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"signed with the unknown key {key_id[:32]!r}")
        self.key_id = key_id


class _Content(msgspec.Struct, frozen=True, array_like=True):
    version: int
    kind: str
    key_id: str
    audience: str
    issued_us: int
    expires_us: int
    trace: str  # always empty today; part of the form, so that a trace context needs no new version
    body: bytes


class Opened(msgspec.Struct, Generic[T], frozen=True):
    """A verified envelope. `owner` is whom the key belongs to: a lane's name, a producer's tenant, or `broker`."""

    owner: str
    audience: str
    expires_us: int
    body: T


class _Form(NamedTuple):
    """What makes an envelope one of its kind: the role whose key must have signed it, and what its body is."""

    signed_by: KeyRole
    body: msgspec.msgpack.Decoder[Any]
    refusal: str


def _form(signed_by: KeyRole, body: object, refusal: str) -> _Form:
    return _Form(signed_by, msgspec.msgpack.Decoder(body), refusal)


_KINDS = {
    Kind.SHARD: _form(KeyRole.BROKER, RunShard, "the body is no shard"),
    Kind.EVENT: _form(KeyRole.LANE, WorkerEvent, "the body is no worker event"),
    Kind.LEASE: _form(KeyRole.LANE, LeaseQuestion, "the body is no question at the lease door"),
    Kind.JOBS: _form(KeyRole.PRODUCER, SubmitJobs, "the body is no list of jobs"),
    Kind.REPLY: _form(KeyRole.BROKER, JobReply, "the body is no reply"),
    Kind.DESIRED: _form(KeyRole.BROKER, LaneDesired, "the body says nothing of a lane"),
    Kind.SHARD_TICKET: _form(KeyRole.BROKER, Ticket, "the body is no ticket"),
    Kind.EVENT_TICKET: _form(KeyRole.LANE, Ticket, "the body is no ticket"),
}

_encode = msgspec.msgpack.Encoder().encode
_outer_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes])
_content_decoder = msgspec.msgpack.Decoder(_Content)


def seal(
    signer: Signer,
    kind: Kind,
    audience: str,
    body: RunShard | WorkerEvent | LeaseQuestion | SubmitJobs | JobReply | LaneDesired | Ticket,
    *,
    now_us: int,
    valid_us: int,
) -> bytes:
    """The envelope of `body` for `audience`, signed, valid for `valid_us` microseconds from `now_us`."""
    content = _encode(
        _Content(ENVELOPE_VERSION, kind, signer.key_id, audience, now_us, now_us + valid_us, "", _encode(body))
    )
    return _encode((content, signer.sign_content(content)))


def open_as(kind: Kind, ring: KeyRing, envelope: bytes, now_us: int) -> Opened[Any]:
    """The verified envelope of this kind. Raises EnvelopeError, which never quotes the content.

    The functions below are this one with the type of each kind's body.
    """
    form = _KINDS[kind]
    try:
        signed, signature = _outer_decoder.decode(envelope)
        content = _content_decoder.decode(signed)
    except _UNREADABLE:
        raise EnvelopeError("not an envelope") from None
    if content.version != ENVELOPE_VERSION:
        raise EnvelopeError(f"envelope version {content.version}; this program reads {ENVELOPE_VERSION}")
    key = ring.find(content.key_id)
    if key is None:
        raise UnknownKeyError(content.key_id)
    if content.kind != kind or key.role is not form.signed_by:
        raise EnvelopeError(f"a {content.kind[:16]!r} envelope by a {key.role} key where {str(kind)!r} belongs")
    if not key.has_signed(signed, signature):
        raise EnvelopeError(f"the signature of key {content.key_id} does not match")
    # Not `issued_us`: a clock that is set back must not void what is under way.
    if content.expires_us < now_us:
        raise EnvelopeError("expired")
    try:
        return Opened(key.owner, content.audience, content.expires_us, form.body.decode(content.body))
    except _UNREADABLE:
        raise EnvelopeError(form.refusal) from None


def open_shard(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[RunShard]:
    """A verified order to a lane. Raises EnvelopeError."""
    return open_as(Kind.SHARD, ring, envelope, now_us)


def open_event(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[WorkerEvent]:
    """A verified event of a lane. Raises EnvelopeError."""
    return open_as(Kind.EVENT, ring, envelope, now_us)


def open_lease_question(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[LeaseQuestion]:
    """What a lane's worker asks at the lease door, verified. Raises EnvelopeError."""
    return open_as(Kind.LEASE, ring, envelope, now_us)


def open_jobs(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[SubmitJobs]:
    """A producer's jobs, verified. Raises EnvelopeError."""
    return open_as(Kind.JOBS, ring, envelope, now_us)


def open_reply(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[JobReply]:
    """A reply to a producer, verified; `audience` is its tenant. Raises EnvelopeError."""
    return open_as(Kind.REPLY, ring, envelope, now_us)


def open_desired(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[LaneDesired]:
    """What a lane should hold, verified; `audience` is the lane. Raises EnvelopeError."""
    return open_as(Kind.DESIRED, ring, envelope, now_us)


def open_ticket(ring: KeyRing, envelope: bytes, kind: Kind, now_us: int) -> Opened[Ticket]:
    """Where a body waits, verified before anything is fetched. Raises EnvelopeError."""
    return open_as(kind, ring, envelope, now_us)


class Written(NamedTuple):
    """What an envelope says of itself."""

    key_id: str
    audience: str
    lane: str
    shard_id: bytes
    expires_us: int


def read_own(envelope: bytes) -> Written:
    """What our own envelope of a shard or an event says; nothing is verified. Raises EnvelopeError for any other."""
    try:
        content = _content_decoder.decode(_outer_decoder.decode(envelope)[0])
        if content.kind not in (Kind.SHARD, Kind.EVENT):
            raise EnvelopeError(f"a {content.kind[:16]!r} envelope goes by reference nowhere")
        body: RunShard | WorkerEvent = _KINDS[Kind(content.kind)].body.decode(content.body)
    except _UNREADABLE:
        raise EnvelopeError("not an envelope") from None
    return Written(content.key_id, content.audience, body.lane, body.shard_id, content.expires_us)
