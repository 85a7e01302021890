"""Which single jobs may run: the batch lines' checks, and those of what a single job says beside its body."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from hashlib import sha256

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.job import Constraints, GroupKey, SingleJob
from broker.domain.lane import Lane
from broker.domain.money import format_usd, nano_from_usd
from broker.rules.admission import BODY_BYTES_MAX, Refusal, check_request
from broker.rules.grouping import canonical_constraints
from broker.rules.planning import Candidate, plan_group
from broker.rules.sharding import fits_message
from broker.rules.windows import deadline_us_of, window_seconds_of

__all__ = ["KEY_CHARS_MAX", "Admitted", "JobRequest", "admit_job"]

KEY_CHARS_MAX = 255
_WINDOW_SECONDS_DEFAULT = 86_400
_TAGS_MAX = 16
_TAG_CHARS_MAX = 256


class JobRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A single job as a producer sends it; `window` and `deadline` are two ways to say the same thing."""

    body: msgspec.Raw
    endpoint: str = "/v1/chat/completions"
    window: str | None = None
    deadline: str | None = None
    budget_usd: Decimal | None = None
    tags: dict[str, str] = {}
    constraints: Constraints = Constraints()
    idempotency_key: str | None = None


class Admitted(msgspec.Struct, frozen=True):
    """A job that may run. `fingerprint` (SHA-256) is of all that was asked, but for its key and the time."""

    job: SingleJob
    idempotency_key: str | None = None
    fingerprint: bytes = b""


def admit_job(request: JobRequest, lanes: Sequence[Lane], tenant_id: str, now_us: int) -> Admitted | Refusal:
    """What becomes of one request; a budget binds the job to the lanes that are expected to keep to it."""
    models = {model for lane in lanes for model in lane.engine.models}
    if len(request.body) > BODY_BYTES_MAX:
        message = f"body has {len(request.body):,} bytes; the limit is {BODY_BYTES_MAX:,}"
        return Refusal(ErrorCode.BODY_TOO_LARGE, "body", message)
    model = check_request(request.endpoint, request.body, models, endpoint_field="endpoint", kind="job")
    if isinstance(model, Refusal):
        return model
    try:
        deadline_us = _deadline_us(request, now_us)
        budget = None if request.budget_usd is None else nano_from_usd(str(request.budget_usd))
    except ValueError as error:
        field = "budget_usd" if str(error).startswith("'") else str(error).split(" ", 1)[0]
        message = f"budget_usd: {error}" if field == "budget_usd" else str(error)
        return Refusal(ErrorCode.INVALID_FIELD, field, message)
    refusal = _check_labels(request)
    if refusal:
        return refusal
    constraints = _allowed(request, model, budget, lanes, tenant_id)
    if isinstance(constraints, Refusal):
        return constraints
    job = SingleJob(
        endpoint=request.endpoint,
        model=model,
        body=bytes(request.body),
        constraints=constraints,
        submitted_us=now_us,
        deadline_us=deadline_us,
        budget_nano_usd=budget,
        tags=msgspec.json.encode(request.tags, order="sorted").decode() if request.tags else None,
    )
    key = request.idempotency_key
    return Admitted(job, key, fingerprint(request) if key is not None else b"")


def fingerprint(request: JobRequest) -> bytes:
    """What makes two requests of one key the same request."""
    asked = (
        request.endpoint,
        bytes(request.body),
        request.window,
        request.deadline,
        str(request.budget_usd),
        request.tags,
        canonical_constraints(request.constraints),
    )
    return sha256(msgspec.msgpack.encode(asked, order="deterministic")).digest()


def _deadline_us(request: JobRequest, now_us: int) -> int:
    if request.deadline is not None:
        if request.window is not None:
            raise ValueError("deadline stands beside window: give one of them")
        try:
            return deadline_us_of(request.deadline, now_us)
        except ValueError as error:
            raise ValueError(f"deadline is {error}") from None
    try:
        seconds = _WINDOW_SECONDS_DEFAULT if request.window is None else window_seconds_of(request.window)
    except ValueError as error:
        raise ValueError(f"window is {error}") from None
    return now_us + seconds * 1_000_000


def _check_labels(request: JobRequest) -> Refusal | None:
    if len(request.tags) > _TAGS_MAX:
        return Refusal(ErrorCode.INVALID_FIELD, "tags", f"tags are {len(request.tags)}; the limit is {_TAGS_MAX}")
    for name, value in request.tags.items():
        if not 0 < len(name) <= _TAG_CHARS_MAX or len(value) > _TAG_CHARS_MAX or "\0" in name + value:
            message = f"tag {name[:40]!r}: a name has 1 to {_TAG_CHARS_MAX} characters, a value at most as many, no NUL"
            return Refusal(ErrorCode.INVALID_FIELD, "tags", message)
    key = request.idempotency_key
    if key is not None and (not 0 < len(key) <= KEY_CHARS_MAX or "\0" in key):
        message = f"idempotency_key has {len(key)} characters; it must have 1 to {KEY_CHARS_MAX} and none of them NUL"
        return Refusal(ErrorCode.INVALID_FIELD, "idempotency_key", message)
    return None


def _allowed(
    request: JobRequest, model: str, budget: int | None, lanes: Sequence[Lane], tenant_id: str
) -> str | Refusal:
    """The canonical constraints under which the job may run on at least one lane."""
    constraints = canonical_constraints(request.constraints)
    plan = plan_group(GroupKey(tenant_id, request.endpoint, model, constraints, 0), lanes)
    size = len(request.body)
    fitting = {str(lane.name) for lane in lanes if fits_message(lane, size)}
    candidates = [candidate for candidate in plan.candidates if candidate.lane in fitting]
    if not candidates:
        reasons = [f"{removed.lane}: {removed.filter}" for removed in plan.removed]
        reasons += [f"{one.lane}: its messages can't carry {size:,} bytes" for one in plan.candidates]
        message = f"constraints leave no lane for this job: {'; '.join(reasons)}"
        return Refusal(ErrorCode.NO_LANE_ALLOWED, "constraints", message)
    affordable = candidates if budget is None else [one for one in candidates if _cost(one) <= budget]
    if not affordable:
        cheapest = candidates[0]
        message = (
            f"budget_usd is {format_usd(budget or 0)}; the cheapest allowed lane, {cheapest.lane},"
            f" is expected to take {format_usd(_cost(cheapest))}"
        )
        return Refusal(ErrorCode.BUDGET_EXCEEDED, "budget_usd", message)
    if len(affordable) == len(plan.candidates):
        return constraints
    names = tuple(one.lane for one in affordable)
    return canonical_constraints(msgspec.structs.replace(request.constraints, lanes=names))


def _cost(candidate: Candidate) -> int:
    return candidate.expected_job_cost_nano_usd
