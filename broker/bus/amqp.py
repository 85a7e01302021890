"""RabbitMQ through kombu's own transport, with what it lacks: confirmed batches, and no wait without an end.

Every publish is confirmed and mandatory. `create_publish_batch` sends many messages and then waits for all of
their confirmations; those that the broker refused or could not route are named by index.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from amqp import spec
from amqp.method_framing import frame_writer
from kombu.transport import pyamqp

from broker.bus.driver import BusUnavailable, MessageRefused, MessageTooLarge, PublishError, QueueMissing

__all__ = ["AmqpChannel", "AmqpTransport", "AmqpsTransport"]

WINDOW_MESSAGES = 500  # unconfirmed at once: enough to hide the round trip, little enough that confirms need no reader
CORK_BYTES = 64 * 1024
CLOSE_SECONDS = 2.0

# py-amqp gives up on a peer that hasn't acknowledged bytes for 1 s, and notices a dead one after 150 s.
_SOCKET_SETTINGS = {"TCP_USER_TIMEOUT": 15_000, "TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


_LOST = (*pyamqp.Transport.connection_errors, *pyamqp.Transport.channel_errors, BusUnavailable)


class _CorkedWriter:
    """Gathers small frames while corked, so that a batch is a few writes to the socket instead of one a message."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self._corked = False
        self._gathered = bytearray()
        self._lock = threading.Lock()  # acknowledgements may come from other threads

    def write(self, data: Any) -> None:
        with self._lock:
            if not self._corked:
                self._write(data)
                return
            self._gathered += data
            if len(self._gathered) >= CORK_BYTES:
                self._flush()

    @contextmanager
    def corked(self) -> Iterator[None]:
        """Within, writes are gathered; what is left is written at the end, or dropped after an error."""
        with self._lock:
            self._corked = True
        try:
            yield
        except BaseException:
            with self._lock:
                self._corked = False
                self._gathered.clear()
            raise
        with self._lock:  # flag and bytes change together: what another thread writes comes before them or after
            self._corked = False
            self._flush()

    def _flush(self) -> None:
        data = bytes(self._gathered)
        self._gathered.clear()
        if data:
            self._write(data)


