"""The lease door over HTTP. What comes in is signed with a lane's key, which is all that it needs."""

from __future__ import annotations

import time
from typing import assert_never

import msgspec

from broker.api.errors import Refused
from broker.api.gate import Receive, Send, Wire, answer
from broker.api.threads import in_lease_thread, in_thread
from broker.bus.envelope import EnvelopeError, LeaseQuestion, UnknownKeyError, open_lease_question
from broker.clock import Clock
from broker.domain.errors import BrokerError, ErrorCode
from broker.domain.parked import AskToPark
from broker.domain.presence import SLOTS_MAX, WORKER_ID_CHARS_MAX, WorkerPresence
from broker.domain.shard import ClaimShards, RenewLease
from broker.leasing import LeaseDoor
from broker.signing import KeyRing

__all__ = ["LeaseCounter"]

_QUESTION_BYTES_MAX = 16_384
_ID_BYTES = 16

_encoder = msgspec.msgpack.Encoder()


class LeaseCounter:
    """`POST /broker/v1/leases`: one signed question, one answer in MessagePack."""

    def __init__(self, door: LeaseDoor, ring: KeyRing, clock: Clock) -> None:
        self._door = door
        self._ring = ring
        self._clock = clock

    async def __call__(self, _scope: Wire, receive: Receive, send: Send) -> None:
        question = self._open(await _read(receive))
        try:
            # Parking is no lease: it may read, and sign, for as long as it likes.
            run = in_thread if isinstance(question, AskToPark) else in_lease_thread
            answered = await run(self._answer, question)
        except BrokerError as error:
            raise Refused(503, "unavailable", str(error), retry_after_seconds=1) from None
        await answer(send, 200, answered, content_type=b"application/msgpack")

    def _open(self, envelope: bytes) -> LeaseQuestion:
        """Raises Refused; a lane asks for itself alone."""
        since = time.monotonic()
        try:
            opened = open_lease_question(self._ring, envelope, self._clock())
        except UnknownKeyError as error:
            if not self._ring.is_settled(error.key_id, since):
                message = "the key of this question isn't known here yet: ask again"
                raise Refused(503, "key_not_known_yet", message, retry_after_seconds=1) from None
            raise Refused(401, "not_signed", f"this is not a lane's signed question: {error}") from None
        except EnvelopeError as error:
            raise Refused(401, "not_signed", f"this is not a lane's signed question: {error}") from None
        if opened.owner != opened.body.lane:
            raise Refused(403, "another_lane", f"the key is lane {opened.owner}'s")
        _check(opened.body)
        return opened.body

    def _answer(self, question: LeaseQuestion) -> bytes:
        match question:
            case ClaimShards():
                return _encoder.encode(self._door.claim_all(question))
            case RenewLease():
                return _encoder.encode(self._door.renew(question))
            case WorkerPresence():
                return _encoder.encode(self._door.report(question))
            case AskToPark():
                return _encoder.encode(self._door.park(question))
            case _:
                assert_never(question)


def _check(question: LeaseQuestion) -> None:
    """Raises Refused for what no table could keep: a lane's key says who asks, and not that it makes sense."""
    worker_id = question.worker_id
    if not 0 < len(worker_id) <= WORKER_ID_CHARS_MAX or "\0" in worker_id:
        limit = f"it must have 1 to {WORKER_ID_CHARS_MAX} and none of them NUL"
        raise _invalid("worker_id", f"worker_id has {len(worker_id):,} characters; {limit}")
    if isinstance(question, WorkerPresence):
        if not 0 <= question.slots <= SLOTS_MAX:
            raise _invalid("slots", f"slots is {question.slots}; it must be 0 to {SLOTS_MAX:,}")
        if "\0" in question.resource_id:
            raise _invalid("resource_id", "resource_id holds the character NUL, which no name may have")
        return
    for shard_id in question.shard_ids if isinstance(question, ClaimShards) else (question.shard_id,):
        if len(shard_id) != _ID_BYTES:
            raise _invalid("shard_id", f"shard_id has {len(shard_id):,} bytes; it must have {_ID_BYTES}")


def _invalid(field: str, message: str) -> Refused:
    return Refused(400, ErrorCode.INVALID_FIELD, message, field=field)


async def _read(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _QUESTION_BYTES_MAX:
            raise Refused(413, "request_too_large", f"the question is larger than {_QUESTION_BYTES_MAX:,} bytes")
        if not message.get("more_body", False):
            return body
