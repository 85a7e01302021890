"""Receiving plain envelopes in bulk, acknowledged only when the caller has made them durable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

import structlog
from kombu import Connection, Consumer
from kombu.exceptions import OperationalError

from broker.bus.claim_check import ClaimCheck
from broker.bus.driver import BusUnavailable
from broker.bus.envelope import UnknownKeyError
from broker.bus.serializer import CONTENT_TYPE, unwrap
from broker.bus.topology import lane_queue, open_connection
from broker.domain.errors import named

__all__ = ["Delivery", "Inbox"]

log = structlog.get_logger()

RECONNECT_SECONDS = 0.5
RECONNECT_SECONDS_MAX = 5.0


class Delivery:
    """One envelope and the queue it came from. It is delivered again unless its inbox acknowledges it."""

    __slots__ = ("envelope", "message", "queue")

    def __init__(self, envelope: bytes, queue: str, message: Any) -> None:
        self.envelope = envelope
        self.queue = queue
        self.message = message
        """kombu's message, for the inbox alone."""


@runtime_checkable
class AcksMany(Protocol):
    """What a channel adds when it can acknowledge several messages in one word."""

    def ack_many(self, tags: Sequence[Any]) -> None:
        """Acknowledge these; such as were settled before change nothing."""


class Inbox:
    """The receiving end of several queues of one bus, for one thread.

    At least once: after a lost connection everything unacknowledged is delivered again. Acknowledging a delivery
    twice, or one from before a reconnect, changes nothing. Messages that aren't envelopes never reach the
    caller: they are rejected, into the dead letters where the bus has them, and logged. With a `claim_check`, what
    waits in the object store is fetched; without one a ticket is no envelope.
    """

    def __init__(
        self,
        bus_url: str,
        queues: Sequence[str],
        prefetch: int,
        transport_options: Mapping[str, Any] | None = None,
        claim_check: ClaimCheck | None = None,
    ) -> None:
        self._bus_url = bus_url
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._transport_options = dict(transport_options or {})
        self._claim_check = claim_check
        self._connection: Connection | None = None
        self._consumer: Consumer | None = None
        self._arrived: deque[Delivery] = deque()
        self._late: list[Any] = []  # messages with tickets whose key isn't known yet
        self._closed = False
        self._failures = 0
        self._retry_at = 0.0

    def receive(self, limit: int, wait_seconds: float) -> list[Delivery]:
        """Up to `limit` deliveries: waits for the first, then adds what is there already.

        Empty when the wait is over, also when the bus couldn't be reached for its length. A bus that goes on refusing,
        such as for a queue that was declared in another way, is asked ever more seldom.
        """
        deadline = time.monotonic() + wait_seconds
        while not self._closed:
            if (pause := self._retry_at - time.monotonic()) > 0:
                left = deadline - time.monotonic()
                time.sleep(max(0.0, min(left, pause)))
                if left <= pause:
                    break
            try:
                self._connect()
                self._try_late()
                self._drain(limit, deadline)
                break
            except Exception as error:
                if not self._is_bus_error(error):
                    raise
                self._disconnect()
                seconds = min(RECONNECT_SECONDS * 2**self._failures, RECONNECT_SECONDS_MAX)
                self._failures, self._retry_at = self._failures + 1, time.monotonic() + seconds
                log.warning(
                    "inbox_disconnected",
                    queues=self._queues,
                    error=named(error),
                    reason=_reason(error),
                    retry_seconds=seconds,
                )
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Remove them from the bus. One that can't be, since its connection is gone, is delivered again."""
        channel = None if self._consumer is None else self._consumer.channel
        ours = [delivery.message for delivery in deliveries if delivery.message.channel is channel]
        refused = len(deliveries) - len(ours)
        try:
            if isinstance(channel, AcksMany):
                channel.ack_many([message.delivery_tag for message in ours])
            else:
                refused += sum(not _acknowledged(message) for message in ours)
        except Exception as error:
            if not self._is_bus_error(error):
                raise
            refused += len(ours)  # the connection is gone, and the bus takes them back
        if refused:
            log.info("acknowledgements_refused", count=refused, of=len(deliveries))

    def reject(self, deliveries: Sequence[Delivery]) -> None:
        """Move them aside, into the dead letters where the bus has them: nobody can ever do anything with them."""
        channel = None if self._consumer is None else self._consumer.channel
        for delivery in deliveries:
            if delivery.message.channel is channel:  # one from before a reconnect comes again, and is rejected then
                with suppress(Exception):  # settled before, or the connection is gone: likewise
                    delivery.message.reject(requeue=False)

    def close(self) -> None:
        """Disconnect; the unacknowledged go back to their queues."""
        self._closed = True
        self._disconnect()

    def _connect(self) -> None:
        if self._consumer is not None:
            return
        connection = self._connection = open_connection(self._bus_url, self._transport_options)
        connection.ensure_connection(max_retries=1, interval_start=0)
        channel = connection.channel()
        consumer = Consumer(
            channel,
            queues=[lane_queue(self._bus_url, queue, self._transport_options) for queue in self._queues],
            accept=[CONTENT_TYPE],
            on_message=self._on_message,
        )
        consumer.qos(prefetch_count=self._prefetch, apply_global=False)
        consumer.consume()
        self._consumer = consumer
        self._failures = 0

    def _drain(self, limit: int, deadline: float) -> None:
        connection = self._connection
        # One that failed at an acknowledgement would be waited on for ever: py-amqp reads nothing, and says nothing.
        if connection is None or not connection.connected:
            raise BusUnavailable("the inbox is not connected")
        with suppress(TimeoutError, BlockingIOError):
            while not self._arrived:
                left = deadline - time.monotonic()
                connection.drain_events(timeout=max(left, 0))
                if left <= 0:
                    break
            while len(self._arrived) < limit:
                connection.drain_events(timeout=0)

    def _try_late(self) -> None:
        late, self._late = self._late, []
        for message in late:
            self._on_message(message)

    def _on_message(self, message: Any) -> None:
        queue = message.delivery_info.get("routing_key", "")
        since = time.monotonic()
        try:
            # kombu lets a few content types through whatever `accept` says, so the type is checked here as well.
            if message.content_type != CONTENT_TYPE:
                raise TypeError("unknown content type")
            envelope = unwrap(message.decode())
            if self._claim_check is not None:
                envelope = self._claim_check.redeem(envelope)
        except UnknownKeyError as error:
            if self._claim_check is not None and self._claim_check.late_keys.may_come(message, error.key_id, since):
                self._late.append(message)
                return
            log.warning("message_refused", queue=queue, content_type=message.content_type, error=str(error))
            message.reject(requeue=False)
            return
        except BusUnavailable as error:  # the store is away, and the body is not
            log.warning("payload_not_fetched", queue=queue, reason=str(error))
            message.reject(requeue=True)
            return
        except Exception as error:  # noqa: BLE001  # whatever a foreign message does, the good ones must go on
            log.warning("message_refused", queue=queue, content_type=message.content_type, error=named(error))
            message.reject(requeue=False)
            return
        self._arrived.append(Delivery(envelope, queue, message))

    def _is_bus_error(self, error: Exception) -> bool:
        if isinstance(error, BusUnavailable | OperationalError | OSError):
            return True
        connection = self._connection
        return connection is not None and isinstance(error, connection.connection_errors + connection.channel_errors)

    def _disconnect(self) -> None:
        connection, self._connection, self._consumer = self._connection, None, None
        self._arrived.clear()  # not handed out, so still the bus's
        self._late.clear()
        if connection is not None:
            with suppress(Exception):  # broken or no longer wanted; the bus takes the unacknowledged back by itself
                connection.release()


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _acknowledged(message: Any) -> bool:
    try:
        message.ack()
    except Exception as error:  # noqa: BLE001  # settled before, or the connection is gone: either way nothing is lost
        log.debug("acknowledgement_refused", error=named(error))
        return False
    return True
