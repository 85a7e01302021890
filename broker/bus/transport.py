"""One kombu transport for every bus that has a `LaneDriver`.

Celery sees an asynchronous transport: a puller thread receives, a socket pair wakes the worker's event loop,
and the loop delivers. Plain kombu users call `drain_events`, which waits on a condition. Nothing is shared
between two connections, and nothing is kept on a class.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.base import Transport as KombuTransport
from kombu.utils.url import maybe_sanitize_url

from broker.bus.driver import BusUnavailable, LaneDriver, MessageTooLarge, PublishError, QueueMissing
from broker.bus.framing import decode_message, encode_message
from broker.bus.puller import Arrival, Prefetched, PrefetchOptions
from broker.bus.settler import Verdict

__all__ = ["LaneChannel", "LanePublishBatch", "LaneTransport"]


class LanePublishBatch:
    """Messages gathered by `Producer.batch()`; `flush` returns when the bus has confirmed every one.

    It raises PublishError with the indices, counted from the batch's first message, of those that it has not.
    """

    def __init__(self, channel: LaneChannel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._count = 0
        self._buffered: dict[str, list[tuple[int, bytes]]] = {}

    def publish(self, message: dict[str, Any], **kwargs: Any) -> None:
        self.channel.basic_publish(message, publish_batch=self, **kwargs)
        if sum(map(len, self._buffered.values())) >= self._max_size:
            self.flush()

    def add(self, queue: str, data: bytes) -> None:
        self._buffered.setdefault(queue, []).append((self._count, data))
        self._count += 1

    def flush(self) -> None:
        errors: dict[int, Exception] = {}
        buffered, self._buffered = self._buffered, {}
        for queue, items in buffered.items():
            errors.update(self.channel.publish_confirmed(queue, items))
        if errors:
            raise PublishError(errors)

    def discard(self) -> None:
        self._buffered.clear()

    def close(self) -> None:
        self._buffered.clear()


class LaneChannel(virtual.Channel):
    """kombu's channel: its own prefetch limit, its own deliveries, its own settlements."""

    do_restore = False  # closing gives messages back through the driver, never by publishing a copy
    body_encoding = None  # drivers carry bytes; base64 would cost a third more
    closed: bool

    def __init__(self, connection: LaneTransport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.body_encoding = None
        self._driver = connection.driver
        self._prefetched = Prefetched(connection.driver, decode_message, connection.notify, connection.prefetch_options)
        self._deliveries: dict[str, dict[str, tuple[Callable[[Any], Any], bool]]] = {}

    # Publishing.

    def create_publish_batch(self, max_size: int) -> LanePublishBatch:
        return LanePublishBatch(self, max_size)

    def publish_confirmed(self, queue: str, items: list[tuple[int, bytes]]) -> dict[int, Exception]:
        """Publish numbered messages; the answer names those that the bus did not confirm, with the reason."""
        errors: dict[int, Exception] = {}
        limit = self._driver.max_message_bytes
        fitting: list[tuple[int, bytes]] = []
        for index, data in items:
            if len(data) > limit:
                errors[index] = MessageTooLarge(f"{len(data)} bytes; queue {queue!r} takes {limit}")
            else:
                fitting.append((index, data))
        for start in range(0, len(fitting), self._driver.max_publish):
            chunk = fitting[start : start + self._driver.max_publish]
            try:
                self._driver.publish(queue, [data for _, data in chunk])
            except PublishError as error:
                errors.update({chunk[at][0]: cause for at, cause in error.errors.items()})
            except BusUnavailable as error:
                errors.update({index: error for index, _ in fitting[start:]})
                break
        return errors

    def _put(
        self, queue: str, message: dict[str, Any], publish_batch: LanePublishBatch | None = None, **_: Any
    ) -> None:
        data = encode_message(message)
        if publish_batch is not None:
            publish_batch.add(queue, data)
            return
        errors = self.publish_confirmed(queue, [(0, data)])
        if errors:
            if isinstance(errors[0], BusUnavailable):
                raise errors[0]
            raise PublishError(errors)

    def _inplace_augment_message(self, message: dict[str, Any], exchange: str, routing_key: str) -> None:
        # No delivery tag and no body encoding: tags are the receiver's, and bodies stay bytes.
        message["properties"]["delivery_info"].update(exchange=exchange, routing_key=routing_key)

    # Consuming.

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **_: Any
    ) -> None:
        self._deliveries.setdefault(queue, {})[consumer_tag] = (callback, bool(no_ack))
        self._tag_to_queue[consumer_tag] = queue
        self._consumers.add(consumer_tag)
        self._prefetched.start(queue)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop pulling and give back what was not delivered; deliveries, leases and settlement live on."""
        self._consumers.discard(consumer_tag)
        queue = self._tag_to_queue.pop(consumer_tag, None)
        if queue is None:
            return
        deliveries = self._deliveries.get(queue, {})
        deliveries.pop(consumer_tag, None)
        if not deliveries:
            self._deliveries.pop(queue, None)
            self._prefetched.stop(queue)

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        self._prefetched.set_prefetch(prefetch_count)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        taken = self._prefetched.fetch(queue)
        return None if taken is None else self._to_message(*taken, no_ack=no_ack)

    def deliver_next(self) -> bool:
        """Hand the next message to its consumer; False when there is none. Raises the pullers' error."""
        if self._prefetched.error is not None:
            error, self._prefetched.error = self._prefetched.error, None
            raise error
        taken = self._prefetched.take()
        if taken is None:
            return False
        tag, arrival = taken
        deliveries = self._deliveries.get(arrival.received.queue)
        if not deliveries:
            self._prefetched.settle(tag, Verdict.RELEASE)
            return True
        callback, no_ack = next(iter(deliveries.values()))
        callback(self._to_message(tag, arrival, no_ack=no_ack))
        return True

    def _to_message(self, tag: str, arrival: Arrival, *, no_ack: bool) -> Any:
        arrival.message["properties"]["delivery_tag"] = tag
        message = self.Message(arrival.message, channel=self)
        if no_ack:
            self._prefetched.settle(tag, Verdict.ACK)
        return message

    # Settling.

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        self._prefetched.settle(delivery_tag, Verdict.ACK)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self._prefetched.settle(delivery_tag, Verdict.RELEASE if requeue else Verdict.DEAD_LETTER, "rejected")

    # Queues.

    def queue_declare(self, queue: str | None = None, passive: bool = False, **_: Any) -> Any:
        """Only a passive declaration counts messages, because on clouds counting is a call of its own."""
        if not queue:
            raise ChannelError("a lane's queue needs a name", (50, 10), "Channel.queue_declare", "403")
        size = 0
        try:
            if passive:
                size = self._driver.size(queue) or 0
            else:
                self._driver.ensure(queue)
        except QueueMissing as error:
            raise ChannelError(str(error), (50, 10), "Channel.queue_declare", "404") from error
        return queue_declare_ok_t(queue, size, 0)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any) -> None:
        if if_empty and self._size(queue):
            return
        self.state.queue_bindings_delete(queue)
        self._driver.delete(queue)

    def _size(self, queue: str) -> int:
        return self._driver.size(queue) or 0

    def _purge(self, queue: str) -> int:
        return self._driver.purge(queue)

    def close(self) -> None:
        """Give back everything unsettled, flush what was settled, stop the threads."""
        if self.closed:
            return
        self.closed = True
        transport = self.connection
        lingering = self._prefetched.close()
        self._consumers.clear()
        self._deliveries.clear()
        self._tag_to_queue.clear()
        if transport is not None:
            transport.lingering += lingering
            transport.close_channel(self)


