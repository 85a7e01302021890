"""What the doors to producers and operators work with, in whatever form the broker runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from broker.clock import Clock
from broker.database.connection import Connection, Database
from broker.database.submissions import ensure_tenant
from broker.domain.identity import LOCAL
from broker.domain.lane import Lane
from broker.health import HealthBook
from broker.intake.batch_files import BatchFiles
from broker.intake.outlook import Outlook
from broker.intake.reruns import Reruns
from broker.intake.single_jobs import SingleJobs
from broker.wakeups import Topic, Wakeups

__all__ = ["Front"]


class Front:
    """`folder` holds `uploads`, files on their way in, and `batches`, the files that came of them.

    `renew_soon` has the workers that can be told so ask the lease door, where they hear what is to be cancelled;
    others hear it at their next renewal. `live_slots` are those of each lane's live workers, where workers come and
    go; else they are the catalog's.
    """

    def __init__(
        self,
        *,
        database: Database,
        lanes: Sequence[Lane],
        clock: Clock,
        wakeups: Wakeups,
        health: HealthBook,
        folder: Path,
        renew_soon: Callable[[], None] = lambda: None,
        live_slots: Callable[[Connection], Mapping[str, int]] | None = None,
    ) -> None:
        self.database = database
        self.lanes = lanes
        self.clock = clock
        self.wakeups = wakeups
        self.health = health
        self.renew_soon = renew_soon
        catalog_slots = {str(lane.name): lane.slots for lane in lanes}
        self.live_slots = live_slots or (lambda _connection: catalog_slots)
        self.uploads = folder.absolute() / "uploads"
        self.batch_files = folder.absolute() / "batches"
        self.outlook = Outlook(database, lanes, clock)
        models = {model for lane in lanes for model in lane.engine.models}
        self.intake = BatchFiles(database, models, clock, wakeups, lanes)
        self.reruns = Reruns(database, models, clock, wakeups, lanes, self.intake.insert)
        database.write(lambda connection: ensure_tenant(connection, LOCAL.tenant, clock()))
        self.submitting = SingleJobs(database, clock, wakeups)

    def hurry(self) -> None:
        """Something is to be cancelled: the closer ends what waits, workers hear of it at the lease door."""
        self.wakeups.notify(Topic.CLOSER, Topic.READER)
        self.renew_soon()
