"""The broker's object store for what a lane's bus can't carry: parked, fetched, signed for, and tidied up."""

from __future__ import annotations

from collections.abc import Collection

import structlog

from broker.bootstrap.buses import open_store
from broker.bus.claim_check import ClaimCheck, SharedPlace, parked_path, sweep
from broker.bus.envelope import Kind
from broker.bus.payload_store import StoreUnavailable
from broker.clock import Clock
from broker.database import shards
from broker.database.connection import Connection, Database
from broker.domain.parked import AskToPark, ParkAnswer
from broker.signing import KeyRing, Signer

__all__ = ["SWEEP_SECONDS", "Payloads"]

SWEEP_SECONDS = 60.0
_SIGNED_SECONDS = 300
_KEPT_SECONDS = 600.0

_log = structlog.get_logger(__name__)


class Payloads:
    """Bodies that go by reference. Raises UsageError where `url` names no store that can be used."""

    def __init__(self, url: str, database: Database) -> None:
        self._store = open_store(url, makes_folder=True)
        self._database = database

    def claim_check(self, signer: Signer, ring: KeyRing, clock: Clock) -> ClaimCheck:
        """For the broker's publishers and inboxes."""
        return ClaimCheck.of_broker(SharedPlace(self._store), signer, ring, clock)

    def sign_parking(self, question: AskToPark) -> ParkAnswer:
        """Where one event may be parked, for a worker that can't reach the store by itself."""
        path = parked_path(Kind.EVENT_TICKET, question.lane, question.shard_id, question.digest)
        try:
            return ParkAnswer(path, self._store.sign("PUT", path, _SIGNED_SECONDS))
        except StoreUnavailable as error:
            _log.warning("parking_not_signed", lane=question.lane, reason=str(error))
            return ParkAnswer()

    def sweep(self, kept_seconds: float = _KEPT_SECONDS) -> None:
        """Delete what waits for no one. What can't be reached now is reached the next time."""
        try:
            sweep(self._store, self._ended, kept_seconds=kept_seconds)
        except StoreUnavailable as error:
            _log.warning("payloads_not_swept", reason=str(error))

    def _ended(self, shard_ids: Collection[bytes]) -> set[bytes]:
        def work(connection: Connection) -> set[bytes]:
            found = shards.load(connection, sorted(shard_ids))
            return {each for each in shard_ids if each not in found or found[each].state not in shards.OPEN_STATES}

        return self._database.read(work)
