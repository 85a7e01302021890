"""A ledger that is written and sealed, and that tests tamper with."""

from __future__ import annotations

from sqlalchemy import delete, select, text

from broker.ledger.checkpoints import CheckpointFile
from broker.ledger.tables import (
    attempt,
    cost_entry,
    job_outcome,
    ledger_batch,
    ledger_checkpoint,
    ledger_seal_leaf,
    ledger_stream,
)
from broker.ledger.verifying import verify
from broker.ledger.writing import Flush, append, open_stream
from broker.stages.sealer import Sealer
from tests.unit.builders import NOW_US, FixedClock, a_signer, an_attempt_row, an_outcome_row

SIGNER, _ = a_signer()
KEYS = [SIGNER.public_bytes]
ROWS = (attempt, job_outcome, cost_entry)


class Ledger:
    """A ledger that is written, sealed, and tampered with."""

    def __init__(self, database, folder):
        self.database = database
        self.file = CheckpointFile(folder / "checkpoints.jsonl")
        self.path = folder / "checkpoints.jsonl"
        self.clock = FixedClock()
        self.sealer = self.another()

    def another(self, signer=SIGNER):
        return Sealer(database=self.database, places=[self.file], signer=signer, clock=self.clock)

    def write(self, batches, slot="recorder-0"):
        def work(connection):
            stream = open_stream(connection, slot, NOW_US)
            for _ in range(batches):
                rows = Flush(attempts=[an_attempt_row(cost_nano_usd=7) for _ in range(3)], outcomes=[an_outcome_row()])
                append(connection, stream, rows, self.clock())

        self.database.write(work)

    def seal(self):
        self.clock.advance(10)
        while self.sealer.step():
            pass

    def verify(self, published=True):
        notes = list(self.file.notes()) if published else []
        return self.database.read(lambda connection: verify(connection, notes, KEYS))

    def faults(self, published=True):
        return self.verify(published).faults

    def rows(self, table):
        return self.database.read(lambda connection: connection.execute(select(table)).all())

    def stream(self, slot="recorder-0"):
        return next(row.stream_id for row in self.rows(ledger_stream) if row.slot == slot)

    def tamper(self, *statements):
        """As someone would who owns the database: the triggers go first."""

        def work(connection):
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL session_replication_role = replica"))
            else:
                found = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
                for name in found.scalars().all():
                    connection.execute(text(f'DROP TRIGGER "{name}"'))
            for statement in statements:
                connection.execute(statement)

        self.database.write(work)

    def cut(self, slot, first):
        """Statements that take a stream's batches away from this one on, with their rows."""
        stream = self.stream(slot)
        yield delete(ledger_batch).where(ledger_batch.c.stream_id == stream, ledger_batch.c.batch_number >= first)
        for table in ROWS:
            yield delete(table).where(table.c.stream_id == stream, table.c.ledger_batch >= first)

    def unseal(self, size):
        """Statements that make the seals look as they were at this size."""
        yield delete(ledger_seal_leaf).where(ledger_seal_leaf.c.tree_index >= size)
        yield delete(ledger_checkpoint).where(ledger_checkpoint.c.tree_size > size)


def a_sealed_ledger(database, folder):
    """Two checkpoints: of four batches of two streams, and of three more; one batch is not sealed yet."""
    made = Ledger(database, folder)
    made.write(3)
    made.write(1, slot="rescuer-0")
    made.seal()
    made.write(1, slot="rescuer-0")
    made.write(2)
    made.seal()
    made.write(1)
    return made
