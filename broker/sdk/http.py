"""A producer's client: a few blocking calls to a broker's HTTP door, with typed answers.

`Client(url, token).submit(body, window="15m")` gives an id, `wait(id)` the job once it has ended, `result(id)`
the engine's reply.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from broker.domain.answers import (
    BatchState,
    InstanceView,
    JobError,
    JobState,
    LaneView,
    PricesTaken,
    Submitted,
)
from broker.domain.errors import BrokerError, UsageError, reason_of
from broker.domain.paths import OWN

__all__ = [
    "CHAT",
    "BatchState",
    "Client",
    "DoorError",
    "InputError",
    "InstanceView",
    "JobError",
    "JobState",
    "LaneView",
    "PricesTaken",
    "Submitted",
    "remember_url",
]

T = TypeVar("T")

CHAT = "/v1/chat/completions"
"""The endpoint where none is named."""

_WAIT_SECONDS = 30.0
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.25
_INPUT_AT_FAULT = frozenset({400, 404, 413, 422})
_URL_FILE = "url"


class DoorError(BrokerError):
    """The broker said no. `code` names the reason, `field` the part of the request, `status` is HTTP's."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field and not message.startswith(field) else message)
        self.status = status
        self.code = code
        self.field = field


class InputError(DoorError, UsageError):
    """What was sent, or named, is at fault."""


