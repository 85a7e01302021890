"""A lane: provider x region x accelerator x market x engine deployment, with its own queues."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

import msgspec

__all__ = [
    "CURRENCY",
    "EngineSettings",
    "Lane",
    "LaneName",
    "LaneState",
    "Market",
    "Price",
    "PriceMeter",
    "Provider",
    "Supply",
]

LaneName = NewType("LaneName", str)

CURRENCY = "USD"
"""What all prices are in (ISO 4217)."""


class Provider(StrEnum):
    GOOGLE_TPU = "google-tpu"
    AZURE_GPU = "azure-gpu"
    ORACLE_GPU = "oracle-gpu"


class LaneState(StrEnum):
    """Whether a lane gets new shards. What it has, it works off in any case."""

    OPEN = "open"
    PAUSED = "paused"  # none, until resumed
    DRAINING = "draining"  # likewise, so that its machines can go once it is empty


class Market(StrEnum):
    ON_DEMAND = "on-demand"
    SPOT = "spot"


class Supply(StrEnum):
    """How capacity of a lane comes about."""

    ELASTIC = "elastic"  # instances are started and stopped, and cost from their billed start on
    FIXED = "fixed"  # instances are there and paid for, used or not
    PER_TOKEN = "per-token"  # somebody else's instances, paid by the job; `quota` is how many slots they grant


class PriceMeter(StrEnum):
    """What a price is the price of."""

    ACCELERATOR_HOUR = "accelerator-hour"  # one whole instance for one hour
    TOKEN = "token"  # input and output tokens, each at its own price


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable, versioned price. Pico-USD per instance-hour, or per token on per-token lanes.

    What its source doesn't say is None: cached input then costs what other input costs. `sku` and `billing_account` are
    the provider's own; it holds from `valid_from_us` until before `valid_until_us`, as the provider says.
    """

    version: str
    meter: PriceMeter
    instance_hour_pico_usd: int = 0
    input_token_pico_usd: int = 0
    output_token_pico_usd: int = 0
    source: str
    as_of: str
    cached_input_token_pico_usd: int | None = None
    cache_write_token_pico_usd: int | None = None
    sku: str | None = None
    billing_account: str | None = None
    valid_from_us: int | None = None
    valid_until_us: int | None = None


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a lane's workers run their model. `options` are the engine driver's own settings.

    `context_tokens` is the model's window, prompt and answer together; 0 where nobody says. `pictures` is False
    where it reads none.
    """

    driver: str
    models: tuple[str, ...]
    concurrency: int = 64
    request_timeout_seconds: float = 300.0
    context_tokens: int = 0
    pictures: bool = True
    options: dict[str, str | int | float | bool] = {}


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner, the dispatcher and a worker know of a lane.

    `slots` is how many shards of one of its workers, which is one instance, may have jobs that wait for the engine's
    places at once; `jobs_per_second` is the speed one slot is believed to have before the ledger has seen any;
    `message_bytes_max` is the queue's limit. `parked_bytes_max` is that of a single job's shard which goes by
    reference; 0 where nothing does.

    `supply` says whether somebody starts and stops instances as the planner desires, up to `quota` of them; one takes
    `start_unbilled_seconds` and then `start_billed_seconds` to be ready.
    """

    name: LaneName
    provider: Provider
    region: str
    accelerator: str
    accelerator_count: int
    market: Market
    bus_url: str
    engine: EngineSettings
    price: Price
    slots: int = 1
    jobs_per_second: float = 1.0
    shard_jobs_max: int = 512
    shard_seconds: float = 10.0
    message_bytes_max: int = 4_000_000
    parked_bytes_max: int = 0
    stand_in: bool = False
    precision: str = ""
    supply: Supply = Supply.FIXED
    quota: int = 1
    start_unbilled_seconds: float = 0.0
    start_billed_seconds: float = 0.0
    preemptions_per_hour: float = 0.0

    @property
    def shards_queue(self) -> str:
        return f"lane.{self.name}.shards"

    @property
    def events_queue(self) -> str:
        return f"lane.{self.name}.events"
