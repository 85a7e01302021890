"""The desk: what a producer or an operator may ask of a running broker, each answered in one transaction."""

from __future__ import annotations

from broker.api.desk.batches import BatchesDesk
from broker.api.desk.jobs import JobsDesk
from broker.api.desk.lanes import LanesDesk
from broker.api.desk.ledger import LedgerDesk
from broker.front import Front

__all__ = ["Desk"]


class Desk:
    """By subject. Every method takes first who asks, and blocks on the database.

    Of jobs, batches and the ledger an identity sees its own tenant's; another's are unknown to it, as what never was.
    Uploads are limited to `upload_bytes_max` bytes and, where not None, to `lines_max` lines.
    """

    def __init__(self, front: Front, lines_max: int | None, upload_bytes_max: int) -> None:
        self.jobs = JobsDesk(front)
        self.batches = BatchesDesk(front, lines_max, upload_bytes_max)
        self.lanes = LanesDesk(front)
        self.ledger = LedgerDesk(front)
