"""The driver: unary pulls that can be called off, and leases, acknowledgements and publishing in batches."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import grpc
import structlog
from google.pubsub_v1.types import PubsubMessage, PullRequest, ReceivedMessage

from broker.bus.driver import BusUnavailable, MessageRefused, PublishError, QueueMissing, Received
from broker.bus.drivers.pubsub.queues import Queues, dead_letters_of
from broker.bus.drivers.pubsub.sdk import PubSubOptions, batches, from_rpc_error, open_clients, patience, translated
from broker.bus.held_leases import HeldLeases

__all__ = ["PubSubDriver"]

log = structlog.get_logger()

PUBLISH_BYTES_MAX = 9_500_000  # of one request; Google's limit is 10 MB, and the messages aren't all of it
MESSAGE_OVERHEAD_BYTES = 64
IDS_MAX = 1_000
IDS_BYTES_MAX = 500_000  # of one request; Google's limit is 512 KiB
GRACE_SECONDS = 0.3
EARLY_SECONDS = 1.0  # Google answers an empty pull about so long before the caller's deadline


class LeaseLost(Exception):
    """The lease ended before it was renewed."""


class PubSubDriver:
    """One channel to Pub/Sub; keeps every promise of `LaneDriver`.

    Pub/Sub says nothing of leases that were lost: `extend` names those that ended by this process's clock, and an
    acknowledgement that comes too late is taken without a word. Messages can't be counted.
    """

    max_receive = 1_000
    max_publish = 1_000
    native_dead_letter = False
    settles_locally = False

    def __init__(self, project: str, options: PubSubOptions) -> None:
        self.lease_seconds = float(options.lease_seconds)
        self.max_message_bytes = options.max_message_bytes
        self._options = options
        self._clients = open_clients(options)
        # The transport's own call, for the client's can't be called off.
        self._call_pull: Any = self._clients.subscriber.transport.pull
        self._queues = Queues(project, self._clients, options)
        self._patience = patience(options)
        self._lock = threading.Lock()
        self._held = HeldLeases()  # by their ack ids
        self._pulls: set[threading.Event] = set()  # one for each pull in flight: set when it ends or is called off
        self._known: set[str] = set()
        self._short: set[str] = set()  # queues whose subscription grants less than our lease
        self._closed = False

    # Queues.

    def ensure(self, queue: str) -> None:
        if queue in self._known:
            return
        with translated(queue):
            if self._options.create:
                self._queues.make(queue)
            deadline_seconds = self._queues.check(queue)
        if deadline_seconds is not None and deadline_seconds < self.lease_seconds:
            log.warning("ack_deadline_too_short", queue=queue, seconds=deadline_seconds, wanted=self.lease_seconds)
            self._short.add(queue)
        self._known.add(queue)

    def size(self, queue: str) -> int | None:
        with translated(queue):
            self._queues.check(queue)
        return None

    def purge(self, queue: str) -> int:
        with translated(queue):
            now = dt.datetime.now(dt.UTC)
            request = {"subscription": self._queues.subscription(queue), "time": now}
            self._clients.subscriber.seek(request=request, **self._patience)
        return 0

    def delete(self, queue: str) -> None:
        self._known.discard(queue)
        with translated(queue):
            self._queues.delete(queue)

    # Publishing.

    def publish(self, queue: str, items: Sequence[bytes]) -> None:
        self._publish(queue, queue, [PubsubMessage(data=data) for data in items])

    def _publish(self, queue: str, topic: str, messages: Sequence[PubsubMessage]) -> None:
        """Send in as few requests as Google takes, one after another; after one without an answer, none is sent."""
        sizes = [len(message.data) + MESSAGE_OVERHEAD_BYTES for message in messages]
        errors: dict[int, Exception] = {}
        lost: BusUnavailable | None = None
        for indices in batches(sizes, self.max_publish, PUBLISH_BYTES_MAX):
            if lost is None:
                try:
                    with translated(queue):
                        self._clients.publisher.publish(
                            topic=self._queues.topic(topic),
                            messages=[messages[index] for index in indices],
                            **self._patience,
                        )
                    continue
                except ValueError as error:
                    errors.update(dict.fromkeys(indices, MessageRefused(str(error))))
                    continue
                except BusUnavailable as error:
                    lost = error
            errors.update(dict.fromkeys(indices, lost))
        if lost is not None:
            self._known.discard(queue)
            if len(errors) == len(messages):
                raise lost
        if errors:
            raise PublishError(errors)

    # Receiving.

    def receive(self, queue: str, count: int, wait_seconds: float) -> list[Received]:
        try:
            with translated(queue):
                messages = self._pull(queue, count, wait_seconds)
        except QueueMissing:
            self._known.discard(queue)
            raise
        self._held.add(queue, [message.ack_id for message in messages], self.lease_seconds)
        if messages and queue in self._short:
            try:
                self.extend(queue, [message.ack_id for message in messages], self.lease_seconds)
            except BusUnavailable as error:
                log.warning("lease_not_extended", queue=queue, count=len(messages), error=str(error))
        return [
            Received(queue, message.ack_id, message.message.data, message.delivery_attempt or 1) for message in messages
        ]

    def _pull(self, queue: str, count: int, wait_seconds: float) -> Sequence[ReceivedMessage]:
        subscription = self._queues.subscription(queue)
        over = threading.Event()
        with self._lock:
            if self._closed:
                raise BusUnavailable("this connection to Pub/Sub is closed")
            self._pulls.add(over)
        try:
            pull = self._call_pull.future(
                PullRequest(subscription=subscription, max_messages=count),
                timeout=wait_seconds + EARLY_SECONDS,
                metadata=[("x-goog-request-params", f"subscription={quote(subscription, safe='')}")],
            )
            pull.add_done_callback(lambda _: over.set())
            over.wait()
            return self._answer(pull)
        finally:
            with self._lock:
                self._pulls.discard(over)

    def _answer(self, pull: Any) -> Sequence[ReceivedMessage]:
        """What the pull brings. One that was called off gets a moment, for what it may be bringing would be leased."""
        try:
            return list(pull.result(timeout=GRACE_SECONDS).received_messages)
        except grpc.FutureTimeoutError:
            pull.cancel()
            return []
        except grpc.FutureCancelledError:
            return []
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return []
            raise from_rpc_error(error) from error

    # Settling.

    def ack(self, queue: str, handles: Sequence[Hashable]) -> dict[Hashable, Exception]:
        subscription = self._queues.subscription(queue)
        lost: dict[Hashable, Exception] = {}
        for ids in self._id_batches(handles):
            try:
                with translated(queue):
                    self._clients.subscriber.acknowledge(subscription=subscription, ack_ids=ids, **self._patience)
            except QueueMissing as error:
                lost.update(dict.fromkeys(ids, error))
            self._held.let_go(queue, ids)
        return lost

    def release(self, queue: str, handles: Sequence[Hashable], delay_seconds: float) -> None:
        self._set_deadline(queue, handles, delay_seconds)
        self._held.let_go(queue, handles)

    def extend(self, queue: str, handles: Sequence[Hashable], seconds: float) -> dict[Hashable, Exception]:
        lost: dict[Hashable, Exception] = {
            handle: LeaseLost(f"its lease ended {ago:.1f} s ago")
            for handle, ago in self._held.ended(queue, handles).items()
        }
        lost.update(self._set_deadline(queue, handles, seconds))
        self._held.extend(queue, handles, seconds)
        return lost

    def dead_letter(self, queue: str, received: Sequence[Received], reason: str) -> None:
        """First published beside, then acknowledged: a crash in between leaves two copies, never none."""
        letters = [
            PubsubMessage(data=message.data, attributes=_why(message, reason))  # Google takes no message without any
            for message in received
        ]
        self._publish(queue, dead_letters_of(queue), letters)
        self.ack(queue, [message.handle for message in received])

    def _set_deadline(self, queue: str, handles: Sequence[Hashable], seconds: float) -> dict[Hashable, Exception]:
        subscription = self._queues.subscription(queue)
        lost: dict[Hashable, Exception] = {}
        for ids in self._id_batches(handles):
            try:
                with translated(queue):
                    self._clients.subscriber.modify_ack_deadline(
                        subscription=subscription,
                        ack_ids=ids,
                        ack_deadline_seconds=round(seconds),
                        **self._patience,
                    )
            except QueueMissing as error:
                lost.update(dict.fromkeys(ids, error))
        return lost

    def _id_batches(self, handles: Sequence[Hashable]) -> list[list[str]]:
        ids = [str(handle) for handle in handles]
        return [[ids[at] for at in batch] for batch in batches([len(each) for each in ids], IDS_MAX, IDS_BYTES_MAX)]

    # The end.

    def wake(self) -> None:
        with self._lock:
            for over in self._pulls:
                over.set()

    def close(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        self.wake()
        for queue, handles in self._held.take_all().items():
            try:
                self._set_deadline(queue, handles, 0)
            except (BusUnavailable, ValueError) as error:
                log.warning("leases_left_to_their_end", queue=queue, count=len(handles), error=str(error))
        self._clients.channel.close()


def _why(message: Received, reason: str) -> Mapping[str, str]:
    return {"reason": reason, "queue": message.queue, "attempts": str(message.attempts)}
