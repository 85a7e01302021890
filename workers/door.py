"""The lease door over HTTP: a lane's worker signs what it asks with its lane's key, and needs no other secret."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import httpx
import msgspec
import structlog

from broker.bus.envelope import Kind, LeaseQuestion, seal
from broker.clock import Clock, SetClock
from broker.domain.parked import AskToPark, ParkAnswer
from broker.domain.paths import LEASES, LEASES_BEFORE
from broker.domain.presence import PRESENCE_SECONDS, PresenceAnswer, WorkerPresence
from broker.domain.shard import ClaimAnswer, ClaimShard, ClaimShards, RenewAnswer, RenewLease
from broker.signing import Signer

__all__ = ["DoorShut", "HttpLeaseDoor", "Presence", "Refusal"]

_TIMEOUT_SECONDS = 5.0
_CLAIM_SECONDS = 60.0
_CLAIMS_PER_QUESTION = 64
_RETRY_SECONDS = 0.25
_AGAIN_SECONDS = 1.0
_VALID_US = 3_600 * 1_000_000  # generous: until its first answer, a worker's clock may be anything

REFUSED_SECONDS = 15.0
"""How long the door refuses a key before it is believed: a door hears of a new key, and of one revoked, within ten
seconds, and one of several may have heard before another.
"""

_REFUSALS = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)

_NO_LEASE_DOOR = "unauthorized"
"""The code of a 401 that asks for a token: what is at this path, if anything, takes no signature."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class DoorShut(Exception):
    """The broker can't be asked, or doesn't know this worker's key."""


class _ErrorDetails(msgspec.Struct):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetails


class Refusal(NamedTuple):
    """The door refuses this worker, with nothing else in between, since then (monotonic seconds)."""

    reason: str
    since: float


class _Claim(NamedTuple):
    question: ClaimShard
    answer: Future[ClaimAnswer]


class HttpLeaseDoor:
    """Asks at `url`. One for any number of threads of one worker."""

    def __init__(self, url: str, signer: Signer, clock: Clock) -> None:
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_SECONDS)
        self._path, self._other_path = LEASES, LEASES_BEFORE
        self._signer = signer
        self._clock = clock
        self._shut = threading.Event()
        self._refusal: Refusal | None = None
        self._claims: queue.SimpleQueue[_Claim | None] = queue.SimpleQueue()
        self._claimer = threading.Thread(target=self._claim_all, name="claims", daemon=True)
        self._claimer.start()

    @property
    def refusal(self) -> str | None:
        """Why the broker wants nothing of this worker, once that is sure; trying on is of no use then."""
        refusal = self._refusal
        return refusal.reason if refusal and time.monotonic() - refusal.since >= REFUSED_SECONDS else None

    def claim(self, question: ClaimShard) -> ClaimAnswer:
        """See `LeaseDoor.claim`. Claims that gather while others are asked for go together, without a timer."""
        claim = _Claim(question, Future())
        self._claims.put(claim)
        return claim.answer.result()

    def renew(self, question: RenewLease) -> RenewAnswer:
        """See `LeaseDoor.renew`."""
        return self._ask(question, RenewAnswer)

    def park(self, question: AskToPark) -> ParkAnswer:
        """Ask where an event may be parked that is too large for the bus. Raises DoorShut."""
        return self._ask(question, ParkAnswer)

    def report(self, presence: WorkerPresence) -> PresenceAnswer:
        """Say that this worker is there. Raises DoorShut."""
        return self._ask(presence, PresenceAnswer)

    def shut(self) -> None:
        """Claims under way are not asked again."""
        self._shut.set()

    def close(self) -> None:
        """Disconnect."""
        self._claims.put(None)
        self._claimer.join(_TIMEOUT_SECONDS)
        self._client.close()

    def _claim_all(self) -> None:
        while (first := self._claims.get()) is not None:
            group = [first]
            while len(group) < _CLAIMS_PER_QUESTION and not self._claims.empty():
                following = self._claims.get()
                if following is None:
                    self._claims.put(None)
                    break
                group.append(following)
            try:
                answers = self._ask_for(group)
            except Exception as error:  # noqa: BLE001 (it belongs to those who wait for their claims)
                for claim in group:
                    claim.answer.set_exception(error)
            else:
                for claim, answer in zip(group, answers, strict=True):
                    claim.answer.set_result(answer)

    def _ask_for(self, group: list[_Claim]) -> list[ClaimAnswer]:
        """Asks again for a minute while the broker can't be reached."""
        deadline, pause = time.monotonic() + _CLAIM_SECONDS, _RETRY_SECONDS
        asked = group[0].question
        question = ClaimShards(tuple(claim.question.shard_id for claim in group), asked.lane, asked.worker_id)
        while True:
            try:
                answers = self._ask(question, list[ClaimAnswer])
                if len(answers) != len(group):
                    raise DoorShut(f"the broker gives {len(answers)} answers to {len(group)} claims")
                return answers
            except DoorShut as error:
                if self._shut.is_set() or time.monotonic() > deadline:
                    raise
                _log.warning("claims_failed", shards=len(group), reason=str(error))
                self._shut.wait(pause)
                pause = min(2 * pause, _AGAIN_SECONDS)

    def _ask(self, question: LeaseQuestion, answer: type[T]) -> T:
        envelope = seal(self._signer, Kind.LEASE, "broker", question, now_us=self._clock(), valid_us=_VALID_US)
        try:
            response = self._post(envelope)
            self._note(response)
            if response.status_code != httpx.codes.OK:
                raise DoorShut(f"the broker answers {response.status_code}: {_message_of(response)}")
            return msgspec.msgpack.decode(response.content, type=answer)
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            raise DoorShut(f"the broker can't be asked: {type(error).__name__}") from error

    def _post(self, envelope: bytes) -> httpx.Response:
        """Where no lease door is at the path that it was at, a broker of another version may have it at the other."""
        path, other = self._path, self._other_path
        response = self._client.post(path, content=envelope)
        if not _is_elsewhere(response):
            return response
        elsewhere = self._client.post(other, content=envelope)
        if _is_elsewhere(elsewhere):
            return response
        self._path, self._other_path = other, path
        return elsewhere

    def _note(self, response: httpx.Response) -> None:
        """An outage between two refusals says nothing; only a good answer takes them back."""
        if response.status_code in _REFUSALS:
            self._refusal = Refusal(_message_of(response), self._refusal.since if self._refusal else time.monotonic())
        elif response.status_code == httpx.codes.OK:
            self._refusal = None


