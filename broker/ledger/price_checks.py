"""Checking prices against the attempts that were paid at them: a price is in no chain, but its digest is in theirs."""

from __future__ import annotations

from sqlalchemy import Connection, select

from broker.ledger.digests import price_digest
from broker.ledger.tables import price

__all__ = ["PricesNamed"]


class PricesNamed:
    """The prices that attempts of version 2 and later name, with the digests that they carry."""

    def __init__(self) -> None:
        self._digests: dict[str, set[bytes]] = {}

    def note(self, version: object, digest: bytes | None) -> None:
        """An attempt was paid at this price; without a digest where it is of version 1.

        What can't be a version is no price's: the attempt's own leaf tells of it.
        """
        if digest is not None and isinstance(version, str):
            self._digests.setdefault(version, set()).add(digest)

    def faults(self, connection: Connection) -> list[str]:
        """Each price that is not what an attempt was paid at, in a sentence."""
        faults = []
        for row in connection.execute(select(price).where(price.c.version.in_(sorted(self._digests)))):
            noted = self._digests.pop(row.version)
            if noted != {price_digest(row)}:
                faults.append(f"price {row.version} is not what attempts were paid at")
        return faults + [f"price {version} is gone, and attempts were paid at it" for version in self._digests]
