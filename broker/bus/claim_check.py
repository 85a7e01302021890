"""The claim check: what a lane's bus can't carry waits in the object store, and a signed ticket travels instead.

What waits is the whole signed envelope; the ticket is an envelope of its own, whose signature covers the body's
place, size and SHA-256, and is verified before anything is fetched. A message that is a ticket begins with a byte
that no envelope begins with, so small messages pay one comparison of lengths and one of a byte.
"""

from __future__ import annotations

import datetime as dt
import hmac
import time
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

import structlog

from broker.bus.driver import BusUnavailable
from broker.bus.envelope import EnvelopeError, Kind, open_ticket, read_own, seal
from broker.bus.late_keys import LateKeys
from broker.bus.payload_store import NoPlace, PayloadMissing, PayloadStore, StoreUnavailable
from broker.clock import Clock
from broker.domain.parked import Ticket
from broker.signing import KeyRing, Signer

__all__ = [
    "PARKED_BYTES_MAX",
    "ClaimCheck",
    "Place",
    "SharedPlace",
    "envelope_bytes_max",
    "parked_path",
    "sweep",
]

PARKED_BYTES_MAX = 64_100_000
"""The most bytes of an envelope that goes by reference: one with the largest line, or the largest reply."""

_TICKET = b"\xc1"  # the one byte that MessagePack never uses
_ROOM_BYTES = 4_000  # what kombu, Celery and a bus put around an envelope
_BYTES_MAX = {"laneasb": 180_000, "laneoci": 100_000, "lanepubsub": 8_996_000}
_ANY = 1 << 62
_URL_SECONDS = 3_600  # a shard that isn't claimed within a minute goes elsewhere
_KEPT_SECONDS_MAX = 7 * 24 * 3_600.0  # for so long an event is valid
_TRIES = 3
_REST_SECONDS = 0.5
_FOLDERS = {Kind.SHARD_TICKET: "shards", Kind.EVENT_TICKET: "events"}

_log = structlog.get_logger(__name__)


def envelope_bytes_max(bus_url: str, options: Mapping[str, Any] | None = None) -> int:
    """The largest envelope that a message on this bus should carry.

    The URL's or the options' `max_message_bytes` less what is put around an envelope, else what is safe on the
    cloud's usual tier: 180 KB on Service Bus, 100 KB on OCI Queue, 9 MB on Pub/Sub.
    """
    parts = urlsplit(bus_url)
    given = {**dict(parse_qsl(parts.query)), **(options or {})}.get("max_message_bytes")
    if given is not None:
        return max(int(given) - _ROOM_BYTES, 0)
    return _BYTES_MAX.get(parts.scheme, _ANY)


def parked_path(kind: Kind, lane: str, shard_id: bytes, digest: bytes) -> str:
    """Where a shard's order or one of its events waits: the shard's id is in the name, for `sweep`."""
    return f"{_FOLDERS[kind]}/{lane}/{shard_id.hex()}-{digest.hex()[:32]}"


class Place(Protocol):
    """Where bodies wait, as one side sees it."""

    def leave(self, kind: Kind, lane: str, shard_id: bytes, data: bytes, digest: bytes) -> tuple[str, str]:
        """Store it; its path, and a URL to fetch it by where whoever fetches needs one.

        Raises NoPlace or StoreUnavailable.
        """

    def fetch(self, ticket: Ticket) -> bytes:
        """What the ticket names, at most its size. Raises PayloadMissing or StoreUnavailable."""


class SharedPlace:
    """The store itself: the broker's way, and that of a worker with the same folder or with rights of its own."""

    def __init__(self, store: PayloadStore) -> None:
        self.store = store

    def leave(self, kind: Kind, lane: str, shard_id: bytes, data: bytes, digest: bytes) -> tuple[str, str]:
        path = parked_path(kind, lane, shard_id, digest)
        self.store.put(path, data)
        return path, self.store.sign("GET", path, _URL_SECONDS) if kind is Kind.SHARD_TICKET else ""

    def fetch(self, ticket: Ticket) -> bytes:
        return self.store.get(ticket.path, ticket.size)


