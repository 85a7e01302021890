"""One lane's worker: an engine beside its accelerator, the lane's bus, and the broker's lease door by HTTP.

It holds its lane's key and the broker's public keys, and no secret of any database; it doesn't load one either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import msgspec
import structlog

from broker.bootstrap.worker_side import WorkerSide, new_worker_id
from broker.clock import SetClock
from broker.domain.errors import BrokerError
from broker.domain.lane import Lane
from broker.keys import read_signer, read_trusted
from workers.door import DoorShut, HttpLeaseDoor, Presence

__all__ = ["LaneWorker", "WorkerTerms"]

_log = structlog.get_logger(__name__)


class WorkerTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`url`: of the broker's door; `bus_url`: of the lane's bus, its secrets filled in.

    `key` and `trusted` are files: the lane's signing key, and the broker's public keys. `drain_seconds`: how long
    it may take to hand back what runs.
    """

    url: str
    bus_url: str
    key: Path
    trusted: Path
    drain_seconds: float = 10.0


class LaneWorker:
    """Works its lane from `start` until `stop`."""

    def __init__(self, lane: Lane, terms: WorkerTerms) -> None:
        signer, _ = read_signer(terms.key)
        self.lane = lane
        self.worker_id = new_worker_id()
        self._terms = terms
        clock = SetClock()
        self._door = HttpLeaseDoor(terms.url, signer, clock)
        self._presence = Presence(self._door, clock, worker_id=self.worker_id, lane=lane.name, slots=lane.slots)
        self._side = WorkerSide(
            name=f"lane-{lane.name}",
            lanes=[lane],
            signers={str(lane.name): signer},
            ring=read_trusted(terms.trusted),
            door=self._door,
            bus_url=terms.bus_url,
            clock=clock,
            worker_id=self.worker_id,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether it takes shards."""
        return self._side.is_running

    def start(self) -> None:
        """Bring up the engine, say so, take shards. Raises BrokerError where the engine or the broker says no."""
        self._side.start_engines()
        try:
            self._presence.announce()
        except DoorShut as error:
            raise BrokerError(f"lane {self.lane.name} can't work: at {self._terms.url}, {error}") from None
        self._presence.start()
        self._side.start_worker()
        _log.info("worker_started", worker=self.worker_id, lane=self.lane.name, slots=self.lane.slots)

    def stop(self) -> None:
        """Take nothing more, hand back what runs, and go; harmless when it has gone."""
        self._presence.leave()
        self._door.shut()
        self._side.stop(interrupted=False, timeout_seconds=self._terms.drain_seconds)
        self._side.close()
        self._door.close()
        _log.info("worker_stopped", worker=self.worker_id, lane=self.lane.name)
