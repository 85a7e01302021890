"""Publishing with confirmation: a call returns when the bus has every message, or raises."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from kombu import Connection, Producer, Queue
from kombu.exceptions import BatchPublishError, OperationalError

from broker.bus.apps import TASK_NAME, producer_app
from broker.bus.claim_check import ClaimCheck, envelope_bytes_max
from broker.bus.driver import BusUnavailable, PublishError
from broker.bus.serializer import SERIALIZER
from broker.bus.topology import lane_queue, open_connection
from broker.domain.errors import named

__all__ = ["Publisher"]

log = structlog.get_logger()

BATCH_MESSAGES_MAX = 1_000
NO_REPR = "-"  # Celery would put a representation of the arguments, our payload, into the headers


class Publisher:
    """One connection for any number of threads, which take turns.

    Both methods return only when the bus has confirmed every envelope. Otherwise PublishError names by index
    those that it has not confirmed, or BusUnavailable says that what became of the call is unknown, so that all
    of it must be sent again; receivers recognise what comes twice. The next call after a failure reconnects.

    With a `claim_check`, an envelope that is too large for the bus, or larger than `direct_bytes_max`, waits in the
    object store, and a ticket is sent.
    """

    def __init__(
        self,
        bus_url: str,
        transport_options: Mapping[str, Any] | None = None,
        claim_check: ClaimCheck | None = None,
        direct_bytes_max: int | None = None,
    ) -> None:
        self._bus_url = bus_url
        self._transport_options = dict(transport_options or {})
        self._claim_check = claim_check
        self._bytes_max = envelope_bytes_max(bus_url, transport_options)
        if direct_bytes_max is not None:
            self._bytes_max = min(self._bytes_max, direct_bytes_max)
        self._app = producer_app(bus_url, self._transport_options)
        self._turn = threading.Lock()
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._queues: dict[str, Queue] = {}
        self._closed = False

    def publish_shards(self, queue: str, envelopes: Sequence[bytes]) -> None:
        """Each envelope becomes one Celery task message for `workers.run_shard`, under a fresh task id."""
        self._publish(queue, envelopes, self._task_properties)

    def publish_events(self, queue: str, envelopes: Sequence[bytes]) -> None:
        """Each envelope becomes one plain message, for an `Inbox`."""
        self._publish(queue, envelopes, dict)

    def close(self) -> None:
        """Disconnect; later calls raise BusUnavailable."""
        with self._turn:
            self._closed = True
            self._disconnect()

    def _publish(self, queue: str, envelopes: Sequence[bytes], properties: Callable[[], dict[str, Any]]) -> None:
        if not envelopes:
            return
        envelopes = self._parked(envelopes)
        with self._turn:
            if self._closed:
                raise BusUnavailable("the publisher is closed")
            try:
                producer = self._connected()
                declared = self._queue(queue)
                producer.maybe_declare(declared)
                with producer.batch(max_size=max(BATCH_MESSAGES_MAX, len(envelopes))):
                    for envelope in envelopes:
                        producer.publish(
                            envelope,
                            exchange="",
                            routing_key=queue,
                            serializer=SERIALIZER,
                            delivery_mode=2,
                            retry=False,
                            **properties(),
                        )
            except PublishError as error:
                lost = [cause for cause in error.errors.values() if isinstance(cause, BusUnavailable)]
                if lost:
                    self._disconnect()
                if len(lost) == len(envelopes):
                    raise lost[0] from error
                log.warning("publish_refused", queue=queue, count=len(envelopes), refused=len(error.errors))
                raise
            except (TypeError, ValueError):
                raise  # the caller's mistake, found before anything was sent
            except Exception as error:
                known = self._is_bus_error(error)
                self._disconnect()
                if not known:
                    raise
                log.warning("publish_failed", queue=queue, count=len(envelopes), error=named(error))
                raise BusUnavailable(f"publishing to {queue!r} failed: {error!r}") from error

    def _parked(self, envelopes: Sequence[bytes]) -> Sequence[bytes]:
        """Tickets in place of those that the bus can't carry."""
        check = self._claim_check
        if check is None or max(map(len, envelopes)) <= self._bytes_max:
            return envelopes
        return [each if len(each) <= self._bytes_max else check.park(each) for each in envelopes]

    def _queue(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = lane_queue(self._bus_url, name, self._transport_options)
        return queue

    def _task_properties(self) -> dict[str, Any]:
        message = self._app.amqp.as_task_v2(
            str(uuid.uuid4()), TASK_NAME, argsrepr=NO_REPR, kwargsrepr=NO_REPR, ignore_result=True
        )
        return {"headers": message.headers, "correlation_id": message.properties["correlation_id"]}

    def _connected(self) -> Producer:
        if self._producer is None:
            self._connection = open_connection(self._bus_url, self._transport_options)
            self._connection.ensure_connection(max_retries=1, interval_start=0)
            self._producer = Producer(self._connection.channel())
        return self._producer

    def _is_bus_error(self, error: Exception) -> bool:
        if isinstance(error, BusUnavailable | OperationalError | BatchPublishError | OSError):
            return True
        connection = self._connection
        return connection is not None and isinstance(error, connection.connection_errors + connection.channel_errors)

    def _disconnect(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(Exception):  # it is broken or no longer wanted; there is nothing left to do about it
                connection.release()