class Client:
    """Speaks to one broker. For one thread; use it as a context manager, or close it."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self._url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=_ANSWER_SECONDS,
                trust_env=False,  # a proxy has no business between a producer and its own machine
            )
        except httpx.InvalidURL as error:
            raise self._unreachable(error) from None

    @classmethod
    def of_folder(cls, data: Path, url: str | None = None, token: str | None = None) -> Self:
        """The client of the broker that works on this data folder. Raises BrokerError when there never was one."""
        try:
            return cls(url or (data / _URL_FILE).read_text().strip(), token or (data / "token").read_text().strip())
        except OSError:
            raise BrokerError(
                f"{data} has had no `broker up` yet: start it, name its folder with --data, or give --url and --token"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    # Jobs.

    def submit(self, body: Mapping[str, Any] | bytes, *, endpoint: str = CHAT, **terms: Any) -> Submitted:  # noqa: ANN401 (the door checks them, and says it best)
        """One job; returns once nothing can lose it.

        `terms` are the door's fields: window, deadline, budget_usd, tags, constraints, idempotency_key.
        """
        raw = msgspec.Raw(body if isinstance(body, bytes) else msgspec.json.encode(body))
        asked = {name: value for name, value in terms.items() if value is not None}
        return self._ask("POST", f"{OWN}/jobs", Submitted, content=_json({"body": raw, "endpoint": endpoint, **asked}))

    def submit_many(self, jobs: Sequence[Mapping[str, Any]]) -> list[Submitted]:
        """Up to 1,000 jobs, each with the fields of `submit`, of which all are taken in or none."""
        found = self._ask("POST", f"{OWN}/jobs", dict[str, list[Submitted]], content=_json(list(jobs)))
        return found["jobs"]

    def job(self, job_id: str, *, wait_seconds: float = 0.0) -> JobState:
        """How far a job is; with `wait_seconds`, once it has ended, or after so long."""
        return self._ask("GET", f"{OWN}/jobs/{job_id}", JobState, **_waiting(wait_seconds))

    def wait(self, job_id: str, *, timeout_seconds: float | None = None) -> JobState:
        """The job once it has ended. Raises BrokerError when that takes longer than `timeout_seconds`."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            left = _WAIT_SECONDS if until is None else min(_WAIT_SECONDS, until - time.monotonic())
            found = self.job(job_id, wait_seconds=max(left, 0.001))
            if found.has_ended:
                return found
            if until is not None and time.monotonic() >= until:
                raise BrokerError(f"{job_id} has not ended within {timeout_seconds:g} s: it is {found.status}")

    def result(self, job_id: str, *, wait_seconds: float = 0.0) -> bytes:
        """The engine's reply, as it came. Raises DoorError for a job that did not succeed, or has not ended."""
        return self._send("GET", f"{OWN}/jobs/{job_id}/result", **_waiting(wait_seconds)).content

    def cancel(self, job_id: str) -> JobState:
        """Ask for a job's end."""
        return self._ask("POST", f"{OWN}/jobs/{job_id}/cancel", JobState)

    def redrive(self, job_id: str) -> JobState:
        """Run a job that ended without success again, as a new one."""
        return self._ask("POST", f"{OWN}/jobs/{job_id}/redrive", JobState)

    # Batches.

    def create_batch(self, file: Path, **terms: str | list[str] | None) -> BatchState:
        """Upload a file, a pipe, or standard input as `-`, as a stream; it may be packed with gzip.

        `terms`: window, max_cost, lanes, require, name.
        """
        asked = {name: value for name, value in terms.items() if value is not None}
        try:
            with os.fdopen(os.dup(0), "rb") if str(file) == "-" else file.open("rb") as source:
                return self._ask(
                    "POST", f"{OWN}/batches", BatchState, content=_chunks(source), params=asked, timeout=None
                )
        except OSError as error:
            raise UsageError(f"can't read {file}: {reason_of(error)}") from None

    def batch(self, batch_id: str) -> BatchState:
        """How far a batch is."""
        return self._ask("GET", f"{OWN}/batches/{batch_id}", BatchState)

    def batches(self) -> list[BatchState]:
        """The newest hundred."""
        return self._ask("GET", f"{OWN}/batches", dict[str, list[BatchState]])["batches"]

    def follow_batch(self, batch_id: str) -> Iterator[BatchState]:
        """How far a batch is, four times a second, until it is finished."""
        while True:
            found = self.batch(batch_id)
            yield found
            if found.is_finished:
                return
            time.sleep(_POLL_SECONDS)

    def cancel_batch(self, batch_id: str) -> BatchState:
        """Ask for the end of all its jobs."""
        return self._ask("POST", f"{OWN}/batches/{batch_id}/cancel", BatchState)

    def rerun_batch(self, batch_id: str, **terms: str | None) -> BatchState:
        """Run the lines again that did not succeed, as a batch whose files hold what all runs brought.

        `terms`: only, window, max_cost. Asked again while that runs, it is the same one.
        """
        asked = {name: value for name, value in terms.items() if value is not None}
        return self._ask("POST", f"{OWN}/batches/{batch_id}/rerun", BatchState, params=asked)

    def download(self, batch_id: str, which: str) -> Iterator[bytes]:
        """A finished batch's `output` or `errors`, in pieces."""
        try:
            with self._http.stream("GET", f"{OWN}/batches/{batch_id}/{which}") as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                yield from answer.iter_bytes()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    # Lanes.

    def lanes(self) -> list[LaneView]:
        """All lanes."""
        return self._ask("GET", f"{OWN}/lanes", dict[str, list[LaneView]])["lanes"]

    def steer_lane(self, name: str, deed: str) -> LaneView:
        """`pause`, `drain` or `resume` a lane."""
        return self._ask("POST", f"{OWN}/lanes/{name}/{deed}", LaneView)

    def instances(self, lane: str | None = None, *, ended: bool = False) -> list[InstanceView]:
        """The lanes' instances, oldest first; with `ended`, also those that stopped or were lost."""
        asked = {"ended": str(ended).lower()} | ({"lane": lane} if lane else {})
        return self._ask("GET", f"{OWN}/instances", dict[str, list[InstanceView]], params=asked)["instances"]

    def import_prices(self, name: str, content: bytes) -> PricesTaken:
        """Have a price book hold."""
        return self._ask("POST", f"{OWN}/prices", PricesTaken, content=content, params={"name": name})

    def desired(self, lane: str) -> int:
        """How many instances the planner wants of a lane."""
        return self._ask("GET", f"{OWN}/lanes/{lane}/desired", dict[str, int])["desired"]

    def _ask(self, method: str, path: str, kind: type[T], **request: Any) -> T:  # noqa: ANN401 (httpx's own keywords)
        answer = self._send(method, path, **request)
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.MsgspecError:
            raise BrokerError(f"what answers at {self._url} is not a broker of this version") from None

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:  # noqa: ANN401 (as above)
        try:
            answer = self._http.request(method, path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        if answer.is_error:
            raise _refusal(answer)
        return answer

    def _unreachable(self, error: Exception) -> BrokerError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return BrokerError(f"no broker answers at {self._url}: start it with `broker up`")
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return UsageError(f"{self._url!r} is not the URL of a broker, such as http://127.0.0.1:8470")
        return BrokerError(f"the broker at {self._url} did not answer: {type(error).__name__}")


def remember_url(data: Path, url: str) -> None:
    """Note in the data folder where its broker listens, for clients that are given the folder."""
    draft = data / f".{_URL_FILE}.new"
    draft.write_text(url + "\n")
    draft.replace(data / _URL_FILE)


def _waiting(seconds: float) -> dict[str, Any]:
    if seconds <= 0:
        return {}
    return {"params": {"wait": f"{seconds:.3f}"}, "timeout": _ANSWER_SECONDS + seconds}


def _json(value: Any) -> bytes:  # noqa: ANN401 (any JSON)
    return msgspec.json.encode(value)


def _chunks(source: Any) -> Iterator[bytes]:  # noqa: ANN401 (a binary file)
    while chunk := source.read(1 << 18):
        yield chunk


def _refusal(answer: httpx.Response) -> DoorError:
    try:
        error = msgspec.json.decode(answer.content)["error"]
        kind = InputError if answer.status_code in _INPUT_AT_FAULT else DoorError
        return kind(answer.status_code, error["code"], error["message"], error["field"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return DoorError(answer.status_code, "unknown", f"the answer was HTTP {answer.status_code}")
