"""The usage that a reply states, read in whatever way servers write it, and made safe to count.

Nothing that is odd here costs the answer. What contradicts itself is counted as the least that it can mean, with the
most that it can mean as its bound; `docs/engines.md` says which servers count how, and where that is written.
"""

from __future__ import annotations

from typing import Any

import msgspec

from broker.domain.usage import Usage, UsageBasis
from broker.rules.bounds import Asked

__all__ = ["CONTEXT_TOKENS_MAX", "NEVER_FAR", "TOKENS_MAX", "UNSTATED", "Stated", "is_plausible", "read_stated"]

TOKENS_MAX = 100_000_000
"""No request has more tokens of one kind than this; a higher count is a lie that would spoil the ledger's sums."""

CONTEXT_TOKENS_MAX = 10_000_000  # of any model that there is, for one prompt
_ANSWER_TOKENS_MAX = 1_000_000  # and what it can answer
_FAR_ABOVE = 1_000  # times what the request allows: servers ignore its limit or think beside it, but not so
NEVER_FAR = 16_384


class Stated(msgspec.Struct, frozen=True):
    """Usage as it is counted, how it is known, and its bound where the reply leaves it open.

    `upper_input` and `upper_output` are the most tokens that the reply can mean, None where that is `usage`; all of
    that input may have had its full price. With NONE and IMPLAUSIBLE `usage` is empty, and None is for what the reply
    says nothing of: the request alone bounds it.
    """

    usage: Usage
    basis: UsageBasis
    upper_input: int | None = None
    upper_output: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether more than `usage` may be billed."""
        return self.basis in _UNKNOWN or self.upper_input is not None or self.upper_output is not None


_UNKNOWN = (UsageBasis.NONE, UsageBasis.IMPLAUSIBLE)
UNSTATED = Stated(Usage(), UsageBasis.NONE)


def is_plausible(usage: Usage, asked: Asked, context_tokens: int) -> bool:
    """Whether a call that asked for so much can have used so much."""
    answers = max(1, asked.answers)
    if context_tokens:
        most_input, most_output = context_tokens * asked.prompts, context_tokens * answers
    else:
        most_input, most_output = CONTEXT_TOKENS_MAX * asked.prompts, _ANSWER_TOKENS_MAX * answers
    if asked.output_tokens_max:
        most_output = min(most_output, max(NEVER_FAR, _FAR_ABOVE * asked.output_tokens_max) * answers)
    return usage.input_tokens <= most_input and usage.output_tokens <= most_output


def read_stated(usage: Any, *, has_output: bool, says_nothing: bool = False) -> Stated:  # noqa: ANN401 (JSON)
    """The usage object of a reply, whatever it is. `says_nothing`: the answer is empty, so null output means none."""
    if not isinstance(usage, dict):
        return UNSTATED
    try:
        counts = _Counts(usage)
    except _TooMany:
        return Stated(Usage(), UsageBasis.IMPLAUSIBLE)
    return counts.stated(has_output=has_output, says_nothing=says_nothing)


class _TooMany(Exception):
    """A count is over TOKENS_MAX."""


class _Counts:
    """The counts of a usage object by their meaning; None where there is none, or none that can be read."""

    def __init__(self, usage: dict[str, Any]) -> None:
        self.input = _first(usage, "prompt_tokens", "input_tokens")
        self.output = _first(usage, "completion_tokens", "output_tokens")
        self.total = _first(usage, "total_tokens") or None  # 0 is what servers write that don't fill it in
        inputs = _details(usage, "prompt_tokens_details", "input_tokens_details")
        outputs = _details(usage, "completion_tokens_details", "output_tokens_details")
        cached = _first(inputs, "cached_tokens")
        if cached is None:
            # DeepSeek's name, others', and Anthropic's, whose cached tokens stand beside the input.
            cached = _first(usage, "prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
        reasoning = _first(outputs, "reasoning_tokens")
        self.cached = cached or 0
        self.reasoning = (_first(usage, "reasoning_tokens") if reasoning is None else reasoning) or 0
        self.is_whole = not any(_is_odd(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))

    def stated(self, *, has_output: bool, says_nothing: bool) -> Stated:
        self._fill_in(has_output=has_output, says_nothing=says_nothing)
        if self.input is None or self.output is None:
            if self.input is None and self.output is None:
                return UNSTATED
            return Stated(Usage(), UsageBasis.NONE, self.input, self.output)
        return self._resolved(self.input, self.output)

    def _fill_in(self, *, has_output: bool, says_nothing: bool) -> None:
        """What isn't stated may follow from the rest."""
        if self.output is None and not has_output:
            self.output = 0
        if self.total is not None:
            if self.output is None and self.input is not None and self.total >= self.input:
                self.output = self.total - self.input
            elif self.input is None and self.output is not None and self.total >= self.output:
                self.input = self.total - self.output
        elif self.output is None and says_nothing and self.input is not None:
            self.output = 0

    def _resolved(self, inputs: int, output: int) -> Stated:
        """Where parts are more than their whole, or stand beside it, the total decides; without one both are bounds."""
        cached, reasoning, total = self.cached, self.reasoning, self.total
        upper_input, upper_output = inputs, output
        is_consistent = self.is_whole and cached <= inputs and reasoning <= output
        if total is not None and total != inputs + output:
            is_consistent = False
            beside = self._beside(inputs, output, total)
            if beside is not None:
                inputs, output = upper_input, upper_output = beside
            elif total > inputs + output:
                # Tokens that are shown nowhere else: thoughts, where they are hidden, are billed as output.
                upper_output = output + (total - inputs - output)
        elif total is None:
            upper_input += cached if cached > inputs else 0
            upper_output += reasoning if reasoning > output else 0
        usage = Usage(inputs, min(cached, inputs), output, min(reasoning, output))
        if is_consistent:
            return Stated(usage, UsageBasis.ENGINE)
        return Stated(
            usage,
            UsageBasis.INCONSISTENT,
            # How much of the input was cached is open where more is said to be than there is.
            upper_input if upper_input > inputs or cached > inputs else None,
            upper_output if upper_output > output else None,
        )

    def _beside(self, inputs: int, output: int, total: int) -> tuple[int, int] | None:
        """Input and output where the total says that cached input, or reasoning, is counted beside them."""
        for more_input, more_output in ((0, self.reasoning), (self.cached, 0), (self.cached, self.reasoning)):
            if (more_input or more_output) and total == inputs + output + more_input + more_output:
                return inputs + more_input, output + more_output
        return None


def _details(usage: dict[str, Any], *names: str) -> dict[str, Any]:
    return next((usage[name] for name in names if isinstance(usage.get(name), dict)), {})


def _first(found: dict[str, Any], *names: str) -> int | None:
    for name in names:
        count = _count(found.get(name))
        if count is not None:
            return count
    return None


def _is_odd(value: Any) -> bool:  # noqa: ANN401 (JSON)
    return value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0)


def _count(value: Any) -> int | None:  # noqa: ANN401 (JSON)
    """A count of tokens: whole, also where it is written as 10.0 or "10". Raises _TooMany."""
    if isinstance(value, str):
        # Ten digits are more than enough to be too many, and int() of a long text takes a long time.
        value = int(value[:20]) if value.isascii() and value.isdigit() else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if value is None or isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    if value > TOKENS_MAX:
        raise _TooMany
    return value
