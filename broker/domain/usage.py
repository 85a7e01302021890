"""What an attempt consumed."""

from __future__ import annotations

import msgspec

__all__ = ["Usage"]


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens as the engine counted them, and the accelerator time that fell to the job.

    `input_tokens` includes `cached_input_tokens`; `output_tokens` includes `reasoning_tokens`, as in
    OpenAI's usage object. `accelerator_us` is microseconds of one instance, already divided among the
    jobs that shared it.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    accelerator_us: int = 0
