"""One lane's worker: an engine beside its accelerator, the lane's bus, and the broker's lease door by HTTP.

It holds its lane's key and the broker's public keys, and no secret of any database; it doesn't load one either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec
import structlog

from broker.bootstrap.buses import open_store
from broker.bootstrap.worker_side import WorkerSide, new_resource_id, new_worker_id
from broker.bus.claim_check import ClaimCheck, Place, SharedPlace
from broker.bus.payload_store import StoreUnavailable
from broker.bus.signed_place import SignedPlace
from broker.clock import SetClock
from broker.domain.errors import BrokerError
from broker.domain.lane import Lane
from broker.domain.parked import AskToPark, ParkAnswer
from broker.keys import read_signer, read_trusted
from workers.door import DoorShut, HttpLeaseDoor, Presence
from workers.starting import STILL_STARTING

__all__ = ["LaneWorker", "WorkerTerms"]

_PAUSE_SECONDS = 0.5
_PAUSE_SECONDS_MAX = 5.0
_LOOK_SECONDS = 0.05

_log = structlog.get_logger(__name__)


class WorkerTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`url`: of the broker's door; `bus_url`: of the lane's bus, its secrets filled in.

    `key` and `trusted` are files: the lane's signing key, and the broker's public keys. `payloads_url`: of the store
    for large bodies, for a worker that shares the broker's folder or may use its store; any other gets by with URLs
    that the broker signs. `drain_seconds`: how long it may take to hand back what runs. `resource_id`: what the cloud,
    and its bill, call this machine; unless it is said, the host's name with the time of the start.
    """

    url: str
    bus_url: str
    key: Path
    trusted: Path
    payloads_url: str | None = None
    drain_seconds: float = 10.0
    resource_id: str | None = None


class LaneWorker:
    """Works its lane from `start` until `stop`."""

    def __init__(self, lane: Lane, terms: WorkerTerms) -> None:
        signer, _ = read_signer(terms.key)
        self.lane = lane
        self.worker_id = new_worker_id()
        self._terms = terms
        clock = SetClock()
        self._door = HttpLeaseDoor(terms.url, signer, clock)
        self.resource_id = terms.resource_id or new_resource_id()
        self._presence = Presence(
            self._door,
            clock,
            worker_id=self.worker_id,
            lane=lane.name,
            slots=lane.slots,
            resource_id=self.resource_id,
        )
        ring = read_trusted(terms.trusted)
        place: Place = SignedPlace(self._ask_to_park)
        if terms.payloads_url:
            place = SharedPlace(open_store(terms.payloads_url, makes_folder=False))
        self._side = WorkerSide(
            name=f"lane-{lane.name}",
            lanes=[lane],
            signers={str(lane.name): signer},
            ring=ring,
            door=self._door,
            bus_url=terms.bus_url,
            clock=clock,
            worker_id=self.worker_id,
            claim_check=ClaimCheck.of_worker(place, {str(lane.name): signer}, ring, clock),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether it takes shards."""
        return self._side.is_running

    @property
    def refusal(self) -> str | None:
        """Why the broker wants nothing of this worker, such as a revoked key, in a sentence; None while it does."""
        reason = self._door.refusal
        if reason is None:
            return None
        asked = f"the broker at {self._terms.url} refuses it ({reason})"
        return f"lane {self.lane.name} can't work: {asked}; `broker keys list` shows which keys are in force"

    def start(self, stop: threading.Event, say: Callable[[str], None]) -> bool:
        """Say that it starts, bring up the engine, say so, take shards.

        Waits for the engine and for the broker as long as it takes, and says that with `say`. False when `stop` was
        set meanwhile. Raises BrokerError where the lane's settings or the broker say no.
        """
        self._presence.start()
        self._side.start_engines(lambda _lane, _error: None, wait_seconds=0.0)
        if not self._await_engine(stop, say):
            return False
        if not self._announce(stop, say):
            return False
        self._side.start_worker()
        _log.info(
            "worker_started",
            worker=self.worker_id,
            lane=self.lane.name,
            slots=self.lane.slots,
            resource_id=self.resource_id,
        )
        return True

    def _await_engine(self, stop: threading.Event, say: Callable[[str], None]) -> bool:
        told = ""
        while not stop.is_set():
            self._side.check_settings()
            if self.refusal:
                raise BrokerError(self.refusal)
            if self._side.is_ready:
                return True
            for error in self._side.starting.values():
                if error.message not in (told, STILL_STARTING):
                    told = error.message
                    _log.warning("engine_awaited", lane=self.lane.name, reason=told)
                    say(f"Waiting for the engine: {told}")
            stop.wait(_LOOK_SECONDS)
        return False

    def _ask_to_park(self, lane: str, shard_id: bytes, digest: bytes, size: int) -> ParkAnswer:
        try:
            return self._door.park(AskToPark(shard_id, lane, self.worker_id, digest, size))
        except DoorShut as error:
            raise StoreUnavailable(str(error)) from error

    def _announce(self, stop: threading.Event, say: Callable[[str], None]) -> bool:
        pause, told = _PAUSE_SECONDS, False
        while not stop.is_set():
            try:
                self._presence.announce()
            except DoorShut as error:
                if self.refusal:
                    raise BrokerError(self.refusal) from None
                _log.warning("broker_awaited", url=self._terms.url, reason=str(error))
                if not told:
                    say(f"Waiting for the broker at {self._terms.url}: {error}")
                    told = True
                stop.wait(pause)
                pause = min(2 * pause, _PAUSE_SECONDS_MAX)
            else:
                return True
        return False

    def stop(self) -> None:
        """Take nothing more, hand back what runs, and go; harmless when it has gone."""
        self._presence.leave()
        self._door.shut()
        self._side.stop(interrupted=False, timeout_seconds=self._terms.drain_seconds)
        self._side.close()
        self._presence.end()
        self._door.close()
        _log.info("worker_stopped", worker=self.worker_id, lane=self.lane.name)
