"""The price book: immutable versions, each with its source and date, and which of them holds for a lane when.

A price is never changed: a new one is added, and holds from a moment on. An attempt costs what held when its shard was
dispatched.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.known_lanes import find_lanes
from broker.domain.lane import Lane, Price, PriceMeter
from broker.ledger.tables import price, price_book, price_in_force

__all__ = [
    "CATALOG_BOOK",
    "BookEntry",
    "PriceStanding",
    "PricedLanes",
    "import_book",
    "import_prices",
    "standing_prices",
]

CATALOG_BOOK = "catalog"

_HELD_BACK_US = 1_500_000
"""An imported price holds a second and a half later: by then every process of the broker has read it."""

_FRESH_SECONDS = 0.5


class BookEntry(msgspec.Struct, frozen=True):
    """A lane's price in a book."""

    lane: str
    price: Price


class PriceStanding(msgspec.Struct, frozen=True, kw_only=True):
    """A price that holds, or held, for a lane."""

    lane: str
    price: Price
    from_us: int
    book: str


_IN_FORCE = select(
    price_in_force.c.lane, price_in_force.c.from_us, price_in_force.c.price_version, price_in_force.c.book
).order_by(price_in_force.c.from_us)


def import_prices(connection: Connection, lanes: Sequence[Lane], now_us: int) -> None:
    """Have the catalog's prices hold from now on, where it says another than it said last, be it one from before.

    Where it says the same, what was imported since goes on holding.
    """
    known = set(connection.execute(select(price.c.version)).scalars())
    said: dict[str, str] = {}
    newest_us: dict[str, int] = {}
    for lane, from_us, version, book in connection.execute(_IN_FORCE):
        newest_us[lane] = from_us
        if book == CATALOG_BOOK:
            said[lane] = version
    for one in lanes:
        name, version = str(one.name), one.price.version
        # What it said before 0004 is in no book.
        if said[name] != version if name in said else version not in known:
            from_us = max(now_us, newest_us.get(name, 0) + 1)
            _add(connection, [BookEntry(name, one.price)], CATALOG_BOOK, now_us, from_us)


def import_book(connection: Connection, book: str, source_name: str, entries: Sequence[BookEntry], now_us: int) -> int:
    """Add a book under its name; from when on it holds, in Unix microseconds. A book that is there holds again."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        kind.insert(price_book)
        .values(book=book, source_name=source_name, prices_count=len(entries), imported_us=now_us)
        .on_conflict_do_nothing(index_elements=[price_book.c.book])
    )
    newest_us = connection.execute(select(func.max(price_in_force.c.from_us))).scalar_one() or 0
    from_us = max(now_us + _HELD_BACK_US, newest_us + 1)
    _add(connection, entries, book, now_us, from_us)
    return from_us


def standing_prices(connection: Connection) -> list[PriceStanding]:
    """Every price that ever held, by lane and time."""
    rows = connection.execute(
        select(price_in_force.c.from_us, price_in_force.c.book, price)
        .join(price, price.c.version == price_in_force.c.price_version)
        .order_by(price_in_force.c.lane, price_in_force.c.from_us)
    )
    return [PriceStanding(lane=row.lane, price=_price(row), from_us=row.from_us, book=row.book) for row in rows]


PriceHistory = dict[str, list[tuple[int, Lane]]]
"""By lane: from when on it had which price, in microseconds since 1970."""


class PricedLanes:
    """Lanes with the price that holds for each; a lane of which the book says nothing has its catalog's.

    What `look` read is kept for half a second, during which no new price can begin to hold.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = {str(lane.name): lane for lane in lanes}
        self._history: PriceHistory = {}
        self._looked_at = float("-inf")

    def look(self, connection: Connection, names: Iterable[str] = ()) -> None:
        """Read the book, unless it was read just now; and of these lanes those that this process hasn't heard of.

        A process that started with a newer catalog may have sent shards to them.
        """
        if unknown := set(names) - self._lanes.keys():
            if found := find_lanes(connection, unknown):
                self._looked_at = float("-inf")
            self._lanes |= {str(lane.name): lane for lane in found}
        self.note(self.read(connection))

    def read(self, connection: Connection) -> PriceHistory | None:
        """What the book says of these lanes; None when it was read just now. Changes nothing here: see `note`."""
        if time.monotonic() - self._looked_at < _FRESH_SECONDS:
            return None
        history: PriceHistory = defaultdict(list)
        for standing in standing_prices(connection):
            lane = self._lanes.get(standing.lane)
            if lane is not None:
                history[standing.lane].append((standing.from_us, msgspec.structs.replace(lane, price=standing.price)))
        return history

    def note(self, history: PriceHistory | None) -> None:
        """From now on prices are those that `read` found."""
        if history is not None:
            self._history = history
            self._looked_at = time.monotonic()

    def at(self, name: str, moment_us: int) -> Lane:
        """The lane with the price that held then. KeyError for a lane that never was."""
        history = self._history.get(name)
        if not history:
            return self._lanes[name]
        place = bisect_right(history, moment_us, key=lambda one: one[0])
        return history[max(0, place - 1)][1]

    def all_at(self, moment_us: int) -> list[Lane]:
        """All of them, in their order."""
        return [self.at(name, moment_us) for name in self._lanes]


def _add(connection: Connection, entries: Sequence[BookEntry], book: str, now_us: int, from_us: int) -> None:
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    for entry in entries:
        one = entry.price
        connection.execute(
            kind.insert(price)
            .values(
                version=one.version,
                lane=entry.lane,
                meter=one.meter,
                instance_hour_pico_usd=one.instance_hour_pico_usd,
                input_token_pico_usd=one.input_token_pico_usd,
                output_token_pico_usd=one.output_token_pico_usd,
                source=one.source,
                as_of=one.as_of,
                imported_us=now_us,
                sku=one.sku,
                billing_account=one.billing_account,
                cached_input_token_pico_usd=one.cached_input_token_pico_usd,
                cache_write_token_pico_usd=one.cache_write_token_pico_usd,
                valid_from_us=one.valid_from_us,
                valid_until_us=one.valid_until_us,
            )
            .on_conflict_do_nothing(index_elements=[price.c.version])
        )
        connection.execute(
            kind.insert(price_in_force)
            .values(lane=entry.lane, from_us=from_us, price_version=one.version, book=book)
            .on_conflict_do_nothing(index_elements=[price_in_force.c.lane, price_in_force.c.from_us])
        )


def _price(row: Any) -> Price:  # noqa: ANN401 (a row of the join)
    return Price(
        version=row.version,
        meter=PriceMeter(row.meter),
        instance_hour_pico_usd=row.instance_hour_pico_usd,
        input_token_pico_usd=row.input_token_pico_usd,
        output_token_pico_usd=row.output_token_pico_usd,
        source=row.source,
        as_of=row.as_of,
        cached_input_token_pico_usd=row.cached_input_token_pico_usd,
        cache_write_token_pico_usd=row.cache_write_token_pico_usd,
        sku=row.sku,
        billing_account=row.billing_account,
        valid_from_us=row.valid_from_us,
        valid_until_us=row.valid_until_us,
    )
