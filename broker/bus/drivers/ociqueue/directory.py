"""Which queue a name means: looked up in the compartment, remembered, made and deleted where that is allowed."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import structlog

from broker.bus.driver import BusUnavailable, QueueMissing
from broker.bus.drivers.ociqueue.address import Address
from broker.bus.drivers.ociqueue.sdk import Sdk, oci

__all__ = ["Directory", "QueueAddress"]

log = structlog.get_logger()

WORK_SECONDS_MAX = 180.0
WORK_POLL_SECONDS = (0.02, 2.0)  # at first, and at most: an emulator is done at once, the service takes a minute
GONE = {"DELETING", "DELETED", "FAILED"}


class QueueAddress(NamedTuple):
    """Where a queue is."""

    ocid: str
    endpoint: str


class Directory:
    """The queues of one compartment by display name. Names aren't unique there: the oldest counts, for everybody."""

    def __init__(self, sdk: Sdk, address: Address) -> None:
        self._sdk = sdk
        self._compartment = address.compartment
        self._options = address.options
        self._addresses: dict[str, QueueAddress] = {}

    def find(self, name: str) -> QueueAddress:
        """Raises QueueMissing with a sentence on how to make it, BusUnavailable while it isn't ready."""
        address = self._addresses.get(name)
        if address is None:
            found = self.named(name)
            if not found:
                raise QueueMissing(
                    f"queue {name!r} doesn't exist in compartment {self._compartment}; `broker bus apply` makes it, "
                    f"and so does `oci queue queue-admin queue create --compartment-id {self._compartment} "
                    f"--display-name {name}`"
                )
            if len(found) > 1:
                log.warning("queue_name_ambiguous", queue=name, count=len(found), used=found[0].id)
            oldest = found[0]
            if oldest.lifecycle_state not in {"ACTIVE", "UPDATING"}:
                raise BusUnavailable(f"queue {name!r} is {oldest.lifecycle_state}; it must be ACTIVE")
            address = self._addresses[name] = QueueAddress(oldest.id, oldest.messages_endpoint)
        return address

    def named(self, name: str) -> list[Any]:
        """The SDK's summaries of all that have the name and aren't going, oldest first."""
        found: list[Any] = []
        page: str | None = None
        while True:
            listed = self._sdk.call(name, partial(self._page, name, page))
            found += [each for each in listed.data.items if each.lifecycle_state not in GONE]
            page = listed.next_page
            if not page:
                break
        return sorted(found, key=lambda each: (each.time_created, each.id))

    def _page(self, name: str, page: str | None) -> Any:
        # Not by the SDK's own pagination, which would try for a minute and a half where nothing answers.
        return self._sdk.admin.list_queues(compartment_id=self._compartment, display_name=name, page=page)

    def describe(self, name: str, ocid: str) -> Any:
        """The SDK's full description."""
        return self._sdk.call(name, lambda: self._sdk.admin.get_queue(ocid).data)

    def forget(self, name: str) -> None:
        """Look the name up anew next time: its queue or its endpoint has changed."""
        self._addresses.pop(name, None)

    def create(self, name: str) -> None:
        """Return when it is ready; two that make it at once make two, of which both then use the older."""
        details = oci.queue.models.CreateQueueDetails(
            display_name=name,
            compartment_id=self._compartment,
            retention_in_seconds=self._options.retention_seconds,
            visibility_in_seconds=self._options.lease_seconds,
            dead_letter_queue_delivery_count=0,
        )
        self._work(name, self._sdk.call(name, lambda: self._sdk.admin.create_queue(details)))

    def purge(self, name: str) -> None:
        """Drop what waits, and what is leased with it."""
        details = oci.queue.models.PurgeQueueDetails(purge_type="NORMAL")
        ocid = self.find(name).ocid
        self._work(name, self._sdk.call(name, lambda: self._sdk.admin.purge_queue(ocid, details)))

    def delete(self, name: str) -> None:
        """Harmless where there is none; the service takes its time after that."""
        self.forget(name)
        for found in self.named(name):
            self._sdk.call(name, partial(self._sdk.admin.delete_queue, found.id))

    def _work(self, name: str, response: Any) -> None:
        """Wait for the work request that the answer names."""
        request_id = response.headers.get("opc-work-request-id")
        deadline = time.monotonic() + WORK_SECONDS_MAX
        pause, pause_max = WORK_POLL_SECONDS
        while True:
            status = self._sdk.call(name, lambda: self._sdk.admin.get_work_request(request_id).data.status)
            if status == "SUCCEEDED":
                return
            if status in {"FAILED", "CANCELED"} or time.monotonic() > deadline:
                raise BusUnavailable(f"work on queue {name!r} is {status}; its work request is {request_id}")
            time.sleep(pause)
            pause = min(pause * 2, pause_max)
