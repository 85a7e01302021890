"""A role that is started before `broker db upgrade` waits for it: so processes may be replaced in any order."""

from __future__ import annotations

import threading

import structlog

from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms
from broker.database.drivers.postgres.patience import is_connection_lost
from broker.database.history import INSTALLED
from broker.database.schema import check, require_current
from broker.domain.errors import BrokerError
from broker.rules.schema_fit import SchemaState

__all__ = ["wait_for_schema"]

LOOK_SECONDS = 2.0

_log = structlog.get_logger(__name__)


def wait_for_schema(url: str, stopping: threading.Event) -> bool:
    """Return True once the schema serves this program, at once where it does; False where `stopping` was set before.

    Only an older schema is waited for. Raises BrokerError, in one sentence, where the database is empty, newer in a
    way that no longer serves this program, another program's, or can't be reached at first.
    """
    database = PostgresDatabase(url, PostgresTerms(name="broker serve"))
    waiting = False
    try:
        while True:
            try:
                found = check(database.engine)
            except BrokerError as error:
                if not waiting or error.__cause__ is None or not is_connection_lost(error.__cause__):
                    raise
            else:
                if found.state is not SchemaState.OLDER:
                    require_current(database.engine)
                    return True
                if not waiting:
                    waiting = True
                    _log.warning(
                        "schema_is_older",
                        schema=found.revision,
                        needed=INSTALLED.build.needed,
                        action="run `broker db upgrade`; this process resumes by itself",
                    )
            if stopping.wait(LOOK_SECONDS):
                return False
    finally:
        database.close()
