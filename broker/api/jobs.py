"""Single jobs over HTTP. Submitting goes around the framework: it is the route that is called the most."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from broker.api.desk.jobs import JobsDesk, parse_job_id
from broker.api.errors import Refused
from broker.api.gate import Receive, Send, Wire, answer
from broker.api.threads import in_thread
from broker.domain import answers
from broker.domain.answers import JobState
from broker.domain.errors import BrokerError, ErrorCode
from broker.domain.identity import Identity
from broker.domain.ids import format_id
from broker.domain.outcome import Outcome
from broker.intake.single_jobs import Answer, DoorFull, KeyTaken, Submitted
from broker.rules.submission import Admitted, JobRequest

__all__ = ["JOBS_PER_REQUEST_MAX", "SubmitDoor", "routes"]

JOBS_PER_REQUEST_MAX = 1_000
_REQUEST_BYTES_MAX = 32_000_000
_WAIT_SECONDS_MAX = 60.0

_read_one = msgspec.json.Decoder(JobRequest).decode
_read_list = msgspec.json.Decoder(list[JobRequest]).decode


class SubmitDoor:
    """`POST /broker/v1/jobs`: one job, or a list of which all are taken in or none."""

    def __init__(self, desk: JobsDesk) -> None:
        self._desk = desk

    async def __call__(self, scope: Wire, receive: Receive, send: Send) -> None:
        identity: Identity = scope["identity"]
        body = await _read_body(scope, receive)
        requests, is_list = _decode(body)
        key = _header(scope, b"idempotency-key")
        if key is not None:
            if is_list:
                raise Refused(400, ErrorCode.INVALID_FIELD, "one Idempotency-Key can't stand for a list of jobs")
            requests = [msgspec.structs.replace(requests[0], idempotency_key=key)]
        submitted = await store(self._desk, identity, self._desk.admit(identity, requests))
        status = 201 if any(one.is_new for one in submitted) else 200
        jobs = [answers.Submitted(id=format_id("job", one.job_id), new=one.is_new) for one in submitted]
        await answer(send, status, msgspec.json.encode({"jobs": jobs} if is_list else jobs[0]))


async def store(desk: JobsDesk, identity: Identity, jobs: Sequence[Admitted]) -> list[Submitted]:
    """Returns once the jobs are durable."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def answered(found: Answer) -> None:
        loop.call_soon_threadsafe(_resolve, future, found)

    try:
        desk.offer(identity, jobs, answered)
    except DoorFull as error:
        raise Refused(429, "busy", str(error), retry_after_seconds=1) from None
    except BrokerError as error:
        raise Refused(503, "stopping", str(error), retry_after_seconds=5) from None
    found = await future
    if isinstance(found, KeyTaken):
        field = "idempotency_key" if len(jobs) == 1 else f"[{found.place}].idempotency_key"
        raise Refused(422, "idempotency_conflict", "this idempotency key stands for another job already", field=field)
    if isinstance(found, Exception):
        raise Refused(503, "not_stored", "the job could not be stored: send it again later", retry_after_seconds=5)
    return found


@get("/jobs/{job:str}")
async def read_job(
    state: State, identity: NamedDependency[Identity], job: FromPath[str], wait: FromQuery[float] = 0.0
) -> JobState:
    """A job as it stands; with `wait`, once it has ended, or after so many seconds."""
    await _wait_for_end(state.desk.jobs, identity, job, wait)
    return await in_thread(state.desk.jobs.find, identity, job)


@get("/jobs/{job:str}/result")
async def read_result(
    state: State, identity: NamedDependency[Identity], job: FromPath[str], wait: FromQuery[float] = 0.0
) -> Response[bytes]:
    """The engine's reply, as it came."""
    await _wait_for_end(state.desk.jobs, identity, job, wait)
    result = await in_thread(state.desk.jobs.result, identity, job)
    if result.outcome is not Outcome.SUCCEEDED:
        message = result.message or f"the job ended as {result.outcome}"
        raise Refused(409, result.error_code or str(result.outcome), message)
    return Response(result.body, media_type="application/json")


@post("/jobs/{job:str}/cancel", status_code=202)
async def cancel_job(state: State, identity: NamedDependency[Identity], job: FromPath[str]) -> JobState:
    """Ask for its end."""
    return await in_thread(state.desk.jobs.cancel, identity, job)


@post("/jobs/{job:str}/redrive")
async def redrive_job(state: State, identity: NamedDependency[Identity], job: FromPath[str]) -> JobState:
    """Run an ended job again, as a new one."""
    desk: JobsDesk = state.desk.jobs
    again = await in_thread(desk.redriven, identity, job)
    [submitted] = await store(desk, identity, [again])
    return await in_thread(desk.find, identity, format_id("job", submitted.job_id))


routes = [read_job, read_result, cancel_job, redrive_job]


async def _wait_for_end(desk: JobsDesk, identity: Identity, text: str, seconds: float) -> None:
    """Woken by the recorder, closer or rescuer, on the commit that ends the job."""
    if not seconds > 0:
        return
    job_id = parse_job_id(text)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def told() -> None:
        loop.call_soon_threadsafe(_resolve, ended, None)

    desk.watch(identity, job_id, told)
    try:
        if not await in_thread(desk.has_ended, identity, job_id):
            await asyncio.wait([ended], timeout=min(seconds, _WAIT_SECONDS_MAX))
    finally:
        desk.unwatch(identity, job_id, told)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:  # noqa: ANN401 (whatever was waited for)
    if not future.done():
        future.set_result(value)


async def _read_body(scope: Wire, receive: Receive) -> bytes:
    length = _header(scope, b"content-length") or "0"
    if length.isascii() and length.isdigit() and int(length) > _REQUEST_BYTES_MAX:
        raise _too_large()
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "disconnected", "the request ended before its body did")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > _REQUEST_BYTES_MAX:
            raise _too_large()
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_large() -> Refused:
    return Refused(
        413, "request_too_large", f"the request is larger than {_REQUEST_BYTES_MAX:,} bytes; send fewer jobs"
    )


def _header(scope: Wire, name: bytes) -> str | None:
    return next((value.decode("latin-1") for known, value in scope["headers"] if known == name), None)


def _decode(body: bytes) -> tuple[list[JobRequest], bool]:
    try:
        if not body.isascii():
            body.decode()  # what the decoder skips, it does not check
        if body.lstrip()[:1] != b"[":
            return [_read_one(body)], False
        found = _read_list(body)
    except msgspec.ValidationError as error:
        raise Refused(400, ErrorCode.INVALID_FIELD, f"the job is not as it should be: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"the request is not valid JSON in UTF-8: {error}") from None
    if not 0 < len(found) <= JOBS_PER_REQUEST_MAX:
        message = f"the list has {len(found):,} jobs; it must have 1 to {JOBS_PER_REQUEST_MAX:,}"
        raise Refused(400, ErrorCode.INVALID_FIELD, message)
    return found, True
