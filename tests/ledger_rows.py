"""Ledger rows of all shapes for hypothesis, a writer of version 1, and every edit that someone could make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from sqlalchemy import Column, ColumnElement, Connection, Table, Update, insert, select, text, update

from broker.database.connection import Database
from broker.database.types import Id
from broker.domain.ids import new_id
from broker.ledger import tables
from broker.ledger.canonical import FIRST_PREVIOUS_HASH, BatchRecord, batch_hash, row_leaf
from broker.ledger.tables import attempt, cost_entry, job_outcome, ledger_batch
from broker.ledger.verifying import verify
from broker.ledger.versions import columns_of
from broker.ledger.writing import AttemptRow, CostEntryRow, Flush, OutcomeRow, ShardFacts
from broker.rules.merkle import merkle_root

__all__ = ["LEDGER", "NOT_PROVEN", "append_first_version", "edits_of", "flushes", "missed_edits"]

INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 127, 128, -33, 2**31, 2**63 - 1, -(2**63)])
COST = st.integers(-(2**58), 2**58)  # sums of them fit
TEXT = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


def _values(column: Column[Any]) -> st.SearchStrategy[Any]:
    kind, length = column.type, getattr(column.type, "length", None)
    of_kind: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        bytes: st.binary(min_size=length or 16, max_size=length or 16),
        str: st.text(TEXT, max_size=min(length or 300, 300)),
        int: INT64 if "BIG" in str(kind) else st.integers(-(2**31), 2**31 - 1),
    }
    found = of_kind[bytes if isinstance(kind, Id) else kind.python_type]
    if column.name == "cost_nano_usd":
        found = COST
    return st.none() | found if column.nullable else found


def _fields(table: Table, names: tuple[str, ...]) -> dict[str, st.SearchStrategy[Any]]:
    return {name: _values(table.c[name]) for name in names}


_FACTS = st.builds(ShardFacts, **_fields(attempt, ShardFacts._fields))
_OWN = _fields(attempt, tuple(name for name in AttemptRow._fields if name != "shard"))
_OUTCOMES = st.builds(OutcomeRow, **_fields(job_outcome, OutcomeRow.__struct_fields__) | {"job_id": st.builds(new_id)})
_ENTRIES = st.builds(CostEntryRow, **_fields(cost_entry, CostEntryRow.__struct_fields__))


@st.composite
def flushes(draw: st.DrawFn) -> Flush:
    """Rows of several shards, with nulls, flags, any text and the largest numbers."""
    shards = [st.just(facts) for facts in draw(st.lists(_FACTS, min_size=1, max_size=3))]
    rows = st.builds(AttemptRow, shard=st.one_of(shards), **_OWN)
    # A price that nobody imported has no digest that could be checked.
    attempts = [row._replace(shard=row.shard._replace(price_digest=None)) for row in draw(st.lists(rows, max_size=5))]
    return Flush(attempts, draw(st.lists(_OUTCOMES, max_size=3)), draw(st.lists(_ENTRIES, max_size=3)))


def append_first_version(connection: Connection, stream_id: bytes, rows: dict[Table, list[dict[str, Any]]]) -> None:
    """Append as the first version did; `rows` lack the proof columns."""
    last = connection.execute(
        select(ledger_batch).where(ledger_batch.c.stream_id == stream_id).order_by(ledger_batch.c.batch_number.desc())
    ).first()
    number, seq = (last.batch_number + 1, last.first_seq + last.rows_count) if last else (0, 0)
    leaves, cost, first = [], 0, seq
    for table, given in rows.items():
        for row in given:
            proof = {"stream_id": stream_id, "seq": seq, "ledger_batch": number, "schema_version": 1}
            values = row | proof
            values["leaf"] = row_leaf(str(table.name), [values[name] for name in columns_of(table, 1)])
            connection.execute(insert(table).values(values))
            leaves.append(values["leaf"])
            seq, cost = seq + 1, cost + values.get("cost_nano_usd", 0)
    record: dict[str, Any] = {
        "stream_id": stream_id,
        "batch_number": number,
        "schema_version": 1,
        "first_seq": first,
        "rows_count": len(leaves),
        "sum_cost_nano_usd": cost,
        "merkle_root": merkle_root(leaves),
        "previous_hash": bytes(last.batch_hash) if last else FIRST_PREVIOUS_HASH,
        "committed_us": 1,
    }
    made = batch_hash(BatchRecord(slot="", **record))
    connection.execute(insert(ledger_batch).values(batch_hash=made, **record))


LEDGER = (
    attempt,
    cost_entry,
    job_outcome,
    ledger_batch,
    tables.ledger_stream,
    tables.ledger_seal_leaf,
    tables.ledger_checkpoint,
    tables.price,
    tables.price_book,
    tables.price_in_force,
)

_NEVER = {
    "ledger_stream.opened_us",
    "price.lane",
    "price.imported_us",
    *(f"{table.name}.{column.name}" for table in (tables.price_book, tables.price_in_force) for column in table.c),
}
NOT_PROVEN = {
    # What no batch or attempt of version 2 speaks of: the stream's slot, a batch's time, a price.
    1: _NEVER
    | {"ledger_stream.slot", "ledger_batch.committed_us"}
    | {f"price.{column.name}" for column in tables.price.c},
    2: _NEVER,
}
"""Columns that nothing in the chain is of, by the version of their row, or of the rows that name it."""


def edits_of(connection: Connection, table: Table, version: int) -> Iterator[tuple[str, Update]]:
    """Every column of one row of this version, each changed to something else, and from and to null."""
    query = select(table).limit(1)
    if "schema_version" in table.c:
        query = query.where(table.c.schema_version == version)
    if table is tables.price:
        named = select(attempt.c.price_version).where(_of(attempt, version))
        query = query.where(tables.price.c.version.in_(named)).order_by(tables.price.c.version)
    if table is tables.ledger_stream:
        streams = select(ledger_batch.c.stream_id).where(_of(ledger_batch, version))
        query = query.where(tables.ledger_stream.c.stream_id.in_(streams)).order_by(tables.ledger_stream.c.slot)
    row = connection.execute(query).one()
    here = [column == row._mapping[column.name] for column in table.primary_key]
    for column in table.c:
        value = row._mapping[column.name]
        for other in _others(column, value):
            yield column.name, update(table).where(*here).values({column.name: other})


def _of(table: Table, version: int) -> ColumnElement[bool]:
    return table.c.schema_version == version


def missed_edits(database: Database, version: int, notes: list[str], keys: list[bytes]) -> tuple[int, set[str]]:
    """How many edits were tried on rows of this version, each undone again; and the columns where one was not found."""
    missed: set[str] = set()

    def work(connection: Connection) -> int:
        assert verify(connection, notes, keys).faults == []
        without_triggers(connection)
        tried = 0
        for table in LEDGER:
            for column, edit in list(edits_of(connection, table, version)):
                attempted = connection.begin_nested()
                assert connection.execute(edit).rowcount == 1
                if not verify(connection, notes, keys).faults:
                    missed.add(f"{table.name}.{column}")
                attempted.rollback()
                tried += 1
        return tried

    return database.write(work), missed


def without_triggers(connection: Connection) -> None:
    """As someone would begin who owns the database."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        return
    for name in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all():
        connection.execute(text(f'DROP TRIGGER "{name}"'))


def _others(column: Column[Any], value: Any) -> Iterator[Any]:
    if column.name == "schema_version":
        yield from (3 - value, 99)
        return
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1_000_003  # no neighbour's
        case bytes():
            yield bytes([value[0] ^ 1]) + value[1:]  # no neighbour's
        case str():
            yield value[:-1] + ("x" if value[-1:] != "x" else "y")
        case _:
            kind = bytes if isinstance(column.type, Id) else column.type.python_type
            yield {bool: False, bytes: bytes(getattr(column.type, "length", None) or 16), str: "", int: 0}[kind]
    if column.nullable and value is not None:
        yield None
