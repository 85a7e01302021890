"""The one wire form: a versioned MessagePack envelope, signed with Ed25519.

`[content, signature]`, where `content` is the MessagePack array
`[version, kind, key id, audience, issued, expires, trace, body]` and the signature covers the SHA-256 of
those bytes as they are, under a prefix that no other use of the key shares. (Ed25519 over the bytes themselves
would hash them twice with SHA-512: three times the price for a shard of 64 jobs.) What a transport adds around
it (Celery's headers, a queue's properties) is never trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from hashlib import sha256
from typing import Generic, NamedTuple, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.domain.bus_jobs import JobReply, SubmitJobs
from broker.domain.desired import LaneDesired
from broker.domain.events import WorkerEvent
from broker.domain.parked import AskUpload, Ticket
from broker.domain.presence import WorkerPresence
from broker.domain.shard import ClaimShards, RenewLease, RunShard

__all__ = [
    "EnvelopeError",
    "KeyRing",
    "KeyRole",
    "Kind",
    "LeaseQuestion",
    "Opened",
    "PublicKey",
    "Signer",
    "Written",
    "open_desired",
    "open_event",
    "open_jobs",
    "open_lease_question",
    "open_reply",
    "open_shard",
    "open_ticket",
    "read_own",
]

ENVELOPE_VERSION = 2
_PREFIX = b"inference-broker envelope v2\0"

T = TypeVar("T")

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What foreign bytes can make a decoder raise."""


LeaseQuestion = ClaimShards | RenewLease | WorkerPresence | AskUpload
"""What a lane's worker says at the lease door."""


class KeyRole(StrEnum):
    """Whose key it is."""

    BROKER = "broker"
    LANE = "lane"
    PRODUCER = "producer"


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


_SIGNED_BY = {
    Kind.SHARD: KeyRole.BROKER,
    Kind.EVENT: KeyRole.LANE,
    Kind.LEASE: KeyRole.LANE,
    Kind.JOBS: KeyRole.PRODUCER,
    Kind.REPLY: KeyRole.BROKER,
    Kind.DESIRED: KeyRole.BROKER,
    Kind.SHARD_TICKET: KeyRole.BROKER,
    Kind.EVENT_TICKET: KeyRole.LANE,
}
"""The role whose key must have signed it."""


class EnvelopeError(Exception):
    """The bytes are no envelope that we accept; retrying is no use."""


class _Content(msgspec.Struct, frozen=True, array_like=True):
    version: int
    kind: str
    key_id: str
    audience: str
    issued_us: int
    expires_us: int
    trace: str
    body: bytes


class Opened(msgspec.Struct, Generic[T], frozen=True):
    """A verified envelope. `owner` is whom the key belongs to: a lane's name, a producer's tenant, or `broker`."""

    owner: str
    audience: str
    trace: str
    expires_us: int
    body: T


_encode = msgspec.msgpack.Encoder().encode
_outer_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes])
_content_decoder = msgspec.msgpack.Decoder(_Content)
_shard_decoder = msgspec.msgpack.Decoder(RunShard)
_lease_decoder: msgspec.msgpack.Decoder[LeaseQuestion] = msgspec.msgpack.Decoder(LeaseQuestion)
_event_decoder: msgspec.msgpack.Decoder[WorkerEvent] = msgspec.msgpack.Decoder(WorkerEvent)
_jobs_decoder = msgspec.msgpack.Decoder(SubmitJobs)
_reply_decoder = msgspec.msgpack.Decoder(JobReply)
_desired_decoder = msgspec.msgpack.Decoder(LaneDesired)
_ticket_decoder = msgspec.msgpack.Decoder(Ticket)


class Signer:
    """Signs with one private key."""

    def __init__(self, key_id: str, private_key: Ed25519PrivateKey) -> None:
        self.key_id = key_id
        self._private_key = private_key

    def seal(
        self,
        kind: Kind,
        audience: str,
        body: RunShard | WorkerEvent | LeaseQuestion | SubmitJobs | JobReply | LaneDesired | Ticket,
        *,
        now_us: int,
        valid_us: int,
        trace: str = "",
    ) -> bytes:
        """The envelope of `body` for `audience`, valid for `valid_us` microseconds from `now_us`."""
        content = _encode(
            _Content(ENVELOPE_VERSION, kind, self.key_id, audience, now_us, now_us + valid_us, trace, _encode(body))
        )
        return _encode((content, self._private_key.sign(_signed(content))))

    @property
    def public_bytes(self) -> bytes:
        """The 32 bytes that others verify with."""
        return self._private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign_note(self, text: bytes) -> bytes:
        """The signature of a checkpoint's text as it stands, which no envelope's prefix can begin."""
        if text.startswith(_PREFIX):
            raise ValueError("a note can't begin as an envelope's signed bytes do")
        return self._private_key.sign(text)


class PublicKey(NamedTuple):
    """A key to verify with. `owner`: a lane's name, a producer's tenant, or `broker`."""

    role: KeyRole
    owner: str
    key: Ed25519PublicKey