class ClaimCheck:
    """One side's claim check: what it parks is signed by one of `signers`, what it redeems is verified by `ring`.

    `parks` and `redeems` are the kinds of ticket that this side gives and takes.
    """

    def __init__(
        self,
        place: Place,
        *,
        parks: Kind,
        redeems: Kind,
        signers: Mapping[str, Signer],
        ring: KeyRing,
        clock: Clock,
    ) -> None:
        self._place = place
        self._parks = parks
        self._redeems = redeems
        self._signers = {signer.key_id: signer for signer in signers.values()}
        self._ring = ring
        self._clock = clock
        self.late_keys = LateKeys(ring)
        """For the inbox that redeems here."""

    @classmethod
    def of_broker(cls, place: Place, signer: Signer, ring: KeyRing, clock: Clock) -> ClaimCheck:
        """Parks shards and redeems events."""
        kinds = {"parks": Kind.SHARD_TICKET, "redeems": Kind.EVENT_TICKET}
        return cls(place, **kinds, signers={"": signer}, ring=ring, clock=clock)

    @classmethod
    def of_worker(cls, place: Place, signers: Mapping[str, Signer], ring: KeyRing, clock: Clock) -> ClaimCheck:
        """Parks events and redeems shards."""
        kinds = {"parks": Kind.EVENT_TICKET, "redeems": Kind.SHARD_TICKET}
        return cls(place, **kinds, signers=signers, ring=ring, clock=clock)

    def park(self, envelope: bytes) -> bytes:
        """Store our own envelope; the message that travels instead, or the envelope where there is no place for it.

        Raises BusUnavailable when the store can't be reached.
        """
        written = read_own(envelope)
        digest = sha256(envelope).digest()
        try:
            path, url = self._place.leave(self._parks, written.lane, written.shard_id, envelope, digest)
        except NoPlace:
            return envelope  # the bus's own refusal is the truth about its size
        except StoreUnavailable as error:
            raise BusUnavailable(str(error)) from error
        _log.info("payload_parked", path=path, size_bytes=len(envelope))
        ticket = Ticket(path, len(envelope), digest, url)
        signer = self._signers[written.key_id]
        now_us = self._clock()
        valid_us = max(written.expires_us - now_us, 1_000_000)
        return _TICKET + seal(signer, self._parks, written.audience, ticket, now_us=now_us, valid_us=valid_us)

    def redeem(self, message: bytes) -> bytes:
        """The envelope that a message stands for; the message itself where it is one.

        Raises EnvelopeError for a ticket that isn't valid, or whose body is gone or altered, and UnknownKeyError for
        one whose key may still come; BusUnavailable when the store can't be reached.
        """
        if not message.startswith(_TICKET):
            return message
        opened = open_ticket(self._ring, message[1:], self._redeems, self._clock())
        ticket = opened.body
        lane = opened.audience if self._redeems is Kind.SHARD_TICKET else opened.owner
        if not 0 <= ticket.size <= PARKED_BYTES_MAX or not ticket.path.startswith(f"{_FOLDERS[self._redeems]}/{lane}/"):
            raise EnvelopeError(f"the ticket is for {ticket.size:,} bytes at {ticket.path[:64]!r}")
        try:
            envelope = self._fetched(ticket)
        except PayloadMissing as error:
            raise EnvelopeError(f"the parked body is gone: {error}") from error
        if not hmac.compare_digest(sha256(envelope).digest(), ticket.digest):
            raise EnvelopeError("the parked body is not what its ticket was signed for")
        return envelope

    def _fetched(self, ticket: Ticket) -> bytes:
        for _ in range(_TRIES - 1):
            try:
                return self._place.fetch(ticket)
            except StoreUnavailable as error:
                _log.warning("payload_not_fetched", path=ticket.path, reason=str(error))
                time.sleep(_REST_SECONDS)
        try:
            return self._place.fetch(ticket)
        except StoreUnavailable as error:
            raise BusUnavailable(str(error)) from error


def sweep(
    store: PayloadStore,
    has_ended: Callable[[Collection[bytes]], set[bytes]],
    *,
    kept_seconds: float,
    kept_seconds_max: float = _KEPT_SECONDS_MAX,
) -> int:
    """Delete what waits for no one: bodies of shards that ended, after a while, and any that is too old; how many.

    The while is for events that come late: the first valid result wins, whoever brings it. Raises StoreUnavailable.
    """
    now = dt.datetime.now(dt.UTC)
    found: dict[bytes, list[str]] = {}
    doomed: list[str] = []
    for folder in _FOLDERS.values():
        for each in store.stored(folder, now):
            shard_id = _shard_of(each.path)
            if each.age_seconds > kept_seconds_max:
                doomed.append(each.path)
            elif shard_id is not None and each.age_seconds > kept_seconds:
                found.setdefault(shard_id, []).append(each.path)
    for shard_id in has_ended(found.keys()) if found else ():
        doomed += found[shard_id]
    store.delete(doomed)
    if doomed:
        _log.info("payloads_deleted", count=len(doomed))
    return len(doomed)


def _shard_of(path: str) -> bytes | None:
    try:
        return bytes.fromhex(path.rpartition("/")[2].partition("-")[0])
    except ValueError:
        return None