class AmqpPublishBatch:
    """Messages gathered by `Producer.batch()`; `flush` returns when RabbitMQ has confirmed every one.

    It raises PublishError with the indices, counted from the batch's first message, of those that it has not.
    """

    def __init__(self, channel: AmqpChannel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._count = 0
        self._buffered: list[tuple[int, Any, str, str]] = []

    def publish(self, message: Any, exchange: str = "", routing_key: str = "", **_: Any) -> None:
        self._buffered.append((self._count, message, exchange, routing_key))
        self._count += 1
        if len(self._buffered) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        buffered, self._buffered = self._buffered, []
        errors = self.channel.publish_confirmed(buffered)
        if errors:
            raise PublishError(errors)

    def discard(self) -> None:
        self._buffered.clear()

    def close(self) -> None:
        self._buffered.clear()


class AmqpChannel(pyamqp.Channel):
    """kombu's channel: every publish confirmed, settling twice harmless, attempts counted where the queue counts."""

    _confirm_selected: bool  # py-amqp's, false again when the channel is opened anew

    def __init__(self, connection: AmqpConnection, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super().__init__(connection, *args, **kwargs)

    def _forget(self) -> None:
        """What was known of the channel before it was opened anew."""
        self._published = 0  # the broker numbers what it gets from 1
        self._unconfirmed: dict[int, int] = {}  # its number, and the index in the batch
        self._failed: dict[int, Exception] = {}
        self._marks: dict[str, int] = {}  # message id, and the index in the batch
        self._delivered: dict[int, None] = {}  # tags still to be settled, in their order

    def _do_revive(self) -> None:
        self._forget()
        super()._do_revive()

    # Publishing.

    def create_publish_batch(self, max_size: int) -> AmqpPublishBatch:
        return AmqpPublishBatch(self, max_size)

    def basic_publish(self, msg: Any, exchange: str = "", routing_key: str = "", **_: Any) -> None:
        """Publish one message and wait for its confirmation."""
        errors = self.publish_confirmed([(0, msg, exchange, routing_key)])
        if errors:
            if isinstance(errors[0], BusUnavailable):
                raise errors[0]
            raise PublishError(errors)

    basic_publish_confirm = basic_publish  # py-amqp puts this one in its place

    def publish_confirmed(self, items: Sequence[tuple[int, Any, str, str]]) -> dict[int, Exception]:
        """Publish numbered messages; the answer names those that the broker did not confirm, with the reason."""
        limit = self._connected().max_message_bytes
        errors: dict[int, Exception] = {}
        fitting = []
        for item in items:
            size = len(item[1].body)
            if size > limit:
                errors[item[0]] = MessageTooLarge(f"{size} bytes; queue {item[3]!r} takes {limit}")
            else:
                fitting.append(item)
        for start in range(0, len(fitting), WINDOW_MESSAGES):
            window = fitting[start : start + WINDOW_MESSAGES]
            # Held here as well: a channel that the broker closes is opened anew, and then forgets.
            unconfirmed = self._unconfirmed = {self._published + at: item[0] for at, item in enumerate(window, 1)}
            failed = self._failed = {}
            try:
                self._send(window)
                self._await_confirmations()
            except _LOST as error:
                lost = BusUnavailable(f"the connection to RabbitMQ failed before it confirmed: {error!r}")
                later = {item[0] for item in fitting[start + len(window) :]}
                errors.update({**failed, **dict.fromkeys(later | set(unconfirmed.values()), lost)})
                break
            errors.update(failed)
        return errors

    def _send(self, window: Sequence[tuple[int, Any, str, str]]) -> None:
        connection = self._connected()
        if not self._confirm_selected:
            self.confirm_select()
            self._confirm_selected = True
        self._marks = {}
        try:
            with connection.writing():
                for index, message, exchange, routing_key in window:
                    self._published += 1
                    mark = message.properties.setdefault("message_id", str(self._published))
                    self._marks[mark] = index
                    self.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, routing_key, True, False), message)
        except Exception:
            connection.collect()  # half a batch is out, so neither the stream nor our count can be trusted
            raise

    def _await_confirmations(self) -> None:
        connection = self._connected()
        deadline = time.monotonic() + connection.confirm_seconds
        while self._unconfirmed:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no confirmation within {connection.confirm_seconds} s")
            connection.drain_events(timeout=left)

    def _on_basic_ack(self, delivery_tag: int, multiple: bool) -> None:
        for _ in self._pop_unconfirmed(delivery_tag, multiple):
            pass

    def _on_basic_nack(self, delivery_tag: int, multiple: bool) -> None:
        for index in self._pop_unconfirmed(delivery_tag, multiple):
            self._failed[index] = MessageRefused("RabbitMQ refused it: its queue is full, or could not store it")

    def _pop_unconfirmed(self, tag: int, multiple: bool) -> Iterator[int]:
        if not multiple:
            if tag in self._unconfirmed:
                yield self._unconfirmed.pop(tag)
            return
        for each in [each for each in self._unconfirmed if each <= tag]:
            yield self._unconfirmed.pop(each)

    def _on_basic_return(self, reply_code: int, reply_text: str, exchange: str, routing_key: str, message: Any) -> None:
        index = self._marks.get(message.properties.get("message_id", ""))
        if index is not None:
            self._failed[index] = QueueMissing(f"RabbitMQ has no queue {routing_key!r}: {reply_text}")

    # Consuming.

    def message_to_python(self, raw_message: Any) -> Any:
        message = super().message_to_python(raw_message)
        message.delivery_info["attempts"] = int(message.headers.get("x-delivery-count", 0)) + 1
        return message

    def _on_basic_deliver(self, consumer_tag: str, delivery_tag: int, *args: Any) -> None:
        if consumer_tag not in self.no_ack_consumers:
            self._delivered[delivery_tag] = None
        super()._on_basic_deliver(consumer_tag, delivery_tag, *args)

    def basic_get(self, queue: str = "", no_ack: bool = False, **kwargs: Any) -> Any:
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and not no_ack:
            self._delivered[message.delivery_info["delivery_tag"]] = None
        return message

    # Settling. RabbitMQ closes the channel over a tag that it doesn't know, so such a tag isn't sent.

    def basic_ack(self, delivery_tag: int, multiple: bool = False, **_: Any) -> None:
        if delivery_tag not in self._delivered:
            return
        for tag in [each for each in self._delivered if each <= delivery_tag] if multiple else [delivery_tag]:
            self._delivered.pop(tag, None)
        super().basic_ack(delivery_tag, multiple=multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool, **_: Any) -> None:
        if self._delivered.pop(delivery_tag, self) is None:
            super().basic_reject(delivery_tag, requeue)

    def ack_many(self, tags: Iterable[int]) -> None:
        """Acknowledge these: the unbroken run from the oldest unsettled on in one word, the others singly."""
        wanted = set(tags)
        last = 0
        for tag in self._delivered:
            if tag not in wanted:
                break
            last = tag
        if last:
            wanted = {tag for tag in wanted if tag > last}
            self.basic_ack(last, multiple=True)
        with self._connected().writing():
            for tag in sorted(wanted):
                self.basic_ack(tag)

    # Both.

    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, **kwargs: Any) -> Any:
        """py-amqp would wait for ever for an answer from a broker that hangs."""
        return super().wait(method, callback, timeout or self._connected().answer_seconds, **kwargs)

    def _connected(self) -> AmqpConnection:
        if self.connection is None:
            raise BusUnavailable("the connection to RabbitMQ is closed")
        connection: AmqpConnection = self.connection
        return connection


