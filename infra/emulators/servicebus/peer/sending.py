"""A client sends to a queue."""

from __future__ import annotations

from infra.emulators.servicebus.faults import Fault, Point
from infra.emulators.servicebus.peer.links import Incoming
from infra.emulators.servicebus.peer.ports import SessionPort
from infra.emulators.servicebus.queues.message import BATCH_FORMAT, batch_of, content_of
from infra.emulators.servicebus.queues.queue import Queue
from infra.emulators.servicebus.queues.refusals import ArgumentError, MessageTooLarge, Refusal
from infra.emulators.servicebus.wire import frames
from infra.emulators.servicebus.wire.values import DecodeError, Described, ULong, Value

__all__ = ["QueueSender"]


class QueueSender(Incoming):
    """Each delivery becomes one message, or a batch's many; all of it or nothing is taken."""

    def __init__(self, session: SessionPort, handle: int, queue: Queue) -> None:
        limit = queue.description.max_message_kilobytes * 1024
        super().__init__(session, handle, queue.name.lower(), limit)
        self._queue = queue
        self.on_delivery = self._take

    def _take(self, delivery_id: int, message_format: int, data: bytes | None, size: int, settled: bool) -> None:
        def answer(outcome: Value) -> None:
            if settled:
                return
            if isinstance(outcome, Refusal):
                error = frames.error_of(outcome.condition, str(outcome))
                self.session.settle(delivery_id, Described(ULong(frames.REJECTED), [error]))
            else:
                self.session.accept(delivery_id)

        def detach(fault: Fault) -> None:
            self.session.detach(self, fault.condition, fault.description)

        self.session.connection.perform(
            Point.SEND, self.entity, lambda: self._send(message_format, data, size), answer, detach
        )

    def _send(self, message_format: int, data: bytes | None, size: int) -> None:
        if data is None:
            raise MessageTooLarge(f"the message has {size} bytes; queue '{self._queue.name}' takes {self.max_bytes}")
        if message_format not in {0, BATCH_FORMAT}:
            raise ArgumentError(f"no message has the format 0x{message_format:08x}")
        try:
            contents = batch_of(data) if message_format == BATCH_FORMAT else [content_of(data)]
        except DecodeError as error:
            raise ArgumentError(f"the message can't be decoded: {error}") from error
        service = self.session.connection.service
        self._queue.send(service.clock.now_ms(), contents, size)
        service.touch(self._queue)
