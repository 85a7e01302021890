"""Usage x price = cost, in integers, rounded once and half to even."""

from __future__ import annotations

from typing import NamedTuple

from broker.domain.lane import Price, PriceMeter
from broker.domain.money import NanoUsd, divide_half_even
from broker.domain.outcome import Outcome
from broker.domain.usage import Usage, UsageBasis

__all__ = [
    "Costs",
    "accelerator_cost_nano_usd",
    "affordable_jobs",
    "charged_nano_usd",
    "cost_nano_usd",
    "costs_of",
    "expected_job_cost_nano_usd",
    "hold_nano_usd",
    "token_cost_nano_usd",
]

_PICO_PER_NANO = 1_000
_US_PER_HOUR = 3_600_000_000
_TYPICAL_INPUT_TOKENS = 1_000
_TYPICAL_OUTPUT_TOKENS = 250
_HOLD_MARGIN = 2
_HOLD_MARGIN_PART = 2


def accelerator_cost_nano_usd(price: Price, accelerator_us: int) -> NanoUsd:
    """What `accelerator_us` microseconds of one instance cost at `price`, in nano-USD."""
    return NanoUsd(divide_half_even(price.instance_hour_pico_usd * accelerator_us, _US_PER_HOUR * _PICO_PER_NANO))


def cost_nano_usd(price: Price, usage: Usage) -> NanoUsd:
    """What `usage` costs at `price`, in nano-USD: accelerator time, or tokens on per-token lanes.

    Cached input has a price of its own where the price says one, else that of other input.
    """
    match price.meter:
        case PriceMeter.ACCELERATOR_HOUR:
            return accelerator_cost_nano_usd(price, usage.accelerator_us)
        case PriceMeter.TOKEN:
            pico = usage.input_tokens * price.input_token_pico_usd + usage.output_tokens * price.output_token_pico_usd
            if usage.cached_input_tokens and price.cached_input_token_pico_usd is not None:
                cached = min(usage.cached_input_tokens, usage.input_tokens)
                pico -= cached * (price.input_token_pico_usd - price.cached_input_token_pico_usd)
            return NanoUsd(divide_half_even(pico, _PICO_PER_NANO))


class Costs(NamedTuple):
    """What a call cost in nano-USD: as far as it is known, and at most.

    Where nobody knows that either, `is_bounded` is False, and `upper` says no more than `known`.
    """

    known: NanoUsd
    upper: NanoUsd
    is_bounded: bool = True

    @property
    def is_known(self) -> bool:
        """Whether there is nothing more to know."""
        return self.is_bounded and self.upper == self.known


def costs_of(price: Price, usage: Usage, basis: UsageBasis, usage_upper: Usage | None) -> Costs:
    """What is known of a call's cost, and its bound, by what is known of its usage.

    By the hour the accelerator's time is known, and with it the cost, whatever the tokens are.
    """
    if price.meter is not PriceMeter.TOKEN:
        known = cost_nano_usd(price, usage)
        return Costs(known, known)
    is_stated = basis not in (UsageBasis.NONE, UsageBasis.IMPLAUSIBLE)
    known = cost_nano_usd(price, usage) if is_stated else NanoUsd(0)
    if usage_upper is None:
        return Costs(known, known, is_stated)
    return Costs(known, max(known, cost_nano_usd(price, usage_upper)))


def charged_nano_usd(outcome: Outcome, cost: int) -> NanoUsd:
    """What a tenant is charged for an attempt: what the success of its job cost, and nothing for waste."""
    return NanoUsd(cost if outcome is Outcome.SUCCEEDED else 0)


def expected_job_cost_nano_usd(price: Price, jobs_per_second: float) -> NanoUsd:
    """What one job is expected to cost: on an instance that ends `jobs_per_second` of them, or for typical tokens.

    The typical job has 1,000 tokens in and 250 out, near the means of the Azure LLM inference trace of 2023
    (conversations: 1,155 and 211).
    """
    usage = Usage(
        input_tokens=_TYPICAL_INPUT_TOKENS,
        output_tokens=_TYPICAL_OUTPUT_TOKENS,
        accelerator_us=round(1_000_000 / jobs_per_second),
    )
    return cost_nano_usd(price, usage)


def token_cost_nano_usd(price: Price, input_tokens: float, output_tokens: float) -> NanoUsd:
    """What a job of so many tokens, as they are on average, costs on a lane that is paid by the token."""
    return cost_nano_usd(price, Usage(input_tokens=round(input_tokens), output_tokens=round(output_tokens)))


def affordable_jobs(left_nano_usd: int, expected_nano_usd: int) -> int:
    """How many jobs of this expected cost what is left of a budget covers."""
    return max(0, left_nano_usd) // max(1, expected_nano_usd)


def hold_nano_usd(jobs_count: int, expected_nano_usd: int, left_nano_usd: int) -> NanoUsd:
    """What to set aside of a budget for a shard, and so what its jobs may cost, in nano-USD.

    Twice what they are expected to, lest jobs dearer than the mean, as half of them are, break it up. Where that is
    more than half of what is left, only what they are expected to: then others may have the rest meanwhile.
    """
    expected = jobs_count * max(1, expected_nano_usd)
    ample = _HOLD_MARGIN * expected
    return NanoUsd(ample if ample <= left_nano_usd // _HOLD_MARGIN_PART else expected)