class AmqpConnection(pyamqp.Connection):
    """py-amqp's connection, with ends to every wait.

    Transport options: `confirm_seconds`, the longest wait for a batch's confirmations; `answer_seconds`, for any
    other answer; `max_message_bytes` of one body. RabbitMQ itself refuses more than 128 MiB (16 MiB since 4.0) and
    closes the channel over it, so larger ones never leave.
    """

    Channel = AmqpChannel

    def __init__(
        self,
        *args: Any,
        confirm_seconds: float = 15.0,
        answer_seconds: float = 15.0,
        max_message_bytes: int = 16 * 1024 * 1024,
        **kwargs: Any,
    ) -> None:
        self.confirm_seconds = confirm_seconds
        self.answer_seconds = answer_seconds
        self.max_message_bytes = max_message_bytes
        self._corked: _CorkedWriter | None = None
        settings = {getattr(socket, name): v for name, v in _SOCKET_SETTINGS.items() if hasattr(socket, name)}
        kwargs["socket_settings"] = {**settings, **(kwargs.get("socket_settings") or {})}
        super().__init__(*args, frame_writer=self._corked_frame_writer, **kwargs)

    def _corked_frame_writer(self, connection: Any, transport: Any) -> Any:
        self._corked = _CorkedWriter(transport.write)
        return frame_writer(connection, self._corked)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within, frames are gathered; a broker that takes no bytes for `confirm_seconds` raises."""
        corked = self._corked
        if corked is None or not self.connected:
            raise BusUnavailable("the connection to RabbitMQ is closed")
        with self.transport.having_timeout(self.confirm_seconds), corked.corked():
            yield

    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, **kwargs: Any) -> Any:
        return super().wait(method, callback, timeout or self.answer_seconds, **kwargs)


class AmqpTransport(pyamqp.Transport):
    """amqp:// for lanes; see the module's text."""

    Connection = AmqpConnection
    implements = pyamqp.Transport.implements.extend(batch_publish=True)
    connection_errors = (*pyamqp.Transport.connection_errors, BusUnavailable)
    recoverable_connection_errors = (*pyamqp.Transport.recoverable_connection_errors, BusUnavailable)

    def close_connection(self, connection: AmqpConnection) -> None:
        """Say goodbye, but not for long: a broker that hangs must not hold up a stop."""
        connection.answer_seconds = min(connection.answer_seconds, CLOSE_SECONDS)
        try:
            super().close_connection(connection)
        finally:
            connection.collect()


class AmqpsTransport(AmqpTransport):
    """amqps:// for lanes: who answers must prove to be the host that the URL names."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        given = client.ssl if isinstance(client.ssl, dict) else {}
        client.ssl = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None, **given}
