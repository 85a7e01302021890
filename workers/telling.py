"""What a worker tells of an attempt, however it ended."""

from __future__ import annotations

import math
from enum import Enum
from hashlib import blake2b
from typing import assert_never

from broker.domain.errors import ErrorCode
from broker.domain.events import JobRan
from broker.domain.outcome import Outcome
from broker.domain.shard import ShardJob
from broker.domain.usage import Usage
from workers.engine import EngineError, EngineReply
from workers.spending import Spent

__all__ = ["Stop", "job_ran"]

_DIGEST_BYTES = 32
_CANCELLED_AMID = "This request was cancelled while it ran; the call may have been billed."


class Stop(Enum):
    """Why a shard's jobs are stopped before their end; the outcome and the code that each then has."""

    PREEMPTED = (Outcome.PREEMPTED, ErrorCode.PREEMPTED)
    INTERRUPTED = (Outcome.PREEMPTED, ErrorCode.INTERRUPTED)
    CANCELLED = (Outcome.CANCELLED, ErrorCode.BATCH_CANCELLED)
    JOB_CANCELLED = (Outcome.CANCELLED, ErrorCode.JOB_CANCELLED)
    LEASE_LOST = (Outcome.PREEMPTED, ErrorCode.INTERRUPTED, "lease lost")


def job_ran(
    index: int,
    job: ShardJob,
    ended: EngineReply | EngineError | Stop,
    spent: Spent,
    times: tuple[int, int, int],
    accelerator_us: int,
    *,
    sent: bool,
) -> JobRan:
    """The attempt, as it is told, with its start, its end and how long it ran. `sent`: the engine may have had it."""
    digest, known = _digest(job, job.body), spent.usage
    usage = Usage(
        known.input_tokens, known.cached_input_tokens, known.output_tokens, known.reasoning_tokens, accelerator_us
    )
    if isinstance(ended, EngineReply):
        body = ended.body
        return JobRan(
            index,
            Outcome.SUCCEEDED,
            ended.status_code,
            *times,
            usage,
            body,
            None,
            "",
            ended.request_id,
            digest,
            _digest(job, body),
            spent.basis,
            spent.upper,
        )
    retry_after_s = 0
    match ended:
        case EngineError():
            outcome, code, status, body = Outcome.FAILED, ended.code, ended.status_code, ended.body
            message, retry_after_s = ended.message, math.ceil(ended.retry_after_s)
        case Stop():
            outcome, code, *_ = ended.value
            status, body = 0, b""
            # Without a word of ours the error file says that it was not executed.
            message = _CANCELLED_AMID if sent and outcome is Outcome.CANCELLED else ""
        case _:
            assert_never(ended)
    return JobRan(
        index,
        outcome,
        status,
        *times,
        usage,
        body,
        code,
        message,
        request_digest=digest,
        usage_basis=spent.basis,
        usage_upper=spent.upper,
        retry_after_s=retry_after_s,
    )


def _digest(job: ShardJob, data: bytes) -> bytes:
    return blake2b(data, key=job.salt, digest_size=_DIGEST_BYTES).digest()