class KeyRing:
    """Public keys by id. `look_up` is asked about ids that it doesn't have yet, and may know none."""

    def __init__(
        self, keys: Mapping[str, PublicKey], look_up: Callable[[str], PublicKey | None] = lambda _key_id: None
    ) -> None:
        self._keys = dict(keys)
        self._look_up = look_up

    def replace(self, keys: Mapping[str, PublicKey]) -> None:
        """From now on these keys, and no others: one that was revoked is gone with it."""
        self._keys = dict(keys)

    def verify(self, envelope: bytes, kind: Kind, now_us: int) -> tuple[_Content, str]:
        """The content and the key's owner. Raises EnvelopeError, which never quotes the content."""
        try:
            signed, signature = _outer_decoder.decode(envelope)
            content = _content_decoder.decode(signed)
        except _UNREADABLE:
            raise EnvelopeError("not an envelope") from None
        if content.version != ENVELOPE_VERSION:
            raise EnvelopeError(f"envelope version {content.version}; this program reads {ENVELOPE_VERSION}")
        known = self._keys.get(content.key_id) or self._find(content.key_id)
        if known is None:
            raise EnvelopeError(f"signed with the unknown key {content.key_id[:32]!r}")
        if content.kind != kind or known.role is not _SIGNED_BY[kind]:
            raise EnvelopeError(f"a {content.kind[:16]!r} envelope by a {known.role} key where {str(kind)!r} belongs")
        try:
            known.key.verify(signature, _signed(signed))
        except InvalidSignature:
            raise EnvelopeError(f"the signature of key {content.key_id} does not match") from None
        # Not `issued_us`: a clock that is set back must not void what is under way.
        if content.expires_us < now_us:
            raise EnvelopeError("expired")
        return content, known.owner

    def _find(self, key_id: str) -> PublicKey | None:
        found = self._look_up(key_id)
        if found is not None:
            self._keys = {**self._keys, key_id: found}
        return found


def _signed(content: bytes) -> bytes:
    return _PREFIX + sha256(content).digest()


def open_shard(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[RunShard]:
    """A verified order to a lane. Raises EnvelopeError."""
    content, owner = ring.verify(envelope, Kind.SHARD, now_us)
    try:
        return Opened(owner, content.audience, content.trace, content.expires_us, _shard_decoder.decode(content.body))
    except _UNREADABLE:
        raise EnvelopeError("the body is no shard") from None


def open_event(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[WorkerEvent]:
    """A verified event of a lane. Raises EnvelopeError."""
    content, owner = ring.verify(envelope, Kind.EVENT, now_us)
    try:
        return Opened(owner, content.audience, content.trace, content.expires_us, _event_decoder.decode(content.body))
    except _UNREADABLE:
        raise EnvelopeError("the body is no worker event") from None


def open_lease_question(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[LeaseQuestion]:
    """What a lane's worker says at the lease door, verified. Raises EnvelopeError."""
    content, owner = ring.verify(envelope, Kind.LEASE, now_us)
    try:
        return Opened(owner, content.audience, content.trace, content.expires_us, _lease_decoder.decode(content.body))
    except _UNREADABLE:
        raise EnvelopeError("the body is no question at the lease door") from None


def open_jobs(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[SubmitJobs]:
    """A producer's jobs, verified. Raises EnvelopeError."""
    content, owner = ring.verify(envelope, Kind.JOBS, now_us)
    try:
        return Opened(owner, content.audience, content.trace, content.expires_us, _jobs_decoder.decode(content.body))
    except _UNREADABLE:
        raise EnvelopeError("the body is no list of jobs") from None


def open_reply(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[JobReply]:
    """What a producer is told, verified; `audience` is its tenant. Raises EnvelopeError."""
    content, owner = ring.verify(envelope, Kind.REPLY, now_us)
    try:
        return Opened(owner, content.audience, content.trace, content.expires_us, _reply_decoder.decode(content.body))
    except _UNREADABLE:
        raise EnvelopeError("the body is no reply") from None


def open_desired(ring: KeyRing, envelope: bytes, now_us: int) -> Opened[LaneDesired]:
    """What a lane should hold, verified; `audience` is the lane. Raises EnvelopeError."""
    content, owner = ring.verify(envelope, Kind.DESIRED, now_us)
    try:
        return Opened(owner, content.audience, content.trace, content.expires_us, _desired_decoder.decode(content.body))
    except _UNREADABLE:
        raise EnvelopeError("the body says nothing of a lane") from None


def open_ticket(ring: KeyRing, envelope: bytes, kind: Kind, now_us: int) -> Opened[Ticket]:
    """Where a body waits, verified before anything is fetched. Raises EnvelopeError."""
    content, owner = ring.verify(envelope, kind, now_us)
    try:
        return Opened(owner, content.audience, content.trace, content.expires_us, _ticket_decoder.decode(content.body))
    except _UNREADABLE:
        raise EnvelopeError("the body is no ticket") from None


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
        body: RunShard | WorkerEvent
        match content.kind:
            case Kind.SHARD:
                body = _shard_decoder.decode(content.body)
            case Kind.EVENT:
                body = _event_decoder.decode(content.body)
            case _:
                raise EnvelopeError(f"a {content.kind[:16]!r} envelope goes by reference nowhere")
    except _UNREADABLE:
        raise EnvelopeError("not an envelope") from None
    return Written(content.key_id, content.audience, body.lane, body.shard_id, content.expires_us)
