"""Single jobs become durable, all that gathered while the last commit ran in the next one.

No timer: an idle door commits at once, a busy one in ever larger groups. The queue before it is bounded, and
whoever finds it full is told to come again.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import structlog

from broker.clock import Clock
from broker.database import submissions
from broker.database.beginning_keys import BeginningKeys
from broker.database.connection import Connection, Database
from broker.database.submissions import Known
from broker.domain.errors import BrokerError, named
from broker.domain.identity import Identity
from broker.rules.submission import Admitted
from broker.wakeups import Topic, Wakeups

__all__ = ["DoorFull", "KeyTaken", "SingleJobs", "Submitted"]

_JOBS_WAITING_MAX = 20_000
_BYTES_WAITING_MAX = 256_000_000
_JOBS_PER_COMMIT = 1_000

_log = structlog.get_logger(__name__)


class DoorFull(BrokerError):
    """More jobs wait to be stored than the door holds; come again in a second."""


class Submitted(msgspec.Struct, frozen=True):
    """A job is durable; `is_new` is False when its key was known, and this is the job of then."""

    job_id: bytes
    is_new: bool


class KeyTaken(msgspec.Struct, frozen=True):
    """Another job has this idempotency key, so this one was not taken in, nor any that came in one list with it."""

    place: int


Answer = list[Submitted] | KeyTaken | Exception


class _Offer(msgspec.Struct):
    tenant_id: str
    jobs: Sequence[Admitted]
    bytes_count: int
    answer: Callable[[Answer], None]
    also: Callable[[Connection, list[Submitted]], None] | None


class SingleJobs:
    """Takes single jobs in, for any number of tenants."""

    def __init__(self, database: Database, clock: Clock, wakeups: Wakeups) -> None:
        self._database = database
        self._clock = clock
        self._wakeups = wakeups
        self._beginning_keys = BeginningKeys()
        self._tenants: frozenset[str] = frozenset()  # those that the database has
        self._condition = threading.Condition()
        self._offers: list[_Offer] = []
        self._jobs_waiting = 0
        self._bytes_waiting = 0
        self._closed = False

    def offer(
        self,
        identity: Identity,
        jobs: Sequence[Admitted],
        answer: Callable[[Answer], None],
        also: Callable[[Connection, list[Submitted]], None] | None = None,
    ) -> None:
        """Store jobs of the identity's tenant, all or none, then call `answer` from another thread.

        Raises DoorFull when there is no room. `also` writes what is to be kept with them, in the same transaction.
        """
        size = sum(len(one.job.body) for one in jobs)
        with self._condition:
            if self._closed:
                raise BrokerError("the broker is stopping")
            full = self._jobs_waiting + len(jobs) > _JOBS_WAITING_MAX or self._bytes_waiting + size > _BYTES_WAITING_MAX
            if full and self._offers:
                raise DoorFull(f"{self._jobs_waiting:,} jobs wait to be stored: send this again in a second")
            self._offers.append(_Offer(identity.tenant, jobs, size, answer, also))
            self._jobs_waiting += len(jobs)
            self._bytes_waiting += size
            self._condition.notify()

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more, so that its thread may end."""
        return self._closed

    def run(self) -> None:
        """The door's thread: commit what has gathered, until closed and empty."""
        while offers := self._next_offers():
            self._commit(offers)

    def close(self) -> None:
        """Take no more; what was offered is still stored."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _next_offers(self) -> list[_Offer]:
        with self._condition:
            self._condition.wait_for(lambda: self._offers or self._closed)
            taken, count = 0, 0
            for offer in self._offers:
                if taken and count + len(offer.jobs) > _JOBS_PER_COMMIT:
                    break
                taken, count = taken + 1, count + len(offer.jobs)
            offers, self._offers = self._offers[:taken], self._offers[taken:]
            self._jobs_waiting -= count
            self._bytes_waiting -= sum(offer.bytes_count for offer in offers)
            return offers

    def _commit(self, offers: list[_Offer]) -> None:
        try:
            answers: list[Answer] = self._database.write(lambda connection: self._store(connection, offers))
        except Exception as error:  # noqa: BLE001 (it belongs to the producers, who get it)
            _log.warning("jobs_not_stored", offers=len(offers), error=named(error))
            answers = [error] * len(offers)
        else:
            self._tenants |= {offer.tenant_id for offer in offers}
            self._wakeups.notify(Topic.DISPATCHER)
        _log.debug("jobs_taken_in", offers=len(offers))
        for offer, answer in zip(offers, answers, strict=True):
            try:
                offer.answer(answer)
            except Exception:  # noqa: BLE001 (its producer may be gone; the others must get their answers)
                _log.exception("answer_not_taken", jobs=len(offer.jobs))

    def _store(self, connection: Connection, offers: list[_Offer]) -> list[Answer]:
        now_us = self._clock()
        by_tenant: dict[str, list[_Offer]] = defaultdict(list)
        for offer in offers:
            by_tenant[offer.tenant_id].append(offer)
        # In one order, here and below, as another process may store for the same tenants meanwhile.
        for tenant_id in sorted(by_tenant.keys() - self._tenants):
            submissions.ensure_tenant(connection, tenant_id, now_us)
        answers = {
            tenant_id: iter(self._store_of(connection, tenant_id, by_tenant[tenant_id], now_us))
            for tenant_id in sorted(by_tenant)
        }
        return [next(answers[offer.tenant_id]) for offer in offers]

    def _store_of(self, connection: Connection, tenant_id: str, offers: list[_Offer], now_us: int) -> list[Answer]:
        keys = [one.idempotency_key for offer in offers for one in offer.jobs if one.idempotency_key is not None]
        known = submissions.known_keys(connection, tenant_id, keys) if keys else {}
        new_keys: dict[str, Admitted] = {}
        fresh: list[Admitted] = []
        taken: list[int | None] = []
        for offer in offers:
            place = _place_of_conflict(offer.jobs, known, new_keys)
            taken.append(place)
            if place is None:
                fresh += _fresh(offer.jobs, known, new_keys)
        beginning_key = self._beginning_keys.of(connection, tenant_id)
        ids = (
            submissions.insert(connection, tenant_id, [one.job for one in fresh], now_us, beginning_key)
            if fresh
            else []
        )
        id_of = dict(zip(map(id, fresh), ids, strict=True))
        made = {key: Known(id_of[id(one)], one.fingerprint) for key, one in new_keys.items()}
        submissions.remember_keys(connection, tenant_id, made, now_us)
        known |= made
        answers: list[Answer] = []
        for offer, place in zip(offers, taken, strict=True):
            submitted = [] if place is not None else [_submitted(one, id_of, known) for one in offer.jobs]
            if place is None and offer.also:
                offer.also(connection, submitted)
            answers.append(submitted if place is None else KeyTaken(place))
        return answers


def _place_of_conflict(jobs: Sequence[Admitted], known: dict[str, Known], new_keys: dict[str, Admitted]) -> int | None:
    """The first job whose key stands for something else."""
    own: dict[str, bytes] = {}
    for place, one in enumerate(jobs):
        key = one.idempotency_key
        if key is None:
            continue
        before = known.get(key) or new_keys.get(key)
        expected = before.fingerprint if before else own.setdefault(key, one.fingerprint)
        if expected != one.fingerprint:
            return place
    return None


def _fresh(jobs: Sequence[Admitted], known: dict[str, Known], new_keys: dict[str, Admitted]) -> list[Admitted]:
    """The jobs that are not there yet; their keys are noted."""
    found = []
    for one in jobs:
        key = one.idempotency_key
        if key is not None:
            if key in known or key in new_keys:
                continue
            new_keys[key] = one
        found.append(one)
    return found


def _submitted(one: Admitted, id_of: dict[int, bytes], known: dict[str, Known]) -> Submitted:
    job_id = id_of.get(id(one))
    if job_id is not None:
        return Submitted(job_id, is_new=True)
    assert one.idempotency_key is not None  # noqa: S101 (only a known key keeps a job out)
    return Submitted(known[one.idempotency_key].job_id, is_new=False)
