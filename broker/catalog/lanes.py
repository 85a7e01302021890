"""Lanes from one TOML file, checked whole before anything runs."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from broker.catalog.prices import price_of
from broker.catalog.throughputs import Throughput, best_throughput, published_throughputs, read_throughputs
from broker.domain.errors import UsageError
from broker.domain.lane import EngineSettings, Lane, LaneName, Market, Price, PriceMeter, Provider, Supply

__all__ = ["DEMO_CATALOG", "load_lanes"]

DEMO_CATALOG = "demo"
"""The name of the catalog that ships with the package: three clouds' list prices, one CPU standing in for all."""

_SHARD_JOBS_MAX = 512
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


class _PriceEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    source: str
    as_of: str
    instance_hour_usd: str | None = None
    input_mtok_usd: str | None = None
    output_mtok_usd: str | None = None
    cached_input_mtok_usd: str | None = None


class _EngineEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    driver: str
    models: list[str]
    concurrency: int = 64
    request_timeout_seconds: float = 300.0
    context_tokens: int = 0
    pictures: bool = True
    options: dict[str, str | int | float | bool] = {}


class _LaneEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    provider: Provider
    region: str
    accelerator: str
    accelerator_count: int
    market: Market
    price: _PriceEntry
    engine: _EngineEntry
    bus_url: str = "lanemem://embedded"
    slots: int = 1
    jobs_per_second: float | None = None
    shard_jobs_max: int = 512
    shard_seconds: float = 10.0
    message_bytes_max: int = 4_000_000
    stand_in: bool = False
    precision: str = ""
    supply: Supply | None = None
    quota: int = 1
    start_unbilled_seconds: float = 0.0
    start_billed_seconds: float = 0.0
    preemptions_per_hour: float = 0.0


class _File(msgspec.Struct, forbid_unknown_fields=True):
    lane: list[_LaneEntry]
    throughputs: str | None = None
    shares: dict[str, float] = {}  # see `catalog.shares`, and of the next two `catalog.policy`
    tenant_weights: dict[str, object] = {}
    placement: dict[str, object] = {}


def load_lanes(catalog: str | Path) -> list[Lane]:
    """The lanes of a TOML file, or of the catalog that ships under the name `demo`.

    Raises UsageError with one sentence naming the file, the lane, the field and the limit.
    """
    name, text = _read(catalog)
    try:
        parsed = msgspec.convert(tomllib.loads(text), _File)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{name}: {error}") from None
    figures = _figures(catalog, parsed.throughputs)
    lanes = [_lane(name, entry, figures) for entry in parsed.lane]
    if not lanes:
        raise UsageError(f"{name} names no lane")
    doubled = {lane.name for lane in lanes if sum(other.name == lane.name for other in lanes) > 1}
    if doubled:
        raise UsageError(f"{name} names the lane {min(doubled)} twice")
    return lanes


def _read(catalog: str | Path) -> tuple[str, str]:
    if catalog == DEMO_CATALOG:
        return "the demo catalog", resources.files("broker.catalog").joinpath("demo.toml").read_text()
    try:
        return str(catalog), Path(catalog).read_text()
    except OSError as error:
        raise UsageError(f"can't read the catalog {catalog}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{catalog} is not valid TOML: it is not UTF-8") from None


def _figures(catalog: str | Path, own: str | None) -> list[Throughput]:
    """The throughputs of the file that the catalog names, from where it lies, before those that ship."""
    if own is None:
        return list(published_throughputs())
    path = Path(catalog).parent / own
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{catalog}: throughputs names {path}, which can't be read: {error.strerror}") from None
    return read_throughputs(str(path), content, days_max=None) + list(published_throughputs())


def _lane(file: str, entry: _LaneEntry, figures: Sequence[Throughput]) -> Lane:
    _check(file, entry)
    price = _price(file, entry)
    if entry.jobs_per_second is None:
        entry = msgspec.structs.replace(entry, jobs_per_second=_believed_speed(file, entry, price, figures))
    fields: dict[str, Any] = {
        name: getattr(entry, name)
        for name in entry.__struct_fields__
        if name not in {"name", "price", "engine", "supply"}
    }
    return Lane(
        name=LaneName(entry.name),
        price=price,
        supply=_supply(file, entry, price),
        engine=EngineSettings(
            driver=entry.engine.driver,
            models=tuple(entry.engine.models),
            concurrency=entry.engine.concurrency,
            request_timeout_seconds=entry.engine.request_timeout_seconds,
            context_tokens=entry.engine.context_tokens,
            pictures=entry.engine.pictures,
            options=entry.engine.options,
        ),
        **fields,
    )


