"""Price books over HTTP."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, post
from litestar.datastructures import State
from litestar.params import FromQuery

from broker.api.errors import Refused
from broker.api.gate import Scope
from broker.api.threads import in_thread
from broker.catalog.price_files import read_prices
from broker.domain.errors import UsageError
from broker.front import Front
from broker.ledger.prices import BookEntry, import_book
from broker.wakeups import Topic

__all__ = ["PricesView", "routes", "take_prices_in"]

_NAME_CHARS_MAX = 256


class PricesView(msgspec.Struct, frozen=True):
    """The book that a file became, and of how many lanes it has the price."""

    book: str
    prices: int


@post("/v1/prices", scope_needed=Scope.LANES_WRITE, status_code=200)
async def import_prices(
    state: State, request: Request[Any, Any, Any], name: FromQuery[str] = "prices.csv"
) -> PricesView:
    """The body is the CSV file; its prices hold two seconds later."""
    content = await request.body()
    found: PricesView = await in_thread(state.desk.import_prices, name[:_NAME_CHARS_MAX], content)
    return found


def take_prices_in(front: Front, name: str, content: bytes) -> PricesView:
    """Check a book and have it hold. Raises Refused, saying which row and field is at fault."""
    try:
        found = read_prices(name, content, front.lanes)
    except UsageError as error:
        raise Refused(400, "invalid_file", str(error), field="file") from None
    entries = [BookEntry(lane, price) for lane, price in found.prices.items()]
    now_us = front.clock()
    front.database.write(lambda connection: import_book(connection, found.book, name, entries, now_us))
    front.wakeups.notify(Topic.PLANNER)
    return PricesView(found.book, len(entries))


routes = [import_prices]
