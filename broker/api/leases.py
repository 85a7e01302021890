"""The lease door over HTTP. What comes in is signed with a lane's key, which is all that it needs."""

from __future__ import annotations

from typing import assert_never

import msgspec

from broker.api.errors import Refused
from broker.api.gate import Receive, Send, Wire, answer
from broker.api.threads import in_thread
from broker.bus.envelope import EnvelopeError, LeaseQuestion, open_lease_question
from broker.clock import Clock
from broker.domain.errors import BrokerError
from broker.domain.parked import AskToPark
from broker.domain.presence import WorkerPresence
from broker.domain.shard import ClaimShards, RenewLease
from broker.leasing import LeaseDoor
from broker.signing import KeyRing

__all__ = ["LeaseCounter"]

_QUESTION_BYTES_MAX = 16_384

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
            answered = await in_thread(self._answer, question)
        except BrokerError as error:
            raise Refused(503, "unavailable", str(error), retry_after_seconds=1) from None
        await answer(send, 200, answered, content_type=b"application/msgpack")

    def _open(self, envelope: bytes) -> LeaseQuestion:
        """Raises Refused; a lane asks for itself alone."""
        try:
            opened = open_lease_question(self._ring, envelope, self._clock())
        except EnvelopeError as error:
            raise Refused(401, "not_signed", f"this is not a lane's signed question: {error}") from None
        if opened.owner != opened.body.lane:
            raise Refused(403, "another_lane", f"the key is lane {opened.owner}'s")
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


async def _read(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _QUESTION_BYTES_MAX:
            raise Refused(413, "request_too_large", f"the question is larger than {_QUESTION_BYTES_MAX:,} bytes")
        if not message.get("more_body", False):
            return body
