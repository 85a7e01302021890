"""Price books over HTTP."""

from __future__ import annotations

from typing import Any

from litestar import Request, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromQuery

from broker.api.threads import in_thread
from broker.domain.answers import PricesTaken
from broker.domain.identity import Identity

__all__ = ["routes"]

_NAME_CHARS_MAX = 256


@post("/prices", status_code=200)
async def import_prices(
    state: State,
    identity: NamedDependency[Identity],
    request: Request[Any, Any, Any],
    name: FromQuery[str] = "prices.csv",
) -> PricesTaken:
    """The body is the CSV file; its prices hold two seconds later."""
    content = await request.body()
    return await in_thread(state.desk.lanes.import_prices, identity, name[:_NAME_CHARS_MAX], content)


routes = [import_prices]
