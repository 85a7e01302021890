"""Jobs that come over the bus, and what their producers are told there."""

from __future__ import annotations

import re

import msgspec

__all__ = [
    "JOBS_PER_MESSAGE_MAX",
    "JOBS_QUEUE",
    "MESSAGE_BYTES_MAX",
    "REFUSED",
    "REPLY_QUEUES",
    "JobReply",
    "SubmitJobs",
    "derived_key",
    "is_tenant_name",
]

JOBS_QUEUE = "jobs"
"""Where producers publish."""

JOBS_PER_MESSAGE_MAX = 1_000

MESSAGE_BYTES_MAX = 16_000_000
"""Of a signed message of jobs; a bus may carry less."""

REPLY_QUEUES = "replies."
"""What the name of a queue for replies begins with, so that no producer can have the broker write anywhere else."""

REFUSED = "refused"
"""The status in a reply to what became no job; all other statuses are a job's outcome."""


class SubmitJobs(msgspec.Struct, frozen=True, array_like=True, tag="submit_jobs"):
    """Take these jobs in. `jobs` is the JSON list that `POST /broker/v1/jobs` takes; `nonce` tells two alike apart.

    `reply_to` names the queue for what becomes of them; empty where nobody asks.
    """

    nonce: bytes
    jobs: bytes
    reply_to: str = ""


class JobReply(msgspec.Struct, frozen=True, array_like=True, tag="job_reply"):
    """What became of one job, told at least once: tell two apart by `job_id`, or where it was refused by `key`.

    `key` is the job's idempotency key, the producer's own or the one that `derived_key` gives it. `body` is the
    engine's reply; empty although `body_bytes` isn't where it was too large for a message: HTTP alone brings it then,
    and the door's one token is the local tenant's.
    """

    key: str
    job_id: bytes | None
    status: str
    error_code: str | None = None
    message: str = ""
    status_code: int = 0
    body_bytes: int = 0
    body: bytes = b""


def derived_key(envelope_digest: bytes, place: int) -> str:
    """The idempotency key of a job that has none of its own: by its envelope's SHA-256 and its place in the list."""
    return f"bus:{envelope_digest.hex()[:32]}:{place}"


def is_tenant_name(text: str) -> bool:
    """Whether a tenant may be called so: it names files, and stands in messages and logs."""
    return re.fullmatch("[a-z0-9][a-z0-9_-]{0,63}", text) is not None