def _is_elsewhere(response: httpx.Response) -> bool:
    """Whether the answer says that no lease door is there. A broker's gate wants a token for a path that it hasn't."""
    if response.status_code == httpx.codes.NOT_FOUND:
        return True
    return response.status_code == httpx.codes.UNAUTHORIZED and _error_of(response).code == _NO_LEASE_DOOR


def _message_of(response: httpx.Response) -> str:
    return _error_of(response).message


def _error_of(response: httpx.Response) -> _ErrorDetails:
    try:
        return msgspec.json.decode(response.content, type=_ErrorBody).error
    except msgspec.MsgspecError:
        return _ErrorDetails(message=response.text[:200])


class Presence:
    """Says that the worker is there, three times per term that the broker counts on it, until its last word."""

    def __init__(
        self, door: HttpLeaseDoor, clock: SetClock, *, worker_id: str, lane: str, slots: int, resource_id: str
    ) -> None:
        self._door = door
        self._clock = clock
        self._slots = slots
        self._here = WorkerPresence(worker_id, lane, 0, resource_id=resource_id)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """From now on say where the worker stands: at first that it starts, which is no capacity yet."""
        self._thread.start()

    def announce(self) -> None:
        """Say at once that it can take shards. Raises DoorShut."""
        self._here = msgspec.structs.replace(self._here, slots=self._slots)
        self._report(self._here)

    def leave(self) -> None:
        """Say at once that it takes nothing more, if the broker can be asked; it goes on saying so."""
        self._here = msgspec.structs.replace(self._here, leaving=True)
        self._attempt()

    def end(self) -> None:
        """Say that it has gone; the last word."""
        if not self._ended.is_set():
            self._ended.set()
            self._here = msgspec.structs.replace(self._here, leaving=True, gone=True)
            self._attempt()

    def _run(self) -> None:
        while not self._ended.is_set():
            said = self._attempt()
            if self._ended.wait(PRESENCE_SECONDS / 3 if said or self._here.is_starting else _AGAIN_SECONDS):
                break

    def _attempt(self) -> bool:
        try:
            self._report(self._here)
        except DoorShut as error:
            _log.warning("presence_failed", worker=self._here.worker_id, reason=str(error))
            return False
        return True

    def _report(self, presence: WorkerPresence) -> None:
        asked_us = self._clock()
        answer = self._door.report(presence)
        self._clock.set(answer.now_us, asked_us, self._clock())
