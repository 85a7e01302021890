"""The driver: messages as text, leases as visibility timeouts, batches of at most 20."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from broker.bus.driver import BusUnavailable, MessageRefused, MessageTooLarge, PublishError, QueueMissing, Received
from broker.bus.drivers.ociqueue.address import Address, dead_letters_of
from broker.bus.drivers.ociqueue.content import as_bytes, as_text
from broker.bus.drivers.ociqueue.directory import Directory, QueueAddress
from broker.bus.drivers.ociqueue.sdk import Invalid, Sdk, Throttled, oci
from broker.bus.held_leases import HeldLeases

__all__ = ["LeaseLost", "OciQueueDriver"]

BATCH = 20
REQUEST_BYTES = 500_000  # of 512 KiB; the rest is for JSON
ENTRY_BYTES = 64  # what JSON adds to a message
POLL_SECONDS = 1  # how long one receive of ours may keep the service; a wake is heard after it
SHORT_POLL_SECONDS = 0.1
ENTRY_TRIES = 3
ENTRY_SECONDS = 0.1
REASON_CHARACTERS = 500

TRY_AGAIN = {408, 429}

Act: TypeAlias = Callable[[Any, QueueAddress, list[Hashable]], Any]


class LeaseLost(Exception):
    """The lease ended, or the message was settled before."""


class OciQueueDriver:
    """The queues of one compartment; keeps every promise of `LaneDriver`.

    The service is asked by stateless requests, so calls may overlap, and what a process held when it died comes back
    when its leases end. Delays and leases are whole seconds there and are rounded up.
    """

    max_receive = BATCH
    max_publish = 1_000
    native_dead_letter = False
    settles_locally = False

    def __init__(self, address: Address) -> None:
        self.lease_seconds = float(address.options.lease_seconds)
        self.max_message_bytes = address.options.max_message_bytes
        self._options = address.options
        self._sdk = Sdk(address)
        self._directory = Directory(self._sdk, address)
        self._held = HeldLeases()  # by their receipts
        self._wakes = 0
        self._closed = False

    # Queues.

    def ensure(self, queue: str) -> None:
        for name in filter(None, (dead_letters_of(queue, self._options), queue)):
            try:
                self._directory.find(name)
            except QueueMissing:
                if not self._options.create:
                    raise
                self._directory.create(name)
                self._directory.find(name)

    def size(self, queue: str) -> int | None:
        stats = self._ask(queue, lambda client, address: client.get_stats(address.ocid))
        return int(stats.queue.visible_messages)

    def purge(self, queue: str) -> int:
        count = self.size(queue) or 0
        self._directory.purge(queue)
        return count

    def delete(self, queue: str) -> None:
        self._directory.delete(queue)

    # Publishing.

    def publish(self, queue: str, items: Sequence[bytes]) -> None:
        entries = [oci.queue.models.PutMessagesDetailsEntry(content=as_text(data)) for data in items]
        errors: dict[int, Exception] = {}
        lost: BusUnavailable | None = None
        for indices in _batches([len(entry.content) for entry in entries]):
            if lost is None:
                try:
                    errors.update(self._put(queue, {index: entries[index] for index in indices}))
                    continue
                except BusUnavailable as error:
                    lost = error
            errors.update(dict.fromkeys(indices, lost))
        if lost is not None and len(errors) == len(items):
            raise lost
        if errors:
            raise PublishError(errors)

    def _put(self, queue: str, entries: dict[int, Any]) -> dict[int, Exception]:
        """One request, which the service takes or refuses as a whole; then each message is tried by itself."""
        details = oci.queue.models.PutMessagesDetails(messages=list(entries.values()))
        try:
            self._ask(queue, lambda client, address: client.put_messages(address.ocid, details))
        except (MessageTooLarge, Invalid) as error:
            if len(entries) == 1:
                # What is wrong with it stays wrong, but for the queue's own settings, which a person may mend.
                refused = error if isinstance(error, MessageTooLarge) else MessageRefused(str(error))
                return dict.fromkeys(entries, refused)
            errors: dict[int, Exception] = {}
            for index, entry in entries.items():
                errors.update(self._put(queue, {index: entry}))
            return errors
        except Throttled as error:
            return dict.fromkeys(entries, MessageRefused(str(error)))
        except MessageRefused as error:
            return dict.fromkeys(entries, error)
        return {}

    # Receiving.

    def receive(self, queue: str, count: int, wait_seconds: float) -> list[Received]:
        deadline = time.monotonic() + wait_seconds
        wakes = self._wakes
        while True:
            left = deadline - time.monotonic()
            received = self._receive_some(queue, min(count, BATCH), POLL_SECONDS if left >= POLL_SECONDS else 0)
            left = deadline - time.monotonic()
            if received or left <= 0 or self._wakes != wakes or self._closed:
                return received
            if left < POLL_SECONDS:
                time.sleep(min(left, SHORT_POLL_SECONDS))

    def _receive_some(self, queue: str, count: int, wait_seconds: int) -> list[Received]:
        def get(client: Any, address: QueueAddress) -> Any:
            return client.get_messages(
                address.ocid,
                limit=count,
                timeout_in_seconds=wait_seconds,
                visibility_in_seconds=self._options.lease_seconds,
            )

        messages = self._ask(queue, get).messages or []
        self._held.add(queue, [message.receipt for message in messages], self.lease_seconds)
        return [
            Received(queue, message.receipt, as_bytes(message.content or ""), message.delivery_count or 1)
            for message in messages
        ]

    # Settling.

    def ack(self, queue: str, handles: Sequence[Hashable]) -> dict[Hashable, Exception]:
        models = oci.queue.models

        def delete(client: Any, address: QueueAddress, receipts: list[Hashable]) -> Any:
            entries = [models.DeleteMessagesDetailsEntry(receipt=receipt) for receipt in receipts]
            return client.delete_messages(address.ocid, models.DeleteMessagesDetails(entries=entries))

        lost = self._each(queue, handles, delete)
        self._held.let_go(queue, handles)
        return lost

    def release(self, queue: str, handles: Sequence[Hashable], delay_seconds: float) -> None:
        self._hide(queue, handles, delay_seconds)
        self._held.let_go(queue, handles)

    def extend(self, queue: str, handles: Sequence[Hashable], seconds: float) -> dict[Hashable, Exception]:
        lost = self._hide(queue, handles, seconds)
        self._held.extend(queue, handles, seconds)
        return lost

    def dead_letter(self, queue: str, received: Sequence[Received], reason: str) -> None:
        """Copy first, then delete: who dies in between leaves a message twice, never none."""
        models = oci.queue.models
        target = dead_letters_of(queue, self._options)
        if target is not None:
            entries = []
            for message in received:
                said = {"queue": queue, "reason": reason[:REASON_CHARACTERS], "attempts": str(message.attempts)}
                metadata = models.MessageMetadata(custom_properties=said)
                entries.append(models.PutMessagesDetailsEntry(content=as_text(message.data), metadata=metadata))
            for indices in _batches([len(entry.content) + REASON_CHARACTERS for entry in entries]):
                refused = self._put(target, {index: entries[index] for index in indices})
                if refused:
                    raise next(iter(refused.values()))
        self.ack(queue, [message.handle for message in received])

    def _hide(self, queue: str, handles: Sequence[Hashable], seconds: float) -> dict[Hashable, Exception]:
        """Let the messages be visible so many seconds from now."""
        models = oci.queue.models
        visibility = math.ceil(seconds)

        def update(client: Any, address: QueueAddress, receipts: list[Hashable]) -> Any:
            entries = [
                models.UpdateMessagesDetailsEntry(receipt=receipt, visibility_in_seconds=visibility)
                for receipt in receipts
            ]
            return client.update_messages(address.ocid, models.UpdateMessagesDetails(entries=entries))

        return self._each(queue, handles, update)

    def _each(self, queue: str, handles: Sequence[Hashable], act: Act) -> dict[Hashable, Exception]:
        """Those that were lost. What the service itself failed at is tried again. Raises BusUnavailable."""
        lost: dict[Hashable, Exception] = {}
        for start in range(0, len(handles), BATCH):
            left = list(handles[start : start + BATCH])
            for attempt in range(ENTRY_TRIES):
                if attempt:
                    time.sleep(ENTRY_SECONDS * 2**attempt)
                left = self._try_each(queue, left, act, lost)
                if not left:
                    break
            else:
                raise BusUnavailable(f"OCI Queue failed at {len(left)} of {len(handles)} messages of queue {queue!r}")
        return lost

    def _try_each(
        self, queue: str, handles: list[Hashable], act: Act, lost: dict[Hashable, Exception]
    ) -> list[Hashable]:
        """Add to `lost` those that were; what comes back is to be tried again."""
        try:
            answers = self._ask(queue, lambda client, address: act(client, address, handles)).entries
        except QueueMissing as error:
            lost.update(dict.fromkeys(handles, error))
            return []
        again = []
        for handle, answer in zip(handles, answers, strict=True):
            code = answer.error_code or 0
            if code in TRY_AGAIN or code >= 500:
                again.append(handle)
            elif code:
                lost[handle] = LeaseLost(f"{code}: {answer.error_message}")
        return again

    # The end.

    def wake(self) -> None:
        self._wakes += 1

    def close(self) -> None:
        for queue, handles in self._held.take_all().items():
            with suppress(BusUnavailable):  # their leases end by themselves
                self._hide(queue, handles, 0)
        self._closed = True
        self._sdk.close()

    def _ask(self, queue: str, ask: Callable[[Any, QueueAddress], Any]) -> Any:
        """One request to the queue's own endpoint; what the answer holds."""
        if self._closed:
            raise BusUnavailable("this connection to OCI Queue is closed")
        address = self._directory.find(queue)
        try:
            return self._sdk.call(queue, lambda: ask(self._sdk.messages(address.endpoint), address).data)
        except QueueMissing:
            self._directory.forget(queue)
            raise


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Indices of what goes into one request each."""
    batch: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        if batch and (len(batch) == BATCH or total + size + ENTRY_BYTES > REQUEST_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += size + ENTRY_BYTES
    if batch:
        yield batch
