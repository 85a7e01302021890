"""Batches over HTTP: files go up and come down as streams, never whole in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litestar import Request, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import File

from broker.api.desk.batches import BatchesDesk, BatchTerms
from broker.api.errors import Refused
from broker.api.threads import in_thread
from broker.api.uploads import Upload
from broker.domain.answers import BatchState
from broker.domain.errors import ErrorCode, UsageError
from broker.domain.identity import Identity
from broker.domain.job import Constraints
from broker.domain.money import nano_from_usd
from broker.domain.rerun import rerun_outcomes
from broker.intake.uploads import FileTooLarge
from broker.rules.demands import check_constraints, constraints_of
from broker.rules.windows import window_seconds_of

__all__ = ["routes"]

_NAME_CHARS_MAX = 256


@post("/batches", request_max_body_size=None)
async def create_batch(
    state: State,
    identity: NamedDependency[Identity],
    request: Request[Any, Any, Any],
    window: FromQuery[str] = "24h",
    max_cost: FromQuery[str | None] = None,
    lanes: FromQuery[str | None] = None,
    require: FromQuery[list[str] | None] = None,
    name: FromQuery[str | None] = None,
) -> BatchState:
    """The body is the JSONL file, plain, packed or in a form; the answer comes when all of it is on disk."""
    desk: BatchesDesk = state.desk.batches
    terms = _terms(window, max_cost, _constraints(lanes, require or []), name)
    desk.check_terms(identity, terms)
    upload = await in_thread(_upload, desk, identity, request.headers)
    try:
        async for chunk in request.stream():
            await in_thread(upload.add, chunk)
        await in_thread(upload.end)
        return await in_thread(desk.create, identity, upload.spool, terms)
    except BaseException as error:
        upload.spool.discard()
        if isinstance(error, FileTooLarge):
            raise Refused(413, "file_too_large", str(error), field="file") from None
        if isinstance(error, UsageError):
            raise Refused(400, "invalid_file", str(error), field="file") from None
        raise


def _upload(desk: BatchesDesk, identity: Identity, headers: Mapping[str, str]) -> Upload:
    try:
        return Upload(headers, lambda: desk.new_spool(identity))
    except UsageError as error:
        raise Refused(400, "invalid_file", str(error), field="file") from None


@get("/batches")
async def list_batches(state: State, identity: NamedDependency[Identity]) -> dict[str, list[BatchState]]:
    """The newest hundred."""
    return {"batches": await in_thread(state.desk.batches.newest, identity)}


@get("/batches/{batch:str}")
async def read_batch(state: State, identity: NamedDependency[Identity], batch: FromPath[str]) -> BatchState:
    """A batch as far as it is."""
    return await in_thread(state.desk.batches.find, identity, batch)


@get("/batches/{batch:str}/output")
async def read_output(state: State, identity: NamedDependency[Identity], batch: FromPath[str]) -> File:
    """The lines that succeeded, in the order of the file."""
    return _file(await in_thread(state.desk.batches.file, identity, batch, "output"))


@get("/batches/{batch:str}/errors")
async def read_errors(state: State, identity: NamedDependency[Identity], batch: FromPath[str]) -> File:
    """The lines that did not."""
    return _file(await in_thread(state.desk.batches.file, identity, batch, "errors"))


@post("/batches/{batch:str}/cancel", status_code=202)
async def cancel_batch(state: State, identity: NamedDependency[Identity], batch: FromPath[str]) -> BatchState:
    """Ask for the end of all its jobs."""
    return await in_thread(state.desk.batches.cancel, identity, batch)


@post("/batches/{batch:str}/rerun")
async def rerun_batch(
    state: State,
    identity: NamedDependency[Identity],
    batch: FromPath[str],
    only: FromQuery[str | None] = None,
    window: FromQuery[str | None] = None,
    max_cost: FromQuery[str | None] = None,
) -> BatchState:
    """A batch of its lines that did not succeed; the output is of all runs together."""
    try:
        outcomes = rerun_outcomes(only)
    except ValueError as error:
        raise Refused(400, ErrorCode.INVALID_FIELD, f"only: {error}", field="only") from None
    seconds = None if window is None else _window(window)
    return await in_thread(state.desk.batches.rerun, identity, batch, outcomes, seconds, _budget(max_cost))


routes = [create_batch, list_batches, read_batch, read_output, read_errors, cancel_batch, rerun_batch]


def _file(path: Any) -> File:  # noqa: ANN401 (a path)
    return File(path, media_type="application/jsonl")


def _constraints(lanes: str | None, require: list[str]) -> Constraints:
    """`lanes` with commas, and whatever else is required, such as region=europe-west4."""
    try:
        return check_constraints(constraints_of([*require, *([f"lane={lanes}"] if lanes else [])]))
    except ValueError as error:
        raise Refused(400, ErrorCode.INVALID_FIELD, f"require: {error}", field="require") from None


def _terms(window: str, max_cost: str | None, constraints: Constraints, name: str | None) -> BatchTerms:
    seconds, budget = _window(window), _budget(max_cost)
    if name is not None and (not 0 < len(name) <= _NAME_CHARS_MAX or "\0" in name):
        message = f"name has {len(name)} characters; it must have 1 to {_NAME_CHARS_MAX} and none of them NUL"
        raise Refused(400, ErrorCode.INVALID_FIELD, message, field="name")
    return BatchTerms(window_seconds=seconds, max_cost_nano_usd=budget, constraints=constraints, name=name)


def _window(text: str) -> int:
    try:
        return window_seconds_of(text)
    except ValueError as error:
        raise Refused(400, ErrorCode.INVALID_FIELD, f"window is {error}", field="window") from None


def _budget(text: str | None) -> int | None:
    try:
        return None if text is None else nano_from_usd(text.removeprefix("$"))
    except ValueError as error:
        raise Refused(400, ErrorCode.INVALID_FIELD, f"max_cost: {error}", field="max_cost") from None
