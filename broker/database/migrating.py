"""The schema brought up to date: by `broker db upgrade` on PostgreSQL, by itself in the embedded form.

In two phases. *Expand* only adds, in steps that a database in full use doesn't notice: builds from before it go on.
*Contract* removes what older builds need, once none of them is there any more. Each step is a transaction, or can be
done again; who was killed anywhere in between starts again and goes on from there.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from sqlalchemy import Dialect, Engine
from sqlalchemy.exc import DatabaseError

from broker.database.build_sightings import seen_within
from broker.database.history import INSTALLED, History, Revision
from broker.database.lock_waits import OnlineSession, Report, online_session
from broker.database.schema import Schema, check, failure, look, place, refusal, require_current
from broker.database.types import metadata
from broker.domain.errors import BrokerError
from broker.rules.schema_fit import SchemaState, older_sessions

__all__ = ["LATELY_SECONDS", "Planned", "plan", "standing", "statements_of", "upgrade"]

LOCK_KEY = int.from_bytes(b"IBrkmigr")
"""The advisory lock (one to a database) under which PostgreSQL's schema is upgraded."""

LATELY_SECONDS = 600.0
"""A build that was seen since then may come back: nothing that it needs is removed."""


class Planned(NamedTuple):
    """A revision that is to be run, and the SQL of it, as far as that can be said without running it."""

    revision: Revision
    statements: Sequence[str]


def upgrade(
    engine: Engine, history: History = INSTALLED, *, contract: bool = False, report: Report = lambda _: None
) -> SchemaState:
    """Bring an empty or older database up to date; returns the state it was in.

    On PostgreSQL that is the expand phase; with `contract`, that of the contract phase too. SQLite, which one process
    uses, gets all at once, wholly or not at all. Upgrades of one database that run at once wait for each other, the
    later ones find it current. Raises BrokerError where the database is newer, is another program's, can't be opened,
    where a lock can't be had for a quarter of an hour, or where builds are still seen that `contract` would break.
    """
    before = check(engine, history)
    _refuse_others(engine, before, history)
    try:
        if engine.dialect.name == "postgresql":
            if _pending(history, before, contract=contract):
                with online_session(engine, LOCK_KEY, report) as session:
                    return _upgrade_online(engine, session, history, contract=contract, report=report)
        elif _pending(history, before, contract=True):
            return _upgrade_at_once(engine, history)
    except DatabaseError as error:
        raise failure(engine, "upgraded", error) from error
    return before.state


def plan(engine: Engine, history: History = INSTALLED, *, contract: bool = False) -> list[Planned]:
    """What `upgrade` would run; changes nothing."""
    found = check(engine, history)
    _refuse_others(engine, found, history)
    revisions = _pending(history, found, contract=contract)
    return [Planned(revision, statements_of(revision, engine.dialect)) for revision in revisions]


def _refuse_others(engine: Engine, found: Schema, history: History) -> None:
    if found.state in {SchemaState.NEWER, SchemaState.FOREIGN}:
        raise refusal(engine, found, history.build)


def _pending(history: History, found: Schema, *, contract: bool) -> list[Revision]:
    """Without `contract`, what comes before the first of the contract phase: that one keeps its turn.

    Nobody can miss what an empty database never had.
    """
    build = history.build
    if found.state is SchemaState.AHEAD or found.revision == build.revisions[-1]:
        return []
    revisions = history.after(found.revision)
    first = next((index for index, revision in enumerate(revisions) if revision.is_contract), len(revisions))
    return revisions if contract or found.revision is None else revisions[:first]


def _upgrade_at_once(engine: Engine, history: History) -> SchemaState:
    """On SQLite: all in one transaction that holds off every other upgrade."""
    with engine.connect() as connection:
        connection.begin()
        # The driver opens no transaction before DDL, but keeps to one that is open; the engine may have opened it.
        if not getattr(connection.connection.driver_connection, "in_transaction", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        found = look(connection, history.build)  # again: another process may have upgraded it while we waited
        _refuse_others(engine, found, history)
        if _pending(history, found, contract=True):
            history.run(connection)
            connection.commit()
    return found.state


def _upgrade_online(
    engine: Engine, session: OnlineSession, history: History, *, contract: bool, report: Report
) -> SchemaState:
    """On PostgreSQL: step by step, each as short as it can be."""
    before = check(engine, history)  # again: another may have upgraded it while we waited
    _refuse_others(engine, before, history)
    for revision in _pending(history, before, contract=contract):
        if revision.is_contract and before.revision is not None:
            _refuse_while_needed(engine, session, revision)
        for index in getattr(revision.module, "online_indexes", ()):
            index.build(session)
        session.transaction(partial(history.run, target=revision.number))
        report(f"{revision.number} {revision.title}: done.")
    return before.state


def _refuse_while_needed(engine: Engine, session: OnlineSession, revision: Revision) -> None:
    floor = revision.module.oldest_served
    sessions = session.rows(
        "SELECT pid, application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    sightings = session.transaction(lambda connection: seen_within(connection, LATELY_SECONDS))
    found = older_sessions([(int(str(pid)), str(name)) for pid, name in sessions], floor)
    older = [seen for seen in sightings if seen.revision < floor]
    found += [f"a build of schema {seen.revision}, {seen.seconds_ago:.0f} s ago" for seen in older]
    if found:
        raise BrokerError(
            f"Revision {revision.number} removes what builds older than {floor} need, and {place(engine)} still sees"
            f" {', '.join(found[:5])}: replace them, wait {LATELY_SECONDS / 60:g} minutes, and run it again."
        )


def statements_of(revision: Revision, dialect: Dialect) -> list[str]:
    """What a database would be told, by Alembic's own means of saying so without one."""
    from alembic.migration import MigrationContext  # noqa: PLC0415 (only where there is a plan to show)
    from alembic.operations import Operations  # noqa: PLC0415 (as above)

    said = io.StringIO()
    options = {"as_sql": True, "output_buffer": said, "target_metadata": metadata}
    context = MigrationContext.configure(dialect=dialect, opts=options)
    indexes = getattr(revision.module, "online_indexes", ()) if dialect.name == "postgresql" else ()
    online = [statement for index in indexes for statement in index.planned]
    try:
        with Operations.context(context):
            revision.module.upgrade()
    except (AttributeError, TypeError):
        said.write("…;\n\n")  # it asks the database what to do next
    return [*online, *(" ".join(part.split()) for part in said.getvalue().split(";\n\n") if part.strip())]


def standing(engine: Engine, history: History = INSTALLED) -> str:
    """How the schema and this program fit, in a sentence; raises BrokerError where it doesn't serve this program."""
    found = check(engine, history)
    left = _pending(history, found, contract=True) if found.revision else []
    waiting = [revision for revision in left if revision.is_contract]
    if found.state is SchemaState.OLDER and left[0].is_contract:
        raise BrokerError(
            f"Revision {left[0].number} removes what older builds need, and this program needs what follows it: replace"
            f" the builds before {left[0].module.oldest_served}, and run `broker db upgrade --contract`."
        )
    require_current(engine, history)
    where = place(engine)
    if found.state is SchemaState.AHEAD:
        return f"{where} has the later schema {found.revision}, which still serves this program."
    if waiting:
        numbers = ", ".join(revision.number for revision in waiting)
        return f"{where} is up to date. Once no older build is left, `broker db upgrade --contract` runs {numbers}."
    return f"{where} is up to date."
