"""One AMQP connection: headers, SASL, open and close, heartbeats, and what its sessions share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from infra.emulators.servicebus.faults import Action, Fault, Point
from infra.emulators.servicebus.peer.session import Session
from infra.emulators.servicebus.peer.violation import Violation
from infra.emulators.servicebus.queues.refusals import Refusal
from infra.emulators.servicebus.service import Service
from infra.emulators.servicebus.tokens import Grant
from infra.emulators.servicebus.wire import frames
from infra.emulators.servicebus.wire.frames import FrameBuffer
from infra.emulators.servicebus.wire.values import Array, DecodeError, Symbol, UByte, UInt, UShort, Value

__all__ = ["Connection"]

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 262_144
MIN_FRAME_BYTES = 512
CHANNEL_MAX = 4_999
MECHANISMS = ("MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL")


class _Reply(NamedTuple):
    """What `Connection.perform` came to: a value or a refusal."""

    send: Callable[[Value], None]
    outcome: Value


class Connection:
    """Fed with bytes; writes to its transport. Lives on the event loop's thread."""

    def __init__(self, service: Service, transport: asyncio.Transport) -> None:
        self.service = service
        self.peer_name = str(transport.get_extra_info("peername"))
        self.grants: dict[str, Grant] = {}
        self.peer_max_frame_bytes = MIN_FRAME_BYTES
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._buffer = FrameBuffer(MAX_FRAME_BYTES)
        self._stage: Callable[[], bool] = self._read_header
        self._sessions: dict[int, Session] = {}
        self._out: list[bytes] = []
        self._closing = False
        self._heard = self._spoke = self._loop.time()
        self._watch: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        service.peers.add(self)
        self._watch_idle()

    # Bytes.

    def feed(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._buffer.feed(data)
        try:
            while not self._closing and self._stage():
                pass
        except Violation as error:
            self.close(error.condition, str(error))
        except DecodeError as error:
            self.close("amqp:decode-error", str(error))
        except Exception as error:  # whatever a peer's odd field led to, it must not look like a cut
            log.exception("failed at what %s sent", self.peer_name)
            self.close("amqp:internal-error", f"{type(error).__name__}: {error}")
        self.flush()

    def lost(self) -> None:
        """The transport is gone. Locks stay until they end."""
        self._closing = True
        self.service.peers.discard(self)
        for timer in (self._watch, self._beat):
            if timer is not None:
                timer.cancel()
        for session in self._sessions.values():
            session.drop()
        self._sessions.clear()

    def send(self, performative: Value, channel: int = 0, payload: bytes = b"") -> None:
        self._out.append(frames.encode_frame(performative, channel, payload))

    def flush(self) -> None:
        for session in self._sessions.values():
            session.settle_up()
        if self._out and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
            self._spoke = self._loop.time()
        self._out.clear()

    def is_congested(self) -> bool:
        """Whether the peer reads slower than we write."""
        return self._transport.get_write_buffer_size() > 4 << 20

    def drained(self) -> None:
        """The peer has read what it had left lying."""
        for session in self._sessions.values():
            session.resume()

    def abort(self) -> None:
        self._out.clear()
        self._closing = True
        self._transport.abort()

    def close(self, condition: str | None = None, description: str = "") -> None:
        """Say close, with an error or without, and hang up."""
        if self._closing:
            return
        error = None if condition is None else frames.error_of(condition, description)
        if condition is not None:
            log.info("closing %s: %s %s", self.peer_name, condition, description)
        self.flush()
        self.send(frames.Close(error))
        self.flush()
        self._closing = True
        self._transport.close()

    def detach_links(self, entity: str, condition: str, description: str) -> int:
        """Detach every link to the entity, "*" for all; how many."""
        count = sum(session.detach_links(entity, condition, description) for session in self._sessions.values())
        self.flush()
        return count

    # Stages: each reads what it waits for and says whether to go on.

    def _read_header(self) -> bool:
        header = self._buffer.header()
        if header is None:
            return False
        if header == frames.SASL_HEADER:
            mechanisms = Array(0xB3, tuple(map(Symbol, MECHANISMS)))
            offer = frames.encode_frame(frames.SaslMechanisms(mechanisms), kind=frames.SASL_FRAME)
            self._out += [frames.SASL_HEADER, offer]
            self._stage = self._read_sasl
        elif header == frames.AMQP_HEADER:
            self._out.append(frames.AMQP_HEADER)
            self._stage = self._read_open
        else:
            # The protocol we would have spoken, then the end (AMQP 1.0, 2.2).
            self._out.append(frames.SASL_HEADER)
            self.flush()
            self._closing = True
            self._transport.close()
        return True

    def _read_sasl(self) -> bool:
        frame = self._buffer.frame()
        if frame is None:
            return False
        if frame.kind != frames.SASL_FRAME or not isinstance(frame.performative, frames.SaslInit):
            raise Violation("amqp:connection:framing-error", "a SASL init was expected")
        passed = self._check_sasl(str(frame.performative.mechanism), frame.performative.initial_response)
        outcome = frames.SaslOutcome(UByte(0 if passed else 1))
        self._out.append(frames.encode_frame(outcome, kind=frames.SASL_FRAME))
        if not passed:
            self.flush()
            self._closing = True
            self._transport.close()
            return False
        self._stage = self._read_header
        return True

    def _check_sasl(self, mechanism: str, response: Value) -> bool:
        if mechanism != "PLAIN":
            return mechanism in MECHANISMS
        parts = bytes(response or b"").split(b"\0")
        if len(parts) != 3:
            return False
        name, key = parts[1].decode(errors="replace"), parts[2].decode(errors="replace")
        if self.service.keys and self.service.keys.get(name) != key:
            return False
        self.grants[""] = Grant("", 1 << 62)
        return True

    def _read_open(self) -> bool:
        frame = self._buffer.frame()
        if frame is None:
            return False
        opened = frame.performative
        if not isinstance(opened, frames.Open) or not isinstance(opened.container_id, str):
            raise Violation("amqp:connection:framing-error", "an open with a container id was expected")
        self.peer_max_frame_bytes = min(opened.max_frame_size or 0xFFFFFFFF, MAX_FRAME_BYTES)
        if self.peer_max_frame_bytes < MIN_FRAME_BYTES:
            raise Violation("amqp:invalid-field", f"max-frame-size must be at least {MIN_FRAME_BYTES}")
        idle_ms = UInt(int(self.service.idle_seconds * 1000))
        self.send(frames.Open("servicebus-emulator", None, UInt(MAX_FRAME_BYTES), UShort(CHANNEL_MAX), idle_ms))
        if opened.idle_time_out:
            self._keep_alive(opened.idle_time_out / 2000)
        self._stage = self._read_frame
        return True

    def _read_frame(self) -> bool:
        frame = self._buffer.frame()
        if frame is None:
            return False
        performative = frame.performative
        if performative is None:
            return True
        if frame.kind != frames.AMQP_FRAME:
            raise Violation("amqp:connection:framing-error", f"a frame of type {frame.kind} after open")
        if isinstance(performative, frames.Close):
            self.close()
        elif isinstance(performative, frames.Begin):
            if frame.channel > CHANNEL_MAX or frame.channel in self._sessions:
                raise Violation("amqp:connection:framing-error", f"channel {frame.channel} is taken or too high")
            self._sessions[frame.channel] = Session(self, frame.channel, performative)
        else:
            self._in_session(frame.channel, performative, frame.payload)
        return True

    def _in_session(self, channel: int, performative: Value, payload: bytes) -> None:
        session = self._sessions.get(channel)
        if session is None:
            raise Violation("amqp:connection:framing-error", f"channel {channel} has no session")
        if isinstance(performative, frames.End):
            del self._sessions[channel]
            session.drop()
            self.send(frames.End(), channel)
        elif not session.ended:
            try:
                session.handle(performative, payload)
            except Violation as error:
                session.end(error.condition, str(error))

    # Time: real time, because the peer's is.

    def _keep_alive(self, every_seconds: float) -> None:
        if self._loop.time() - self._spoke >= every_seconds * 0.9 and not self._closing:
            self._out.append(frames.EMPTY_FRAME)
            self.flush()
        self._beat = self._loop.call_later(every_seconds, self._keep_alive, every_seconds)

    def _watch_idle(self) -> None:
        # The peer is told a shorter time than it gets, as the protocol advises and the service does.
        allowed_seconds = self.service.idle_seconds * 1.25
        if self._loop.time() - self._heard >= allowed_seconds:
            text = f"The connection was inactive for more than the allowed {int(allowed_seconds * 1000)} milliseconds."
            self.close("amqp:connection:forced", text)
            return
        self._watch = self._loop.call_later(min(allowed_seconds / 4, 30.0), self._watch_idle)

    # Rights.

    def may_use(self, path: str) -> bool:
        """Whether a valid token covers the entity; without keys everybody may."""
        now_ms = self.service.clock.now_ms()
        return not self.service.keys or any(
            grant.covers(path.lower()) and grant.until_ms > now_ms for grant in self.grants.values()
        )

    def allow(self, grant: Grant) -> None:
        """Take a token's grant, and look at the links again when it ends."""
        self.grants[grant.path] = grant
        self.service.clock.call_at(grant.until_ms, self._check_links)

    def _check_links(self) -> None:
        if not self._closing:
            for session in self._sessions.values():
                session.detach_unauthorized()
            self.flush()

    # Doing what may go wrong on order.

    def perform(
        self,
        point: Point,
        entity: str,
        action: Callable[[], Value],
        answer: Callable[[Value], None],
        detach: Callable[[Fault], None],
    ) -> None:
        """Do it and answer with what it returned or the Refusal it raised, unless a fault stands in the way."""
        fault = self.service.faults.strike(point, entity)
        if fault is not None and fault.action is Action.DROP_BEFORE:
            self.abort()
            return
        outcome: Value
        try:
            if fault is not None and fault.action is Action.REFUSE:
                raise fault.refusal()
            outcome = action()
        except Refusal as refusal:
            outcome = refusal
        match None if fault is None else fault.action:
            case Action.DROP_AFTER:
                self.abort()
            case Action.LOSE:
                pass
            case Action.DELAY if fault is not None:
                self._loop.call_later(fault.delay_seconds, self._answer_late, _Reply(answer, outcome))
            case Action.DETACH if fault is not None:
                detach(fault)
            case _:
                answer(outcome)

    def _answer_late(self, reply: _Reply) -> None:
        if not self._closing:
            reply.send(reply.outcome)
            self.flush()
