"""Which columns a ledger row has in each version: a row is hashed, verified and proven by its own version.

A version only ever adds columns, at the end of its tables. To add one: its columns here, in `broker.ledger.tables` and
in a migration, and `CURRENT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from sqlalchemy import Table

from broker.domain.errors import BrokerError

__all__ = ["CURRENT", "UnknownVersion", "columns_of"]

CURRENT = 2
"""The version in which rows and batch records are written."""

_ADDED: Mapping[int, Mapping[str, tuple[str, ...]]] = {
    1: {},
    2: {
        "attempt": (
            # What it shares with the other jobs of its shard.
            "resource_id",
            "zone",
            "endpoint",
            "claimed_us",
            "currency",
            "price_digest",
            "decision_digest",
            # Its own.
            "due_us",
            "first_token_us",
            "cache_write_tokens",
            "usage_basis",
            "tier_asked",
            "tier_served",
            "key_id",
            "tags",
            "charged_nano_usd",
        ),
        "cost_entry": ("resource_id", "region", "zone", "accelerator", "currency", "bill_line_digest"),
        "job_outcome": ("attempt_number", "submission_digest"),
    },
}
"""What each version added, in the tables' order."""


class UnknownVersion(BrokerError):
    """A row of a version that this program doesn't know."""

    def __init__(self, version: object) -> None:
        known = " and ".join(str(number) for number in _ADDED)
        super().__init__(f"it is of ledger version {version}, and this program knows {known}")


@lru_cache(maxsize=64)
def columns_of(table: Table, version: int) -> tuple[str, ...]:
    """The columns of a row of this version in the order of its canonical bytes, without `leaf`.

    Raises UnknownVersion for one that was never written by this program or an earlier one.
    """
    if version not in _ADDED:
        raise UnknownVersion(version)
    later = {name for number, added in _ADDED.items() if number > version for name in added.get(str(table.name), ())}
    return tuple(column.name for column in table.c if column.name != "leaf" and column.name not in later)
