"""Redis through kombu's own transport, over queues of ours that lose nothing; see `broker.bus.redis_queues`.

kombu keeps what it is good at: connections, the event loop, prefetch, health checks. Its lists are replaced, because
it pops a message before it notes it as unacknowledged, writes JSON with base64, has no bound and no dead letters.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Sequence
from queue import Empty
from typing import Any

import redis as redis_client
import structlog
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str

from broker.bus.driver import BusUnavailable, MessageRefused, MessageTooLarge, PublishError, Received
from broker.bus.framing import decode_message, encode_message
from broker.bus.redis_queues import RedisQueues, Taken, bell_of
from broker.bus.topology import newest_kept
from broker.domain.errors import named

__all__ = ["RedisChannel", "RedisTransport", "RedissTransport"]

log = structlog.get_logger()

TAKE_MAX = 100
TICKS_PER_LEASE = 4

_LOST = (redis_client.ConnectionError, redis_client.TimeoutError, OSError)


class RedisPublishBatch:
    """Messages gathered by `Producer.batch()`; `flush` returns when Redis has every one.

    It raises PublishError with the indices, counted from the batch's first message, of those that it has not.
    """

    def __init__(self, channel: RedisChannel, max_size: int) -> None:
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


class RedisQoS(kombu_redis.QoS):
    """What is delivered and not settled; renewed and given back by our queues."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ticked_at = time.monotonic()

    def append(self, message: Any, delivery_tag: str) -> None:
        virtual.QoS.append(self, message, delivery_tag)  # taking it has noted it already

    def ack(self, delivery_tag: str) -> None:
        self.ack_many([delivery_tag])

    def ack_many(self, tags: Iterable[str]) -> None:
        """Acknowledge in one round trip; what was settled before changes nothing."""
        held = [tag for tag in tags if self._holds(tag)]
        if held:
            self.channel.queues.acknowledge(held)
            self._dirty.update(held)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not self._holds(delivery_tag):
            return
        if requeue:
            self.channel.queues.give_back([delivery_tag])
        else:
            self.channel.queues.dead_letter([delivery_tag], "rejected")
        self._dirty.add(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        self._flush()
        tags = list(self._delivered)
        self._delivered.clear()
        if tags:
            self.channel.queues.give_back(tags)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back what is held, at closing. kombu would write what it can't give back, with bodies, to a file."""
        self._on_collect.cancel()
        try:
            self.restore_unacked()
        except redis_client.RedisError as error:
            log.warning("messages_left_to_their_lease", error=named(error))

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Renew what is held, and put back what others have abandoned, four times per lease."""
        now = time.monotonic()
        if now - self._ticked_at < self.visibility_timeout / TICKS_PER_LEASE:
            return
        self._ticked_at = now
        held = [tag for tag in list(self._delivered) if tag not in self._dirty]
        if held:
            self.channel.queues.renew(held)
        count = self.channel.queues.sweep(self.visibility_timeout)
        if count:
            log.warning("abandoned_messages_restored", count=count)

    def _holds(self, tag: str) -> bool:
        return tag in self._delivered and tag not in self._dirty


class RedisChannel(kombu_redis.Channel):
    """kombu's channel over our queues.

    Transport options beside kombu's: `max_messages` a queue may hold, `max_message_bytes` of one message, and
    `max_attempts`, deliveries after which a message becomes a dead letter (0: never).
    """

    QoS = RedisQoS
    body_encoding = None
    supports_batch_publish = True
    max_messages = 100_000
    max_message_bytes = 16 * 1024 * 1024
    max_attempts = 0
    from_transport_options = (
        *kombu_redis.Channel.from_transport_options,
        "max_messages",
        "max_message_bytes",
        "max_attempts",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.body_encoding = None
        self.queues = RedisQueues(redis_client.Redis(connection_pool=self.pool), self.global_keyprefix)

    # Publishing.

    def create_publish_batch(self, max_size: int) -> RedisPublishBatch:
        return RedisPublishBatch(self, max_size)

    def publish_confirmed(self, queue: str, items: Sequence[tuple[int, bytes]]) -> dict[int, Exception]:
        """Publish numbered messages; the answer names those that Redis did not take, with the reason."""
        errors: dict[int, Exception] = {}
        fitting: list[tuple[int, bytes]] = []
        for index, data in items:
            if len(data) > self.max_message_bytes:
                errors[index] = MessageTooLarge(f"{len(data)} bytes; queue {queue!r} takes {self.max_message_bytes}")
            else:
                fitting.append((index, data))
        cause: Exception = MessageRefused(f"queue {queue!r} is full: it holds {self.max_messages} messages")
        done = 0
        kept = newest_kept(queue)
        try:
            if kept is not None:
                done = self.queues.push_newest(queue, [data for _, data in fitting], kept)
            else:
                done = self.queues.push(queue, [data for _, data in fitting], self.max_messages)
        except _LOST as error:
            cause = BusUnavailable(f"the connection to Redis failed before it confirmed: {error!r}")
        except redis_client.ResponseError as error:
            cause = MessageRefused(f"Redis refused it: {error}")
        errors.update({index: cause for index, _ in fitting[done:]})
        return errors

    def _put(
        self, queue: str, message: dict[str, Any], publish_batch: RedisPublishBatch | None = None, **_: Any
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
        # No delivery tag and no body encoding: tags are given at taking, and bodies stay bytes.
        message["properties"]["delivery_info"].update(exchange=exchange, routing_key=routing_key)

    # Consuming.

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Wait for a bell; kombu would wait with the queues themselves, and so pop what it hasn't noted."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = time.monotonic()
        bells = [self.global_keyprefix + bell_of(queue) for queue in queues]
        connection.send_command("BRPOP", *bells, timeout or self.brpop_timeout)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            rung = self.client.parse_response(self.client.connection, "BRPOP", **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
        self.qos.restore_visible()
        # After a second without a bell look all the same: a ring can be lost with whoever heard it.
        queues = [bytes_to_str(rung[0]).removesuffix(bell_of(""))] if rung else self.active_queues
        delivered = False
        for queue in queues:
            self._queue_cycle.rotate(queue)
            delivered |= self._deliver_from(queue)
        if not delivered:
            raise Empty
        return True

    def _deliver_from(self, queue: str) -> bool:
        credit = self.qos.can_consume_max_estimate()
        count = TAKE_MAX if credit is None else min(credit, TAKE_MAX)
        messages = [self._decoded(queue, taken) for taken in self.queues.take(queue, count)] if count else []
        deliverable = [message for message in messages if message is not None]
        for message in deliverable:
            self.connection._deliver(message, queue)  # noqa: SLF001  # kombu's channels call their transport so
        return bool(deliverable)

    def _decoded(self, queue: str, taken: Taken) -> dict[str, Any] | None:
        """The message; None when it is moved aside, since it can't be decoded or has come too often."""
        try:
            message = decode_message(Received(queue, taken.tag, taken.data, taken.attempts))
        except Exception as error:  # noqa: BLE001  # foreign bytes may fail anywhere in decoding
            reason = f"undecodable: {type(error).__name__}"
        else:
            message["properties"]["delivery_tag"] = taken.tag
            if not 0 < self.max_attempts < taken.attempts:
                return message
            reason = f"delivered {self.max_attempts} times without being settled"
        log.warning("message_dead_lettered", queue=queue, attempts=taken.attempts, reason=reason)
        self.queues.dead_letter([taken.tag], reason)
        return None

    def _get(self, queue: str) -> dict[str, Any]:
        for taken in self.queues.take(queue, 1):
            message = self._decoded(queue, taken)
            if message is not None:
                return message
        raise Empty

    def ack_many(self, tags: Iterable[str]) -> None:
        """Acknowledge these in one round trip."""
        self.qos.ack_many(tags)

    # Queues: a list comes into being with its first item, and goes with its last.

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return True

    def _size(self, queue: str) -> int:
        return self.queues.size(queue)

    def _purge(self, queue: str) -> int:
        return self.queues.purge(queue)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.queues.purge(queue)
        super()._delete(queue, *args, **kwargs)

    def close(self) -> None:
        """Give back what is held. The wait for a bell is cut short: kombu would wait it out."""
        if not self.closed and self._in_poll:
            queues = self.active_queues
            self.client.connection.disconnect()
            self._in_poll = None
            try:
                for queue in queues:
                    self.queues.ring(queue)  # the one that this channel may just have been given
            except redis_client.RedisError:
                log.debug("bell_not_rung")  # others look by themselves within a second
        if not self.closed and self._qos is not None:
            self._qos.restore_unacked_once()  # while there are connections
        super().close()


class RedisTransport(kombu_redis.Transport):
    """redis:// for lanes; see the module's text."""

    Channel = RedisChannel
    connection_errors = (*kombu_redis.Transport.connection_errors, BusUnavailable)


class RedissTransport(RedisTransport):
    """rediss:// for lanes: who answers must prove to be the host that the URL names."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        given = client.ssl if isinstance(client.ssl, dict) else {}
        client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED, **given}
