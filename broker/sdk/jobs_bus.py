"""A producer's side of the bus: jobs out, signed and confirmed; what became of them in.

`JobsPublisher(bus_url, Path("producer-mine.key")).publish([{"body": {...}}], reply_to="replies.mine")` gives the jobs'
keys, by which `Replies(bus_url, "replies.mine", Path("broker.pub"), tenant="mine")` brings their ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from broker.bus.claim_check import envelope_bytes_max
from broker.bus.driver import BusUnavailable, MessageTooLarge
from broker.bus.envelope import EnvelopeError, Kind, open_reply, seal
from broker.bus.inbox import Delivery, Inbox
from broker.bus.publisher import Publisher
from broker.clock import Clock, utc_now_us
from broker.domain.bus_jobs import (
    JOBS_PER_MESSAGE_MAX,
    JOBS_QUEUE,
    MESSAGE_BYTES_MAX,
    REPLY_QUEUES,
    JobReply,
    SubmitJobs,
    derived_key,
)
from broker.domain.identity import LOCAL
from broker.keys import read_signer, read_trusted
from broker.signing import KeyRing, Signer

__all__ = ["JobsPublisher", "Replies"]

_AGAIN_SECONDS = 0.5
_NONCE_BYTES = 16

_log = structlog.get_logger(__name__)


class JobsPublisher:
    """Publishes for one producer, with its signing key or the file that holds it; for any number of threads."""

    def __init__(
        self, bus_url: str, signer: Signer | Path, *, clock: Clock = utc_now_us, patience_seconds: float = 30
    ) -> None:
        self._publisher = Publisher(bus_url)
        self._bus = urlsplit(bus_url).scheme
        self._bytes_max = min(envelope_bytes_max(bus_url), MESSAGE_BYTES_MAX)
        self._signer = signer if isinstance(signer, Signer) else read_signer(signer)[0]
        self._clock = clock
        self._patience_seconds = patience_seconds

    def publish(
        self, jobs: Sequence[Mapping[str, Any]], *, reply_to: str = "", valid_seconds: int = 86_400
    ) -> list[str]:
        """The jobs' keys, in their order, once the bus has the message; jobs as `POST /broker/v1/jobs` takes them.

        While the bus can't be reached it tries again, with the same message, so that nothing runs twice. Raises
        BusUnavailable when patience is at its end: whether the bus has the message is then unknown, and only jobs with
        idempotency keys of their own may be published again without running twice. Before anything is sent it raises
        ValueError for jobs or a queue that no broker would take, and MessageTooLarge for more than the bus carries.
        """
        if not 0 < len(jobs) <= JOBS_PER_MESSAGE_MAX:
            raise ValueError(f"jobs has {len(jobs):,} jobs; one message has 1 to {JOBS_PER_MESSAGE_MAX:,}")
        if reply_to and not reply_to.startswith(REPLY_QUEUES):
            raise ValueError(f"reply_to is {reply_to!r}; it must begin with {REPLY_QUEUES}")
        body = SubmitJobs(os.urandom(_NONCE_BYTES), msgspec.json.encode(jobs), reply_to)
        sealed = seal(self._signer, Kind.JOBS, "broker", body, now_us=self._clock(), valid_us=valid_seconds * 1_000_000)
        if len(sealed) > self._bytes_max:
            raise MessageTooLarge(
                f"the message of {len(jobs):,} jobs has {len(sealed):,} bytes; on this bus, {self._bus}://, it may have"
                f" {self._bytes_max:,}: publish fewer jobs at once, or send what is too large over HTTP"
            )
        self._send(sealed)
        digest = sha256(sealed).digest()
        return [job.get("idempotency_key") or derived_key(digest, place) for place, job in enumerate(jobs)]

    def close(self) -> None:
        """Disconnect."""
        self._publisher.close()

    def _send(self, sealed: bytes) -> None:
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                self._publisher.publish_events(JOBS_QUEUE, [sealed])
            except BusUnavailable:
                if time.monotonic() + _AGAIN_SECONDS > deadline:
                    raise
                time.sleep(_AGAIN_SECONDS)
            else:
                return


class Replies:
    """What the broker tells a producer, in one queue of its own; for one thread.

    `trusted` has the broker's public keys, or is the file that `broker keys` wrote them to. Replies to another tenant,
    who named this queue, are moved aside.
    """

    def __init__(
        self,
        bus_url: str,
        queue: str,
        trusted: KeyRing | Path,
        *,
        tenant: str = LOCAL.tenant,
        clock: Clock = utc_now_us,
        prefetch: int = 100,
    ) -> None:
        self._inbox = Inbox(bus_url, [queue], prefetch)
        self._ring = trusted if isinstance(trusted, KeyRing) else read_trusted(trusted)
        self._tenant = tenant
        self._clock = clock
        self._limit = prefetch
        self._unacknowledged: list[Delivery] = []

    def receive(self, wait_seconds: float) -> list[JobReply]:
        """Replies, once there are any; some may come twice. What `receive` gave before counts as acknowledged."""
        self._inbox.acknowledge(self._unacknowledged)
        self._unacknowledged = []
        found = []
        for delivery in self._inbox.receive(self._limit, wait_seconds):
            try:
                opened = open_reply(self._ring, delivery.envelope, self._clock())
                if opened.audience != self._tenant:
                    raise EnvelopeError(f"it is for tenant {opened.audience[:64]!r}, and not for {self._tenant!r}")
            except EnvelopeError as error:
                _log.warning("reply_rejected", queue=delivery.queue, reason=str(error))
                self._inbox.reject([delivery])
            else:
                found.append(opened.body)
                self._unacknowledged.append(delivery)
        return found

    def close(self) -> None:
        """Acknowledge what `receive` gave, and disconnect."""
        self._inbox.acknowledge(self._unacknowledged)
        self._unacknowledged = []
        self._inbox.close()
