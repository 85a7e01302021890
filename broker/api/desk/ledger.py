"""What may be asked of the ledger."""

from __future__ import annotations

from typing import Any

from broker.api.errors import Refused
from broker.database.connection import Connection
from broker.database.statement_limits import limit_statements, was_cut_off
from broker.domain.errors import UsageError
from broker.domain.identity import Identity
from broker.front import Front
from broker.ledger.questions import Filters, summary

__all__ = ["LedgerDesk"]

_SUMMARY_SECONDS_MAX = 60


class LedgerDesk:
    """What the asking tenant's attempts came to."""

    def __init__(self, front: Front) -> None:
        self._database = front.database

    def summary(self, identity: Identity, by: str) -> list[dict[str, Any]]:
        """See `broker.ledger.questions.summary`."""
        keys = [key.strip() for key in by.split(",") if key.strip()]
        filters = Filters(tenant_id=identity.tenant)

        def work(connection: Connection) -> list[dict[str, Any]]:
            limit_statements(connection, _SUMMARY_SECONDS_MAX)
            return summary(connection, keys, filters)

        try:
            return self._database.read(work)
        except UsageError as error:
            raise Refused(400, "invalid_field", str(error).removeprefix("--"), field="by") from None
        except Exception as error:
            if not was_cut_off(error):
                raise
            message = (
                f"the summary takes longer than {_SUMMARY_SECONDS_MAX} s; `broker ledger summary` may take its time"
            )
            raise Refused(503, "too_slow", message) from None
