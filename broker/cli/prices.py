"""`broker prices`: what each lane costs, since when, and by which source."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.options import (
    CatalogOption,
    DatabaseOption,
    DataOption,
    FormatOption,
    UrlOption,
    open_client,
    read_settings,
)
from broker.cli.printing import OutputFormat, print_rows, say
from broker.clock import utc_now_us
from broker.domain.errors import BrokerError, UsageError
from broker.domain.lane import Lane, Price, PriceMeter
from broker.domain.money import PICO_PER_USD

if TYPE_CHECKING:
    from broker.catalog.price_files import PriceFile
    from broker.database.connection import Connection
    from broker.ledger.prices import BookEntry
    from broker.settings import Settings

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What each lane costs, since when, by which source.")

FileArgument = Annotated[Path, typer.Argument(help="CSV; docs/placement.md names its columns.")]


@app.command("import")
def import_prices(
    file: FileArgument,
    data: DataOption = None,
    catalog: CatalogOption = None,
    database_url: DatabaseOption = None,
    url: UrlOption = None,
) -> None:
    """Check a price book and have it hold, within two seconds; a price that holds is never changed, only followed."""
    from broker.catalog.lanes import load_lanes

    settings = read_settings(data, catalog)
    content = _content(file)
    if database := database_url or settings.database_url:
        book, count = _import_into(database, file, content, load_lanes(settings.catalog))
    else:
        book, count = _import_into_folder(settings, file, content, url)
    say(f"Book {book}: {count} price(s) hold from now on.")


def _import_into(database_url: str, file: Path, content: bytes, lanes: list[Lane]) -> tuple[str, int]:
    from broker.catalog.price_files import read_prices
    from broker.database import workers
    from broker.database.drivers.postgres.database import open_postgres
    from broker.ledger.prices import import_book

    found = read_prices(str(file), content, lanes)
    database = open_postgres(database_url, name="broker prices")
    try:
        now_us = database.read(workers.database_now_us)
        database.write(lambda connection: import_book(connection, found.book, file.name, _entries(found), now_us))
    finally:
        database.close()
    return found.book, len(found.prices)


def _import_into_folder(settings: Settings, file: Path, content: bytes, url: str | None) -> tuple[str, int]:
    """Through the broker that works on the folder; where none does, directly."""
    from broker.bootstrap.data_folder import open_database
    from broker.catalog.lanes import load_lanes
    from broker.catalog.price_files import read_prices
    from broker.database.drivers.sqlite.database import lock_folder
    from broker.ledger.prices import import_book

    try:
        lock = lock_folder(settings.data)
    except BrokerError:
        with open_client(settings.data, url) as client:
            answer = client.import_prices(file.name, content)
        return answer.book, answer.prices
    found = read_prices(str(file), content, load_lanes(settings.catalog))
    database = open_database(settings.data)
    try:
        now_us = utc_now_us()
        database.write(lambda connection: import_book(connection, found.book, file.name, _entries(found), now_us))
    finally:
        database.close()
        os.close(lock)
    return found.book, len(found.prices)


@app.command("list")
def list_prices(
    every: Annotated[bool, typer.Option("--all", help="Also prices that held before.")] = False,
    data: DataOption = None,
    database_url: DatabaseOption = None,
    shape: FormatOption = OutputFormat.TABLE,
) -> None:
    """What each lane costs, since when, by which book and source."""
    from broker.bootstrap.ledger_reader import read_ledger
    from broker.ledger.prices import standing_prices

    settings = read_settings(data)
    found = read_ledger(settings.data, database_url or settings.database_url, standing_prices)
    newest = {one.lane: one for one in found}
    rows = [
        {
            "lane": one.lane,
            "price": _words(one.price),
            "holds from": _time(one.from_us),
            "book": one.book,
            "version": one.price.version,
            "source": one.price.source,
            "as of": one.price.as_of,
        }
        for one in (found if every else newest.values())
    ]
    print_rows(rows, shape)


@app.command("diff")
def diff_prices(
    file: FileArgument,
    data: DataOption = None,
    catalog: CatalogOption = None,
    database_url: DatabaseOption = None,
    shape: FormatOption = OutputFormat.TABLE,
) -> None:
    """What a price book would change, without importing it."""
    from broker.bootstrap.ledger_reader import read_ledger
    from broker.catalog.lanes import load_lanes
    from broker.catalog.price_files import read_prices
    from broker.ledger.prices import PricedLanes

    settings = read_settings(data, catalog)
    lanes = load_lanes(settings.catalog)
    found = read_prices(str(file), _content(file), lanes)
    priced = PricedLanes(lanes)

    def held(connection: Connection) -> dict[str, Price]:
        priced.look(connection)
        return {str(lane.name): lane.price for lane in priced.all_at(utc_now_us())}

    now = read_ledger(settings.data, database_url or settings.database_url, held)
    rows = [_difference(lane, now[lane], price) for lane, price in sorted(found.prices.items())]
    print_rows(rows, shape)


def _difference(lane: str, now: Price, then: Price) -> dict[str, Any]:
    before, after = _comparable(now), _comparable(then)
    change = f"{(after / before - 1) * 100:+.1f} %" if before else ""
    return {"lane": lane, "now": _words(now), "then": _words(then), "change": change, "source": then.source}


def _comparable(price: Price) -> Decimal:
    return Decimal(price.instance_hour_pico_usd or price.input_token_pico_usd + price.output_token_pico_usd)


def _entries(found: PriceFile) -> list[BookEntry]:
    from broker.ledger.prices import BookEntry

    return [BookEntry(lane, price) for lane, price in found.prices.items()]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from None


def _words(price: Price) -> str:
    if price.meter is PriceMeter.ACCELERATOR_HOUR:
        return f"${_plain(price.instance_hour_pico_usd)}/hour"
    return f"${_plain(price.input_token_pico_usd * 10**6)} in, ${_plain(price.output_token_pico_usd * 10**6)} out/Mtok"


def _plain(pico: int) -> str:
    return f"{(Decimal(pico) / PICO_PER_USD).normalize():f}"


def _time(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
