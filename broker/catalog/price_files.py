"""Price books: CSV files of prices, each with its source and date, checked whole before any of it counts.

What is at fault is told in one sentence that names file, row and field. A row is the price of an instance, of a chip or
of a core (`unit`), by the hour, on demand and spot; or of a million tokens, for the lane that it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import Any

import msgspec

from broker.catalog.csv_rows import CsvRow, read_rows
from broker.catalog.known_hardware import known_accelerators, known_regions
from broker.catalog.prices import price_of
from broker.domain.errors import UsageError
from broker.domain.lane import Lane, Market, Price, PriceMeter, Provider

__all__ = ["PriceFile", "read_prices"]

_COLUMNS = (
    "lane",
    "provider",
    "region",
    "accelerator",
    "accelerator_count",
    "unit",
    "on_demand_usd_per_hour",
    "spot_usd_per_hour",
    "input_usd_per_mtok",
    "output_usd_per_mtok",
    "cached_input_usd_per_mtok",
    "source",
    "as_of",
    "notes",
)
_NEEDED = ("source", "as_of")
_CACHED = "cached_input_usd_per_mtok"
_DAYS_MAX = 365
_SENTINELS = frozenset({Decimal(700), Decimal(999), Decimal(9_999), Decimal(99_999)})
"""What catalogs write for `not sold here`; SkyPilot's writes 700.0."""

_CORES_PER_CHIP = {"tpu-v2": 2, "tpu-v3": 2, "tpu-v4": 2, "tpu-v5p": 2}
_HOUR_USD_MAX = Decimal(100)
_MTOK_USD_MAX = Decimal(1_000)


class PriceFile(msgspec.Struct, frozen=True):
    """A book: its name, which follows from its content, and the price of each lane that it has one for."""

    book: str
    prices: dict[str, Price]
    rows: int


def read_prices(name: str, content: bytes, lanes: Sequence[Lane], today: date | None = None) -> PriceFile:
    """The book in a file. Raises UsageError with one sentence naming file, row and field."""
    day = today or datetime.now(UTC).date()

    def make(number: int, row: dict[str, Any]) -> _Row:
        return _Row(name, number, row, lanes, day)

    rows = read_rows(name, content, _COLUMNS, _NEEDED, "a price book", make)
    if not rows:
        raise UsageError(f"{name} has no prices")
    prices = {lane: price for row in rows for lane, price in row.prices().items()}
    if not prices:
        known = ", ".join(sorted(str(lane.name) for lane in lanes))
        raise UsageError(f"{name}: none of its {len(rows)} rows is the price of a lane of the catalog ({known})")
    newest = max(row.text("as_of") for row in rows)
    return PriceFile(f"{newest}.{sha256(content).hexdigest()[:8]}", prices, len(rows))


