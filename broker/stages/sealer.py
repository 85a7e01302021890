"""Sealer: what the ledger holds is signed every few seconds, and the signature kept outside the database.

It signs nothing that contradicts what is published: where the database holds less, or something else, than a published
checkpoint says, it stops and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import structlog

from broker.clock import Clock
from broker.database.connection import Connection, Database
from broker.domain.errors import BrokerError
from broker.ledger.checkpoints import CheckpointPlace
from broker.ledger.sealing import BATCHES_PER_CHECKPOINT, Sealed, checkpoints_after, grown_to, seal, sealed_count
from broker.rules.growing_tree import GrowingTree
from broker.signing import Signer

__all__ = ["SEAL_SECONDS", "Sealer"]

SEAL_SECONDS = 10.0
_NOTES_TOGETHER = 500

_log = structlog.get_logger(__name__)


class Sealer:
    """Seals one ledger. `places` are where its checkpoints go; each gets them all, in their order."""

    def __init__(self, *, database: Database, places: Sequence[CheckpointPlace], signer: Signer, clock: Clock) -> None:
        self._database = database
        self._places = places
        self._signer = signer
        self._clock = clock
        self._tree = GrowingTree()

    def step(self) -> bool:
        """Seal what is new, and publish what is not published yet; whether there may be more to seal."""
        before = self._database.read(sealed_count)
        if before == 0 or before != self._tree.size:
            self._check_published()
        sealed = self._database.write(self._seal)
        self._tree = sealed.tree
        self._publish()
        if sealed.checkpoint:
            _log.info("ledger_sealed", batches=sealed.checkpoint.tree_size, new=sealed.tree.size - before)
        return sealed.tree.size - before >= BATCHES_PER_CHECKPOINT

    def _seal(self, connection: Connection) -> Sealed:
        return seal(connection, self._tree, self._signer, self._clock())

    def _check_published(self) -> None:
        """Another has sealed, or we have just begun: the database must hold what was published."""
        for place in self._places:
            last = place.last()
            if last is None:
                continue
            size = last.tree_size
            tree = self._database.read(partial(grown_to, size=size))
            if tree.size < size:
                raise BrokerError(
                    f"the ledger has {tree.size:,} sealed batches, and a published checkpoint says {size:,}:"
                    " its end was cut off, or it is an old backup; nothing is signed before that is explained"
                )
            if tree.root != last.root:
                raise BrokerError(
                    f"the first {size:,} sealed batches are not those that a published checkpoint is of:"
                    " nothing is signed before that is explained"
                )

    def _publish(self) -> None:
        for place in self._places:
            last = place.last()
            size = last.tree_size if last else 0
            while found := self._database.read(partial(checkpoints_after, tree_size=size, limit=_NOTES_TOGETHER)):
                for checkpoint in found:
                    place.publish(checkpoint)
                size = found[-1].tree_size
