"""A lane's price, with the version that follows from what it says."""

from __future__ import annotations

from hashlib import sha256

import msgspec

from broker.domain.lane import Price, PriceMeter
from broker.domain.money import PicoUsd, pico_from_usd

__all__ = ["price_of"]


def price_of(
    lane: str,
    hour_usd: str | None,
    mtok_usd: tuple[str, str] | None,
    source: str,
    as_of: str,
    cached_mtok_usd: str | None = None,
) -> Price:
    """The price of an instance by the hour, or of a million tokens in and out, and in from the vendor's cache.

    Raises ValueError for no amount, and for cached input that is dearer than other input. The same words for the same
    lane are the same version.
    """
    fields: dict[str, PicoUsd]
    cached: PicoUsd | None = None
    if hour_usd is not None:
        meter, fields = PriceMeter.ACCELERATOR_HOUR, {"instance_hour_pico_usd": pico_from_usd(hour_usd)}
    else:
        per_input, per_output = mtok_usd or ("", "")
        meter = PriceMeter.TOKEN
        fields = {"input_token_pico_usd": _per_token(per_input), "output_token_pico_usd": _per_token(per_output)}
        if cached_mtok_usd is not None:
            # Only where it is said: the versions of prices that don't say it are as they always were.
            cached = fields["cached_input_token_pico_usd"] = _per_token(cached_mtok_usd)
            if cached > fields["input_token_pico_usd"]:
                raise ValueError(f"cached input at {cached_mtok_usd!r} is dearer than input at {per_input!r}")
    content = msgspec.json.encode([lane, meter, fields, source, as_of], order="sorted")
    version = f"{as_of}.{sha256(content).hexdigest()[:8]}"
    return Price(
        version=version,
        meter=meter,
        instance_hour_pico_usd=fields.get("instance_hour_pico_usd", 0),
        input_token_pico_usd=fields.get("input_token_pico_usd", 0),
        output_token_pico_usd=fields.get("output_token_pico_usd", 0),
        source=source,
        as_of=as_of,
        cached_input_token_pico_usd=cached,
    )


def _per_token(usd_per_million: str) -> PicoUsd:
    pico, rest = divmod(pico_from_usd(usd_per_million), 1_000_000)
    if rest:
        raise ValueError(f"{usd_per_million!r} per million tokens is finer than a pico-dollar per token")
    return PicoUsd(pico)