class _Row(CsvRow):
    """One row, checked as it is made."""

    def __init__(self, file: str, number: int, row: dict[str, Any], lanes: Sequence[Lane], today: date) -> None:
        super().__init__(file, number, row)
        self._lanes = self._its_lanes(lanes)
        self.check_origin(today, _DAYS_MAX)
        self.is_by_token = bool(self.text("input_usd_per_mtok") or self.text("output_usd_per_mtok"))
        if self.is_by_token:
            self._check_tokens()
        else:
            if self.text(_CACHED):
                self.refuse(_CACHED, "is of a price by the token, and this row has none")
            self._check_hardware(lanes)
            self._check_hours()
        self.key = tuple(
            self.text(field) for field in ("lane", "provider", "region", "accelerator", "accelerator_count", "unit")
        )

    def prices(self) -> dict[str, Price]:
        """The price for each lane that this row is about."""
        found = {}
        for lane in self._lanes:
            if self.is_by_token:
                each = (self.text("input_usd_per_mtok"), self.text("output_usd_per_mtok"))
                cached = self.text(_CACHED) or None
                found[str(lane.name)] = price_of(lane.name, None, each, self.text("source"), self.text("as_of"), cached)
                continue
            field = "spot_usd_per_hour" if lane.market is Market.SPOT else "on_demand_usd_per_hour"
            if self.text(field):
                hour = self._per_instance(field, lane)
                found[str(lane.name)] = price_of(lane.name, hour, None, self.text("source"), self.text("as_of"))
        return found

    def _its_lanes(self, lanes: Sequence[Lane]) -> list[Lane]:
        named = self.text("lane")
        if named:
            found = [lane for lane in lanes if lane.name == named]
            if not found:
                self.refuse("lane", f"{named!r} is no lane of the catalog")
            return found
        return [
            lane
            for lane in lanes
            if lane.price.meter is PriceMeter.ACCELERATOR_HOUR
            and lane.provider == self.text("provider")
            and self.text("region") in (lane.region, "*")
            and lane.accelerator.lower() == self.text("accelerator").lower()
            and str(lane.accelerator_count) == self.text("accelerator_count")
        ]

    def _check_tokens(self) -> None:
        if not self.text("lane"):
            self.refuse("lane", "is empty; a price by the token names its lane")
        if self._lanes[0].price.meter is not PriceMeter.TOKEN:
            self.refuse("lane", f"{self.text('lane')} is paid by the hour, not by the token")
        for field in ("input_usd_per_mtok", "output_usd_per_mtok"):
            self._amount(field, _MTOK_USD_MAX)
        if not self.text(_CACHED):
            return
        if self._amount(_CACHED, _MTOK_USD_MAX) > Decimal(self.text("input_usd_per_mtok")):
            self.refuse(_CACHED, f"{self.text(_CACHED)} is above the price of other input")

    def _check_hardware(self, lanes: Sequence[Lane]) -> None:
        named = bool(self.text("lane"))
        if named and self._lanes[0].price.meter is PriceMeter.TOKEN:
            self.refuse("lane", f"{self.text('lane')} is paid by the token, not by the hour")
        if named:
            return
        provider, region = self.text("provider"), self.text("region")
        if provider not in set(Provider):
            self.refuse("provider", f"{provider[:40]!r} is unknown; it must be one of {', '.join(Provider)}")
        ours = {(str(lane.provider), lane.region) for lane in lanes}
        zone = region.rpartition("-")[0] if provider == Provider.GOOGLE_TPU else region
        if region != "*" and not {(provider, region), (provider, zone)} & (ours | known_regions()):
            self.refuse("region", f"{region[:40]!r} is unknown at {provider}")
        count = self.whole("accelerator_count")
        known = known_accelerators().get(self.text("accelerator").lower())
        if known and count not in known.counts:
            self.refuse("accelerator_count", f"there is no instance with {self.text('accelerator')} x {count}")

    def _check_hours(self) -> None:
        unit = self.text("unit") or "instance"
        if unit not in {"instance", "chip", "core"}:
            self.refuse("unit", f"{unit[:20]!r} is unknown; a price is of an instance, a chip or a core")
        name = self.text("accelerator").lower() or (self._lanes[0].accelerator.lower() if self._lanes else "")
        if unit == "core" and name not in _CORES_PER_CHIP:
            self.refuse("unit", f"{name or 'this'} is not sold by the core")
        for field in ("on_demand_usd_per_hour", "spot_usd_per_hour"):
            if self.text(field):
                self._check_hour(field, name, unit)
        on_demand, spot = self.text("on_demand_usd_per_hour"), self.text("spot_usd_per_hour")
        if not on_demand and not spot:
            self.refuse("on_demand_usd_per_hour", "is empty, and so is spot_usd_per_hour")
        if on_demand and spot and Decimal(spot) >= Decimal(on_demand):
            self.refuse("spot_usd_per_hour", f"{spot} is not below the on-demand price {on_demand}")

    def _check_hour(self, field: str, name: str, unit: str) -> None:
        """Whether one accelerator's price is possible: a slice's price given as a chip's is not, nor the other way."""
        amount = self._amount(field, None)
        if amount in _SENTINELS:
            self.refuse(field, f"{self.text(field)} is what catalogs write for `not sold here`, not a price")
        count = int(self.text("accelerator_count") or (self._lanes[0].accelerator_count if self._lanes else 1))
        each = amount / count if unit == "instance" else amount * _CORES_PER_CHIP.get(name, 1) ** (unit == "core")
        known = known_accelerators().get(name)
        most = known.usd_max if known else _HOUR_USD_MAX
        least = known.usd_min if known else Decimal(0)
        if not least <= each <= most:
            each_text = f"{round(each, 4).normalize():f}"
            self.refuse(
                field,
                f"{self.text(field)} per {unit} is {each_text} for one {name or 'accelerator'} an hour, which can't be:"
                f" {least:f} to {most:f}; is it the price of another unit?",
            )

    def _amount(self, field: str, most: Decimal | None) -> Decimal:
        text = self.text(field)
        try:
            amount = Decimal(text)
        except InvalidOperation:
            amount = Decimal("nan")
        if not amount.is_finite() or amount <= 0:
            self.refuse(field, f"{text[:20]!r} is not an amount of dollars above 0")
        if most is not None and amount > most:
            self.refuse(field, f"{text} is above {most:f}, which can't be")
        return amount

    def _per_instance(self, field: str, lane: Lane) -> str:
        amount = Decimal(self.text(field))
        match self.text("unit") or "instance":
            case "chip":
                amount *= lane.accelerator_count
            case "core":
                amount *= lane.accelerator_count * _CORES_PER_CHIP[lane.accelerator.lower()]
        return f"{amount.normalize():f}"
