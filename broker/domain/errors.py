"""Every way in which work can go wrong, as a closed list of codes; callers act on the code, never on the text."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["BrokerError", "ErrorCode", "UsageError", "named", "reason_of"]


class ErrorCode(StrEnum):
    """Ordered by where in a job's life the error arises. What follows from each is in `rules.retrying`."""

    # Refused at the door; nothing ran.
    INVALID_LINE = "invalid_line"  # not UTF-8, not JSON, or not of the batch format
    INVALID_CUSTOM_ID = "invalid_custom_id"  # missing, empty or over 512 characters
    DUPLICATE_CUSTOM_ID = "duplicate_custom_id"  # an earlier line of the file has it
    INVALID_URL = "invalid_url"  # not an endpoint that we serve, or not the batch's
    INVALID_BODY = "invalid_body"  # a field of the request body is missing or of the wrong kind
    UNKNOWN_MODEL = "unknown_model"  # no lane runs it
    STREAMING_UNSUPPORTED = "streaming_unsupported"  # `stream: true` has no meaning in a batch
    LINE_TOO_LARGE = "line_too_large"
    BODY_TOO_LARGE = "body_too_large"  # a single job's, likewise
    INVALID_FIELD = "invalid_field"  # of a single job, beside its body
    NO_LANE_ALLOWED = "no_lane_allowed"  # its constraints leave none
    DEADLINE_IMPOSSIBLE = "deadline_impossible"  # no lane that it may use can be done by then

    # Ended while waiting.
    BATCH_EXPIRED = "batch_expired"  # OpenAI's code: the window closed before the job ran
    BATCH_CANCELLED = "batch_cancelled"
    JOB_EXPIRED = "job_expired"  # a single job's window closed before it ran
    JOB_CANCELLED = "job_cancelled"  # this one job, waiting or running, on request
    BUDGET_EXCEEDED = "budget_exceeded"

    # From the engine. What each answer is, and what it says of server and job, is in `rules.evidence`.
    ENGINE_REFUSED = "engine_refused"  # it says that the request itself is at fault
    ENGINE_UNSUITED = "engine_unsuited"  # this server can't do this job, though another may: too long, or with pictures
    ENGINE_BUSY = "engine_busy"  # it takes no more now: HTTP 429 and its kin
    ENGINE_STARTING = "engine_starting"  # it is not ready yet: it starts, or loads its model
    ENGINE_UNAVAILABLE = "engine_unavailable"  # it, or a proxy before it, can't serve now: HTTP 502, 503, 504 and kin
    ENGINE_UNREACHABLE = "engine_unreachable"  # no connection: refused, no such name, TLS
    ENGINE_MISCONFIGURED = "engine_misconfigured"  # the lane's key, model or address is wrong: HTTP 401, 403, 404, 405
    ENGINE_MOVED = "engine_moved"  # it redirects, which is never followed
    ENGINE_OUT_OF_CREDIT = "engine_out_of_credit"  # HTTP 402, or a quota that is used up
    ENGINE_FAILED = "engine_failed"  # HTTP 500, or a connection that broke while the job ran
    ENGINE_TIMEOUT = "engine_timeout"
    ENGINE_INVALID_REPLY = "engine_invalid_reply"  # not JSON, or without what the endpoint promises
    REPLY_TOO_LARGE = "reply_too_large"  # for us, or for the lane's bus where there is no object store to put it in
    ENGINE_DIED = "engine_died"  # the engine's process ended while the job ran

    # From the way there.
    PREEMPTED = "preempted"  # the provider took the machine and the worker handed the job back
    INTERRUPTED = "interrupted"  # our own process ended; no evidence against the job
    LEASE_LOST = "lease_lost"  # the worker fell silent: crashed, cut off, or too slow to renew
    POISONED = "poisoned"  # three crashes with this job running alone


class BrokerError(Exception):
    """Something the person at the keyboard must know, said in one sentence; the command exits with 1."""


class UsageError(BrokerError):
    """The command or its input was wrong; the command exits with 2."""


def reason_of(error: OSError) -> str:
    """Why it failed, for a sentence: not all of them have the system's words for it."""
    return error.strerror or str(error) or type(error).__name__


def named(error: BaseException) -> str:
    """What a log keeps of it: its kind, and its words where they are ours or the system's.

    Those of others may quote what they were given, which may be a prompt.
    """
    words = str(error) if isinstance(error, BrokerError) else error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
