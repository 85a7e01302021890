"""What may be asked of the ledger."""

from __future__ import annotations

from typing import Any

from broker.api.errors import Refused
from broker.domain.errors import UsageError
from broker.domain.identity import Identity
from broker.front import Front
from broker.ledger.questions import Filters, summary

__all__ = ["LedgerDesk"]


class LedgerDesk:
    """What the asking tenant's attempts came to."""

    def __init__(self, front: Front) -> None:
        self._database = front.database

    def summary(self, identity: Identity, by: str) -> list[dict[str, Any]]:
        """See `broker.ledger.questions.summary`."""
        keys = [key.strip() for key in by.split(",") if key.strip()]
        filters = Filters(tenant_id=identity.tenant)
        try:
            return self._database.read(lambda connection: summary(connection, keys, filters))
        except UsageError as error:
            raise Refused(400, "invalid_field", str(error).removeprefix("--"), field="by") from None
