"""Which single jobs may run: the batch lines' checks, and those of what a single job says beside its body."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from hashlib import sha256

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.job import Constraints, GroupKey, SingleJob
from broker.domain.lane import Lane
from broker.domain.money import format_usd, nano_from_usd
from broker.rules.abilities import Abilities, narrowed
from broker.rules.admission import BODY_BYTES_MAX, Refusal, check_request
from broker.rules.decisions import Candidate, GroupPlan
from broker.rules.demands import check_constraints
from broker.rules.grouping import canonical_constraints
from broker.rules.placement.facts import demands_of, facts_of
from broker.rules.placement.feasible import Prospect, soonest, window_text
from broker.rules.placement.filters import bits, eligible
from broker.rules.placement.work import Terms
from broker.rules.planning import plan_group
from broker.rules.sharding import body_bytes_max, fits_message
from broker.rules.windows import deadline_us_of, window_seconds_of

__all__ = ["KEY_CHARS_MAX", "Admitted", "JobRequest", "admit_job", "check_batch", "is_key"]

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


def admit_job(
    request: JobRequest,
    lanes: Sequence[Lane],
    tenant_id: str,
    now_us: int,
    prospects: Mapping[str, Prospect] = {},
) -> Admitted | Refusal:
    """What becomes of one request; a budget binds the job to the lanes that are expected to keep to it.

    With `prospects` of the lanes, what none of them can do in time is refused.
    """
    models = {model for lane in lanes for model in lane.engine.models}
    if len(request.body) > BODY_BYTES_MAX:
        message = f"body has {len(request.body):,} bytes; the limit is {BODY_BYTES_MAX:,}"
        return Refusal(ErrorCode.BODY_TOO_LARGE, "body", message)
    checked = check_request(request.endpoint, request.body, models, endpoint_field="endpoint", kind="job")
    if isinstance(checked, Refusal):
        return checked
    model = checked.model
    try:
        deadline_us = _deadline_us(request, now_us)
        budget = None if request.budget_usd is None else nano_from_usd(str(request.budget_usd))
        check_constraints(request.constraints)
    except ValueError as error:
        field = "budget_usd" if str(error).startswith("'") else re.split("[ :]", str(error), maxsplit=1)[0]
        message = f"budget_usd: {error}" if field == "budget_usd" else str(error)
        return Refusal(ErrorCode.INVALID_FIELD, field, message)
    refusal = _check_labels(request)
    if refusal:
        return refusal
    allowed = _allowed(request, model, budget, lanes, tenant_id)
    if isinstance(allowed, Refusal):
        return allowed
    constraints, candidates = allowed
    if prospects:
        by_name = {str(lane.name): lane for lane in lanes}
        need = soonest([by_name[one.lane] for one in candidates], prospects, model)
        if need is not None and need[0] > (left_seconds := (deadline_us - now_us) / 1_000_000):
            return _impossible(left_seconds, need)
    job = SingleJob(
        endpoint=request.endpoint,
        model=model,
        body=bytes(request.body),
        constraints=constraints,
        submitted_us=now_us,
        deadline_us=deadline_us,
        budget_nano_usd=budget,
        tags=msgspec.json.encode(request.tags, order="sorted").decode() if request.tags else None,
        beginning=checked.beginning,
    )
    key = request.idempotency_key
    return Admitted(job, key, fingerprint(request) if key is not None else b"")


def check_batch(
    lanes: Sequence[Lane], prospects: Mapping[str, Prospect], constraints: str, window_seconds: float
) -> Refusal | None:
    """A refusal if no line of any model could run under these constraints, or none within the window."""
    facts = [facts_of(lane) for lane in lanes]
    demands = demands_of(constraints)
    needs, reasons = [], []
    for model in sorted({model for lane in lanes for model in lane.engine.models}):
        found = eligible(Terms(model, model, demands), facts)
        reasons += [f"{one.lane}: {one.filter}" for one in found.removed]
        if not found.mask:
            continue
        need = soonest([lanes[place] for place in bits(found.mask)], prospects, model)
        if need is None or need[0] <= window_seconds:
            return None
        needs.append(need)
    if needs:
        return _impossible(window_seconds, min(needs))
    message = f"constraints leave no lane for this batch: {'; '.join(reasons)}"
    return Refusal(ErrorCode.NO_LANE_ALLOWED, "require", message)


def _impossible(left_seconds: float, need: tuple[float, str]) -> Refusal:
    seconds, why = need
    message = (
        f"window leaves {left_seconds:.3g} s; the fastest lane allowed needs {seconds:.3g} s ({why}):"
        f" the nearest window that would do is {window_text(seconds)}"
    )
    return Refusal(ErrorCode.DEADLINE_IMPOSSIBLE, "window", message)


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
    if key is not None and not is_key(key):
        message = f"idempotency_key has {len(key)} characters; it must have 1 to {KEY_CHARS_MAX} and none of them NUL"
        return Refusal(ErrorCode.INVALID_FIELD, "idempotency_key", message)
    return None


def is_key(key: str) -> bool:
    """Whether this may be an idempotency key."""
    return 0 < len(key) <= KEY_CHARS_MAX and "\0" not in key


def _allowed(
    request: JobRequest, model: str, budget: int | None, lanes: Sequence[Lane], tenant_id: str
) -> tuple[str, list[Candidate]] | Refusal:
    """The canonical constraints under which the job may run on at least one lane, and those lanes."""
    demands, plan = _plan(request, model, lanes, tenant_id)
    size = len(request.body)
    fitting = {str(lane.name) for lane in lanes if fits_message(lane, size)}
    candidates = [candidate for candidate in plan.candidates if candidate.lane in fitting]
    if plan.candidates and not candidates:
        allowed = {str(one.lane) for one in plan.candidates}
        largest = max(body_bytes_max(lane) for lane in lanes if str(lane.name) in allowed)
        message = f"body has {size:,} bytes; what the lanes allowed can carry is {largest:,} at most"
        return Refusal(ErrorCode.BODY_TOO_LARGE, "body", message)
    if not candidates:
        reasons = [f"{removed.lane}: {removed.filter}" for removed in plan.removed]
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
        return canonical_constraints(demands), affordable
    names = tuple(one.lane for one in affordable)
    return canonical_constraints(msgspec.structs.replace(demands, lanes=names)), affordable


def _plan(request: JobRequest, model: str, lanes: Sequence[Lane], tenant_id: str) -> tuple[Constraints, GroupPlan]:
    """Which lanes may run it under its constraints, and what it needs besides that not all of these can."""

    def plan(demands: Constraints) -> GroupPlan:
        return plan_group(GroupKey(tenant_id, request.endpoint, model, canonical_constraints(demands), 0), lanes)

    allowed = plan(request.constraints)
    names = {one.lane for one in allowed.candidates}
    abilities = Abilities.of(lane.engine for lane in lanes if str(lane.name) in names)
    need = abilities.need(request.endpoint, bytes(request.body)) if abilities != Abilities() else None
    if need is None:
        return request.constraints, allowed
    demands = narrowed(request.constraints, need)
    return demands, plan(demands)


def _cost(candidate: Candidate) -> int:
    return candidate.expected_job_cost_nano_usd
