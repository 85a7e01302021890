"""The driver: one queue's sender, receiver and held messages at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress

from azure.core.exceptions import ResourceExistsError
from azure.servicebus import ServiceBusReceivedMessage, ServiceBusReceiveMode, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.amqp import AmqpMessageBodyType
from azure.servicebus.exceptions import MessageAlreadySettled, MessageLockLostError

from broker.bus.driver import BusUnavailable, MessageRefused, MessageTooLarge, PublishError, QueueMissing, Received
from broker.bus.drivers.servicebus.sdk import ServiceBusOptions, batches, open_clients, queue_form, translated
from broker.bus.drivers.servicebus.turns import Turns

__all__ = ["ServiceBusDriver"]

SLICE_SECONDS = 0.2  # how long a receive keeps the settlements of its queue waiting
POLL_SECONDS = 0.02
READ_SECONDS = 0.05  # how long the SDK waits for more once it has read what was there


class _Station:
    """What one queue needs: a sender and a receiver, each with its turns, and the messages held."""

    def __init__(self) -> None:
        self.sending = Turns()
        self.receiving = Turns()
        self.sender: ServiceBusSender | None = None
        self.receiver: ServiceBusReceiver | None = None
        self.held: dict[Hashable, ServiceBusReceivedMessage] = {}
        self.plenty = False  # the last receive was filled, so that the next may ask for many


class ServiceBusDriver:
    """One connection per queue and direction, which is how the SDK works; keeps every promise of `LaneDriver`.

    The SDK's links aren't thread-safe, so calls at one queue take turns, but two queues don't wait for each other.
    A delay of a release isn't known to the service: the message comes again when its lock ends.
    """

    max_receive = 200
    max_publish = 1_000
    native_dead_letter = True
    settles_locally = False

    def __init__(self, host: str, key: tuple[str, str] | None, options: ServiceBusOptions) -> None:
        self.lease_seconds = options.lease_seconds
        self.max_message_bytes = options.max_message_bytes
        self._options = options
        self._client, self._admin = open_clients(host, key, options)
        self._lock = threading.Lock()
        self._stations: dict[str, _Station] = {}
        self._known: set[str] = set()
        self._wakes = 0
        self._closed = False

    # Queues.

    def ensure(self, queue: str) -> None:
        if queue in self._known:
            return
        with translated(queue):
            if self._options.create:
                self._create(queue)
            else:
                station = self._station(queue)
                with station.receiving.take(urgent=True):
                    self._receiver(queue, station)
        self._known.add(queue)

    def _create(self, queue: str) -> None:
        with suppress(ResourceExistsError):
            self._admin.create_queue(queue, **queue_form(self._options))

    def size(self, queue: str) -> int | None:
        try:
            with translated(queue):
                counts = self._admin.get_queue_runtime_properties(queue)
        except PermissionError:
            return None  # counting needs the right to manage the namespace
        # The service counts locked messages as active; of others' locks nobody tells us.
        return max((counts.active_message_count or 0) - len(self._station(queue).held), 0)

    def purge(self, queue: str) -> int:
        count = 0
        mode = ServiceBusReceiveMode.RECEIVE_AND_DELETE
        with translated(queue), self._client.get_queue_receiver(queue, receive_mode=mode) as receiver:
            while dropped := receiver.receive_messages(self.max_receive, max_wait_time=0.5):
                count += len(dropped)
        return count

    def delete(self, queue: str) -> None:
        self._known.discard(queue)
        with suppress(QueueMissing), translated(queue):
            self._admin.delete_queue(queue)

    # Publishing.

    def publish(self, queue: str, items: Sequence[bytes]) -> None:
        station = self._station(queue)
        errors: dict[int, Exception] = {}
        with station.sending.take(urgent=True):
            try:
                with translated(queue):
                    if station.sender is None:
                        station.sender = self._client.get_queue_sender(queue)
                    sender = station.sender
                    parcels = list(batches(sender, items))
            except BusUnavailable:
                self._drop_sender(queue, station)
                raise
            lost: Exception | None = None
            for indices, batch in parcels:
                try:
                    if lost is None:
                        with translated(queue):
                            sender.send_messages(batch, timeout=self._options.confirm_seconds)
                        continue
                except BusUnavailable as error:
                    lost = error
                    self._drop_sender(queue, station)
                except (MessageRefused, MessageTooLarge) as error:
                    errors.update(dict.fromkeys(indices, error))
                    continue
                errors.update(dict.fromkeys(indices, lost))
        if lost is not None and len(errors) == len(items):
            raise lost
        if errors:
            raise PublishError(errors)

    def _drop_sender(self, queue: str, station: _Station) -> None:
        self._known.discard(queue)
        sender, station.sender = station.sender, None
        if sender is not None:
            with suppress(Exception):  # it is broken; there is nothing left to do about it
                sender.close()

    # Receiving.

    def receive(self, queue: str, count: int, wait_seconds: float) -> list[Received]:
        station = self._station(queue)
        deadline = time.monotonic() + wait_seconds
        wakes = self._wakes
        while True:
            left = max(deadline - time.monotonic(), POLL_SECONDS)
            with station.receiving.take(urgent=False):
                received = self._receive_some(queue, station, count, min(left, SLICE_SECONDS))
            if received or time.monotonic() >= deadline or self._wakes != wakes or self._closed:
                return received

    def _receive_some(self, queue: str, station: _Station, count: int, wait_seconds: float) -> list[Received]:
        """One message as soon as it is there; many only where the last call found plenty.

        The SDK waits for more whenever it was asked for more than came.
        """
        asked = count if station.plenty else 1
        wait_seconds = POLL_SECONDS if station.plenty else wait_seconds
        try:
            with translated(queue):
                receiver = self._receiver(queue, station)
                messages = receiver.receive_messages(asked, max_wait_time=wait_seconds)
        except BusUnavailable:
            station.plenty = False
            # The SDK would open the link anew within the wait, which is too short for that, and so never.
            self._drop_receiver(queue, station)
            raise
        station.plenty = len(messages) == asked
        return [self._hold(queue, station, message) for message in messages]

    def _hold(self, queue: str, station: _Station, message: ServiceBusReceivedMessage) -> Received:
        handle = str(message.lock_token)
        station.held[handle] = message
        raw = message.body_type is AmqpMessageBodyType.DATA
        data = b"".join(message.body) if raw else str(message.body).encode()
        return Received(queue, handle, data, (message.delivery_count or 0) + 1)

    def _receiver(self, queue: str, station: _Station) -> ServiceBusReceiver:
        if self._closed:
            raise BusUnavailable("this connection to Service Bus is closed")
        if station.receiver is None:
            # `timeout` is that of a settlement's answer, for which the SDK would wait a minute.
            receiver = self._client.get_queue_receiver(
                queue, socket_timeout=READ_SECONDS, timeout=self._options.answer_seconds
            )
            receiver.__enter__()  # opens the link, so that a missing queue shows here
            station.receiver = receiver
        return station.receiver

    def _drop_receiver(self, queue: str, station: _Station) -> None:
        self._known.discard(queue)
        receiver, station.receiver = station.receiver, None
        if receiver is not None:
            with suppress(Exception):  # it is broken or no longer wanted
                receiver.close()

    # Settling.

    def ack(self, queue: str, handles: Sequence[Hashable]) -> dict[Hashable, Exception]:
        return self._settle(queue, handles, lambda receiver, message: receiver.complete_message(message))

    def release(self, queue: str, handles: Sequence[Hashable], delay_seconds: float) -> None:
        if delay_seconds > 0:
            for handle in handles:
                self._station(queue).held.pop(handle, None)
            return
        self._settle(queue, handles, lambda receiver, message: receiver.abandon_message(message))

    def dead_letter(self, queue: str, received: Sequence[Received], reason: str) -> None:
        def bury(receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage) -> None:
            receiver.dead_letter_message(message, reason=reason, error_description=reason)

        self._settle(queue, [message.handle for message in received], bury)

    def _settle(
        self,
        queue: str,
        handles: Sequence[Hashable],
        act: Callable[[ServiceBusReceiver, ServiceBusReceivedMessage], object],
    ) -> dict[Hashable, Exception]:
        """Settle each; those lost are answered. What the bus didn't hear of stays held, for another try."""
        station = self._station(queue)
        lost: dict[Hashable, Exception] = {}
        with station.receiving.take(urgent=True):
            for handle in handles:
                message = station.held.get(handle)
                if message is None:
                    continue  # settled before
                if error := self._try_on(queue, station, message, act):
                    lost[handle] = error
                del station.held[handle]
        return lost

    def extend(self, queue: str, handles: Sequence[Hashable], seconds: float) -> dict[Hashable, Exception]:
        def renew(receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage) -> None:
            receiver.renew_message_lock(message, timeout=self._options.answer_seconds)

        station = self._station(queue)
        lost: dict[Hashable, Exception] = {}
        for handle in handles:
            with station.receiving.take(urgent=True):
                message = station.held.get(handle)
                if message is None:
                    continue  # settled meanwhile
                if error := self._try_on(queue, station, message, renew):
                    lost[handle] = error
        return lost

    def _try_on(
        self,
        queue: str,
        station: _Station,
        message: ServiceBusReceivedMessage,
        act: Callable[[ServiceBusReceiver, ServiceBusReceivedMessage], object],
    ) -> Exception | None:
        """Act on a message, once more by a new link where the first is gone, for locks outlive links.

        Returns what says that the lock is lost. Raises BusUnavailable.
        """

        def attempt() -> Exception | None:
            try:
                with translated(queue):
                    act(self._receiver(queue, station), message)
            except (MessageLockLostError, MessageAlreadySettled, QueueMissing) as error:
                return error
            return None

        try:
            return attempt()
        except BusUnavailable:
            self._drop_receiver(queue, station)
            return attempt()

    # The end.

    def wake(self) -> None:
        self._wakes += 1

    def close(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
            stations = list(self._stations.items())
        if closed:
            return
        closing = [threading.Thread(target=self._close_station, args=each, daemon=True) for each in stations]
        for thread in closing:
            thread.start()  # each takes the SDK up to a second
        for thread in closing:
            thread.join()
        self._client.close()
        self._admin.close()

    def _close_station(self, queue: str, station: _Station) -> None:
        with station.receiving.take(urgent=True), station.sending.take(urgent=True):
            for message in station.held.values():
                with suppress(Exception):  # its lock ends by itself
                    if station.receiver is not None:
                        station.receiver.abandon_message(message)
            station.held.clear()
            self._drop_receiver(queue, station)
            self._drop_sender(queue, station)

    def _station(self, queue: str) -> _Station:
        with self._lock:
            if self._closed:
                raise BusUnavailable("this connection to Service Bus is closed")
            return self._stations.setdefault(queue, _Station())
