"""What an attempt consumed."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

__all__ = ["Count", "Moment", "Usage", "UsageBasis"]

Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
"""What a worker may claim of one job: a trillion tokens, or microseconds (12 days). Its cost then fits an int64."""

Moment = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Unix microseconds, to the year 2255."""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens as the engine counted them, and the accelerator time that fell to the job.

    `input_tokens` includes `cached_input_tokens`; `output_tokens` includes `reasoning_tokens`, as in
    OpenAI's usage object. `accelerator_us` is microseconds of one instance, already divided among the
    jobs that shared it.
    """

    input_tokens: Count = 0
    cached_input_tokens: Count = 0
    output_tokens: Count = 0
    reasoning_tokens: Count = 0
    accelerator_us: Count = 0


class UsageBasis(StrEnum):
    """How the tokens of an attempt are known."""

    ENGINE = "engine"  # the engine stated them
    COUNTED = "counted"  # it stated none, and we counted them
    INCONSISTENT = "inconsistent"  # it stated some that contradict each other
    IMPLAUSIBLE = "implausible"  # it stated more than there can have been
    NONE = "none"  # nobody knows them: null in the ledger
