"""The queues of all compartments and the work requests that make, change and delete them. Pure: told the time."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from infra.emulators.ociqueue.limits import Limits
from infra.emulators.ociqueue.messages import Keeper, Message, Messages
from infra.emulators.ociqueue.refusals import incorrect_state, invalid, missing, over_limit

__all__ = ["DEAD_SUFFIX", "Description", "Queue", "QueueKeeper", "Queues", "WorkRequest", "plain_description"]

DEAD_SUFFIX = "-dlq"
"""What the id of a queue's dead letters ends with."""

ACTIVE, DELETED = "ACTIVE", "DELETED"


@dataclass(frozen=True)
class Description:
    """What a client may say of a queue, with the service's defaults; times in seconds."""

    display_name: str
    compartment_id: str
    retention_seconds: int = 86_400
    visibility_seconds: int = 30
    timeout_seconds: int = 30
    channel_consumption_limit: int = 100
    delivery_count: int = 0
    tags: Mapping[str, Any] = field(default_factory=dict)

    def checked(self, limits: Limits) -> Description:
        """Itself; raises Refusal when a field is out of its range."""
        ranges = {
            "retention_seconds": (limits.retention_seconds_min, limits.retention_seconds),
            "visibility_seconds": (1, limits.visibility_seconds),
            "timeout_seconds": (0, limits.timeout_seconds),
            "channel_consumption_limit": (1, 100),
            "delivery_count": (0, limits.delivery_count),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise invalid(f"{name} is {value!r}; it must be between {least} and {most}")
        for name in ("display_name", "compartment_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not 1 <= len(value) <= 255:
                raise invalid(f"{name} must have between 1 and 255 characters")
        return self


class Queue:
    """A queue with its messages and dead letters. Its state follows from the time and the work upon it."""

    def __init__(
        self, ocid: str, description: Description, created_ms: int, ready_ms: int, keeper: Keeper | None
    ) -> None:
        self.ocid = ocid
        self.dead = Messages(ocid + DEAD_SUFFIX, keeper)
        self.messages = Messages(ocid, keeper, self.dead)
        self.created_ms = self.updated_ms = created_ms
        self.ready_ms = ready_ms
        self.gone_ms: int | None = None
        self.version = 0
        self.change(description, created_ms)

    def change(self, description: Description, now_ms: int) -> None:
        self.description = description
        self.messages.deliveries_max = description.delivery_count
        self.updated_ms = now_ms
        self.version += 1

    def state(self, now_ms: int) -> str:
        if self.gone_ms is not None:
            return "DELETING" if now_ms < self.gone_ms else DELETED
        return "CREATING" if now_ms < self.ready_ms else ACTIVE


@dataclass(frozen=True)
class WorkRequest:
    ocid: str
    operation: str
    action: str
    queue: Queue
    accepted_ms: int
    finish_ms: int

    def is_done(self, now_ms: int) -> bool:
        return now_ms >= self.finish_ms


class QueueKeeper(Keeper, Protocol):
    """Who must outlive the process, queues included."""

    def described(self, queue: Queue) -> None: ...

    def deleted(self, ocid: str) -> None: ...


class Queues:
    """All queues there are. `work_ms` is how long making or deleting one takes; the real service needs a minute."""

    def __init__(self, limits: Limits, keeper: QueueKeeper | None, work_ms: int = 0) -> None:
        self.limits = limits
        self._keeper = keeper
        self._work_ms = work_ms
        self._queues: dict[str, Queue] = {}
        self._requests: dict[str, WorkRequest] = {}
        self._tokens: dict[str, WorkRequest] = {}
        self._number = 0

    # Administration.

    def create(self, now_ms: int, description: Description, retry_token: str | None = None) -> WorkRequest:
        """The same token makes one queue alone, as a client that lost the answer means it."""
        if retry_token is not None and retry_token in self._tokens:
            return self._tokens[retry_token]
        most = self.limits.queues
        if most is not None and len(self.listed(now_ms)) >= most:
            raise over_limit(f"the tenancy has {most} queues in this region, as many as it may")
        ocid = f"ocid1.queue.oc1.emulator.{secrets.token_hex(16)}"
        queue = Queue(ocid, description.checked(self.limits), now_ms, now_ms + self._work_ms, self._keeper)
        self._queues[ocid] = queue
        if self._keeper is not None:
            self._keeper.described(queue)
        request = self._request("CREATE_QUEUE", "CREATED", queue, now_ms)
        if retry_token is not None:
            self._tokens[retry_token] = request
        return request

    def update(self, now_ms: int, ocid: str, description: Description) -> WorkRequest:
        queue = self.active(now_ms, ocid)
        queue.change(description.checked(self.limits), now_ms)
        if self._keeper is not None:
            self._keeper.described(queue)
        return self._request("UPDATE_QUEUE", "UPDATED", queue, now_ms)

    def delete(self, now_ms: int, ocid: str) -> WorkRequest:
        queue = self.active(now_ms, ocid)
        queue.gone_ms = now_ms + self._work_ms
        for messages in (queue.messages, queue.dead):
            messages.purge(now_ms, None)
            for changed in messages.listeners:
                changed.set()
        if self._keeper is not None:
            self._keeper.deleted(ocid)
        return self._request("DELETE_QUEUE", "DELETED", queue, now_ms)

    def purge(self, now_ms: int, ocid: str, kind: str, channels: list[str] | None) -> WorkRequest:
        queue = self.active(now_ms, ocid)
        if channels is not None and not isinstance(channels, list):
            raise invalid("channelIds must be a list")
        if kind not in {"NORMAL", "DLQ", "BOTH"}:
            raise invalid(f"purgeType is {kind!r}; it must be NORMAL, DLQ or BOTH")
        if kind in {"NORMAL", "BOTH"}:
            queue.messages.purge(now_ms, channels)
        if kind in {"DLQ", "BOTH"}:
            queue.dead.purge(now_ms, channels)
        return self._request("PURGE_QUEUE", "UPDATED", queue, now_ms)

    def _request(self, operation: str, action: str, queue: Queue, now_ms: int) -> WorkRequest:
        ocid = f"ocid1.queueworkrequest.oc1.emulator.{secrets.token_hex(16)}"
        request = WorkRequest(ocid, operation, action, queue, now_ms, now_ms + self._work_ms)
        self._requests[ocid] = request
        return request

    # Looking.

    def listed(self, now_ms: int) -> list[Queue]:
        """Oldest first, without the deleted."""
        return [queue for queue in self._queues.values() if queue.state(now_ms) != DELETED]

    def find(self, ocid: str) -> Queue:
        """Also a deleted one. Raises Refusal."""
        queue = self._queues.get(ocid)
        if queue is None:
            raise missing(f"queue {ocid}")
        return queue

    def active(self, now_ms: int, ocid: str) -> Queue:
        """Raises Refusal when it isn't there or isn't ready."""
        queue = self.find(ocid)
        state = queue.state(now_ms)
        if state == DELETED:
            raise missing(f"queue {ocid}")
        if state != ACTIVE:
            raise incorrect_state(f"queue {ocid} is {state}")
        return queue

    def messages(self, now_ms: int, ocid: str) -> Messages:
        """Of a queue, or of its dead letters. Raises Refusal."""
        if ocid.endswith(DEAD_SUFFIX):
            return self.active(now_ms, ocid.removesuffix(DEAD_SUFFIX)).dead
        return self.active(now_ms, ocid).messages

    def name_of(self, ocid: str) -> str:
        """The display name, for faults; the id itself where there is none."""
        queue = self._queues.get(ocid.removesuffix(DEAD_SUFFIX))
        return ocid if queue is None else queue.description.display_name

    def request(self, ocid: str) -> WorkRequest:
        found = self._requests.get(ocid)
        if found is None:
            raise missing(f"work request {ocid}")
        return found

    def requests(self) -> list[WorkRequest]:
        return list(self._requests.values())

    # Messages.

    def put(self, now_ms: int, ocid: str, contents: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Message]:
        """All, each with its metadata, or none. Raises Refusal."""
        queue = self.active(now_ms, ocid)
        expires_ms = now_ms + queue.description.retention_seconds * 1000
        made = []
        for content, metadata in contents:
            self._number += 1
            made.append(Message(self._number, content, metadata, now_ms, expires_ms))
        size = queue.messages.counts(now_ms).size_bytes + sum(message.size_bytes for message in made)
        if size > self.limits.queue_bytes:
            raise over_limit(f"the queue is full: it holds {self.limits.queue_bytes} bytes")
        for message in made:
            queue.messages.put(message)
        return made

    # What was kept.

    def restore(self, ocid: str, plain: Mapping[str, Any], created_ms: int) -> Queue:
        known = {each.name for each in fields(Description)}
        description = Description(**{name: value for name, value in plain.items() if name in known})
        queue = self._queues[ocid] = Queue(ocid, description, created_ms, created_ms, self._keeper)
        return queue

    def restore_message(self, messages: Messages, message: Message) -> None:
        self._number = max(self._number, message.number)
        messages.restore(message)


def plain_description(queue: Queue) -> dict[str, Any]:
    return asdict(queue.description)