def _check(file: str, entry: _LaneEntry) -> None:
    where = f"{file}, lane {entry.name!r}"
    if not entry.name or set(entry.name) - _NAME_CHARS or len(entry.name) > 64:
        raise UsageError(f"{where}: a name has 1 to 64 characters, of a-z, 0-9 and '-'")
    for name, value, least in (
        ("accelerator_count", entry.accelerator_count, 1),
        ("slots", entry.slots, 1),
        ("quota", entry.quota, 1),
        ("shard_jobs_max", entry.shard_jobs_max, 1),
        ("message_bytes_max", entry.message_bytes_max, 64_000),
        ("engine.concurrency", entry.engine.concurrency, 1),
        ("engine.context_tokens", entry.engine.context_tokens, 0),
    ):
        if value < least:
            raise UsageError(f"{where}: {name} is {value}; it must be at least {least}")
    if entry.shard_jobs_max > _SHARD_JOBS_MAX:
        raise UsageError(f"{where}: shard_jobs_max is {entry.shard_jobs_max}; it must be at most {_SHARD_JOBS_MAX}")
    for name, number in (
        ("jobs_per_second", 1.0 if entry.jobs_per_second is None else entry.jobs_per_second),
        ("shard_seconds", entry.shard_seconds),
        ("engine.request_timeout_seconds", entry.engine.request_timeout_seconds),
    ):
        if not 0 < number < float("inf"):
            raise UsageError(f"{where}: {name} is {number}; it must be above 0")
    for name, number in (
        ("start_unbilled_seconds", entry.start_unbilled_seconds),
        ("start_billed_seconds", entry.start_billed_seconds),
        ("preemptions_per_hour", entry.preemptions_per_hour),
    ):
        if not 0 <= number < float("inf"):
            raise UsageError(f"{where}: {name} is {number}; it must be 0 or more")
    if not entry.engine.models:
        raise UsageError(f"{where}: engine.models is empty; name at least one model")


def _believed_speed(file: str, entry: _LaneEntry, price: Price, figures: Sequence[Throughput]) -> float:
    """Jobs per second of one slot, by what is published of its slowest model. Raises UsageError where nothing is."""
    where = f"{file}, lane {entry.name!r}: jobs_per_second is left out, and"
    if price.meter is PriceMeter.TOKEN or entry.stand_in:
        reason = "it is paid by the token" if price.meter is PriceMeter.TOKEN else "its hardware is a stand-in"
        raise UsageError(f"{where} no published throughput applies, as {reason}; say how fast one slot is")
    speeds = []
    for model in entry.engine.models:
        found = best_throughput(
            figures,
            model,
            entry.accelerator,
            entry.accelerator_count,
            precision=entry.precision,
            concurrency=entry.engine.concurrency * entry.slots,
        )
        if found is None:
            hardware = f"{entry.accelerator} x {entry.accelerator_count}"
            raise UsageError(f"{where} no throughput of {model} on {hardware} is known; say how fast one slot is")
        speeds.append(found[1])
    return min(speeds) / entry.slots


def _supply(file: str, entry: _LaneEntry, price: Price) -> Supply:
    by_token = price.meter is PriceMeter.TOKEN
    if entry.supply is None:
        return Supply.PER_TOKEN if by_token else Supply.FIXED
    if by_token != (entry.supply is Supply.PER_TOKEN):
        meter = "the token" if by_token else "the hour"
        raise UsageError(f"{file}, lane {entry.name!r}: supply is {entry.supply}, but its price is by {meter}")
    return entry.supply


def _price(file: str, entry: _LaneEntry) -> Price:
    where = f"{file}, lane {entry.name!r}, price"
    given = entry.price
    per_token = None
    if given.input_mtok_usd is not None and given.output_mtok_usd is not None:
        per_token = (given.input_mtok_usd, given.output_mtok_usd)
    half_said = per_token is None and (given.input_mtok_usd, given.output_mtok_usd) != (None, None)
    if half_said or (given.instance_hour_usd is None) == (per_token is None):
        raise UsageError(f"{where}: give instance_hour_usd, or input_mtok_usd and output_mtok_usd")
    cached = given.cached_input_mtok_usd
    if cached is not None and per_token is None:
        raise UsageError(f"{where}: cached_input_mtok_usd is {cached!r}, but its price is by the hour")
    try:
        return price_of(entry.name, given.instance_hour_usd, per_token, given.source, given.as_of, cached)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