class LaneTransport(virtual.Transport):
    """A connection to one lane's bus; a subclass per driver says how to open it.

    Transport options, beside the driver's own: `receive_seconds`, `receive_errors_max`, `max_attempts` and
    `close_seconds`, explained at `PrefetchOptions`.
    """

    Channel = LaneChannel
    can_parse_url = True
    implements = KombuTransport.implements.extend(
        asynchronous=True, batch_publish=True, exchange_type=frozenset(["direct"]), heartbeats=False
    )
    connection_errors = (*virtual.Transport.connection_errors, BusUnavailable)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        options = client.transport_options
        self.prefetch_options = PrefetchOptions(
            **{name: options[name] for name in PrefetchOptions._fields if name in options},
        )
        self.lingering: list[threading.Thread] = []
        self._driver: LaneDriver | None = None
        self._changed = threading.Condition()
        self._changes = 0
        self._loop: Any = None
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None
        self._wake_pending = False

    def open_driver(self, url: str, options: Mapping[str, Any]) -> LaneDriver:
        """Connect. Raises BusUnavailable, or ValueError when the URL or an option makes no sense."""
        raise NotImplementedError

    @property
    def driver(self) -> LaneDriver:
        if self._driver is None:
            raise BusUnavailable("the connection is closed")
        return self._driver

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        return uri if include_password else str(maybe_sanitize_url(uri, mask))

    def establish_connection(self) -> LaneTransport:
        self._driver = self.open_driver(self.client.hostname, self.client.transport_options)
        self._avail_channels.append(self.create_channel(self))
        return self

    def close_connection(self, connection: LaneTransport) -> None:
        self._unregister()
        for channel in {id(each): each for each in (*self._avail_channels, *self.channels)}.values():
            channel.close()
        self._avail_channels.clear()
        self.channels.clear()
        driver, self._driver = self._driver, None
        if driver is None:
            return
        if self.lingering:
            # Their receives may still bring messages, which must be given back before the driver is gone.
            threading.Thread(target=_close_after, args=(driver, self.lingering), daemon=True).start()
        else:
            driver.close()

    def verify_connection(self, connection: LaneTransport) -> bool:
        return self._driver is not None

    # Waking the consumer.

    def notify(self) -> None:
        """Called by pullers: something can be delivered, or an error wants to be raised."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()
            if self._writer is not None and not self._wake_pending:
                self._wake_pending = True
                with suppress(OSError):
                    self._writer.send(b"\0")

    def register_with_event_loop(self, connection: LaneTransport, loop: Any) -> None:
        self._unregister()
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        with self._changed:
            self._loop, self._reader, self._writer = loop, reader, writer
        loop.add_reader(reader.fileno(), self._on_wakeup)
        self.notify()

    def _unregister(self) -> None:
        with self._changed:
            loop, reader, writer = self._loop, self._reader, self._writer
            self._loop = self._reader = self._writer = None
            self._wake_pending = False
        if reader is None or writer is None:
            return
        if reader.fileno() in loop.readers:  # asking a closed hub to remove it would open a new poller
            loop.remove_reader(reader.fileno())
        reader.close()
        writer.close()

    def _on_wakeup(self) -> None:
        with self._changed:
            if self._reader is None:
                return
            # Under one lock with the flag: else a wake-up sent in between is read here, and none is sent again.
            with suppress(OSError):
                self._reader.recv(4096)
            self._wake_pending = False
        while self._deliver_one():
            pass

    def _deliver_one(self) -> bool:
        return any(channel.deliver_next() for channel in list(self.channels))

    def drain_events(self, connection: LaneTransport, timeout: float | None = None, **_: Any) -> None:
        """Deliver one message, waiting for it up to `timeout` seconds, for ever if None. Raises socket.timeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._changed:
                seen = self._changes
            if self._deliver_one():
                return
            with self._changed:
                while self._changes == seen:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError("no message came")
                    self._changed.wait(left)


def _close_after(driver: LaneDriver, pullers: list[threading.Thread]) -> None:
    for puller in pullers:
        puller.join()
    driver.close()
