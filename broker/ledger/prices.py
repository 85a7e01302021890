"""The price book: immutable versions, each with its source and date."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from broker.domain.lane import Lane
from broker.ledger.tables import price

__all__ = ["import_prices"]


def import_prices(connection: Connection, lanes: Sequence[Lane], now_us: int) -> None:
    """Add the lanes' prices; a version that is there already is the same price and stays as it is."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    for lane in lanes:
        connection.execute(
            kind.insert(price)
            .values(
                version=lane.price.version,
                lane=lane.name,
                meter=lane.price.meter,
                instance_hour_pico_usd=lane.price.instance_hour_pico_usd,
                input_token_pico_usd=lane.price.input_token_pico_usd,
                output_token_pico_usd=lane.price.output_token_pico_usd,
                source=lane.price.source,
                as_of=lane.price.as_of,
                imported_us=now_us,
            )
            .on_conflict_do_nothing(index_elements=[price.c.version])
        )
