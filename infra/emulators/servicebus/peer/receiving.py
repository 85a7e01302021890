"""A client receives from a queue and settles what it got."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from uuid import UUID

from infra.emulators.servicebus.faults import Fault, Point
from infra.emulators.servicebus.peer.links import Outgoing
from infra.emulators.servicebus.peer.ports import SessionPort
from infra.emulators.servicebus.queues.queue import DESCRIPTION, REASON, Queue
from infra.emulators.servicebus.queues.refusals import ArgumentError, LockLost, Refusal
from infra.emulators.servicebus.queues.stored import Delivery
from infra.emulators.servicebus.wire import frames
from infra.emulators.servicebus.wire.values import Described, ULong, Value

__all__ = ["QueueReceiver"]

_NAMES = {
    "amqp:accepted:list": frames.ACCEPTED,
    "amqp:rejected:list": frames.REJECTED,
    "amqp:released:list": frames.RELEASED,
    "amqp:modified:list": frames.MODIFIED,
}


class QueueReceiver(Outgoing):
    """Messages under locks, or with `locks` off removed as they are sent."""

    def __init__(self, session: SessionPort, handle: int, queue: Queue, *, locks: bool) -> None:
        super().__init__(session, handle, queue.name.lower())
        self.locks = locks
        self._queue = queue
        self._service = session.connection.service
        self._service.join(queue, self)

    def dropped(self) -> None:
        self._service.leave(self._queue, self)

    def resume(self) -> None:
        if self.credit > 0:
            self._service.touch(self._queue)

    def drain(self) -> None:
        """First send what fits; only then is the credit used up."""
        now_ms = self._service.clock.now_ms()
        while self.credit > 0 and (taken := self._queue.take(now_ms, self.room(), lock=self.locks)):
            for delivery in taken:
                self.deliver(delivery)
        super().drain()

    def room(self) -> int:
        return min(self.credit, 64) if self.session.has_window() else 0

    def deliver(self, delivery: Delivery) -> None:
        self.spend()
        # The tag is the lock's token, in .NET's order of bytes.
        tag = (delivery.token or uuid.uuid4()).bytes_le
        self.session.transfer(self, tag, delivery.data, delivery.token, settled=not self.locks)

    def detach(self, condition: str, description: str) -> None:
        self.session.detach(self, condition, description)

    def settle(self, delivery_id: int, token: Value, state: Value, *, settled: bool) -> None:
        def answer(outcome: Value) -> None:
            if settled:
                return
            if isinstance(outcome, Refusal):
                outcome = Described(ULong(frames.REJECTED), [frames.error_of(outcome.condition, str(outcome))])
            self.session.confirm(delivery_id, outcome)

        def detach(fault: Fault) -> None:
            self.session.detach(self, fault.condition, fault.description)

        self.session.connection.perform(Point.SETTLE, self.entity, lambda: self._settle(token, state), answer, detach)

    def _settle(self, token: UUID, state: Value) -> Described:
        """Carry the client's outcome out; the outcome to answer with."""
        now_ms = self._service.clock.now_ms()
        if state is None:
            code, fields = frames.ACCEPTED, []  # settled without a word: received well
        elif isinstance(state, Described) and isinstance(state.value, list):
            code, fields = _NAMES.get(state.descriptor, state.descriptor), state.value
        else:
            raise ArgumentError("the outcome is none that AMQP knows")
        fields = [*fields, None, None, None]
        try:
            match code:
                case frames.ACCEPTED:
                    self._queue.complete(now_ms, token)
                case frames.RELEASED:
                    self._queue.release(now_ms, token)
                case frames.MODIFIED if fields[1]:
                    self._queue.defer(now_ms, token, _plain(fields[2]))
                case frames.MODIFIED:
                    self._queue.abandon(now_ms, token, _plain(fields[2]))
                case frames.REJECTED:
                    self._dead_letter(now_ms, token, fields[0])
                    return Described(ULong(frames.REJECTED), [])
                case _:
                    raise ArgumentError(f"no outcome has the descriptor {code}")
        except LockLost:
            self._service.touch(self._queue)
            raise
        self._service.touch(self._queue)
        return Described(ULong(code), []) if state is None else state

    def _dead_letter(self, now_ms: int, token: UUID, error: Value) -> None:
        fields = error.value if isinstance(error, Described) and isinstance(error.value, list) else []
        fields = [*fields, None, None, None]
        info = dict(_plain(fields[2]))
        reason = info.pop(REASON, None)
        description = info.pop(DESCRIPTION, None) or (fields[1] if reason is None else None)
        self._queue.dead_letter(now_ms, token, _text(reason), _text(description), info)
        self._service.touch(self._queue)


def _plain(pairs: Value) -> Mapping[str, Value]:
    """Properties to change, by plain names; AMQP has symbols for the keys of annotations."""
    return {str(key): value for key, value in pairs.items()} if isinstance(pairs, dict) else {}


def _text(value: Value) -> str | None:
    return None if value is None else str(value)
