"""What a call used, as far as anybody knows: what its engine stated, nothing where it never got there, else a bound."""

from __future__ import annotations

from typing import NamedTuple

from broker.domain.lane import Lane, PriceMeter
from broker.domain.usage import Usage, UsageBasis
from broker.rules.bounds import TokenRatios, asked_of, tokens_upper
from workers.engine import EngineError, EngineReply, TokensUpper

__all__ = ["Spending", "Spent"]

_NOTHING = Usage()
_LEARNED_AT_FIRST = 64
_LEARNED_BYTES_MAX = 256_000
_LEARNED_EVERY = 16  # reading a request costs some microseconds, and the ratios settle soon


class Spent(NamedTuple):
    """`usage` is what is known, and `upper`, where more may have been used, all that there can have been."""

    usage: Usage
    basis: UsageBasis
    upper: Usage | None = None


class Spending:
    """Reads it off each end of a call, for one lane; learns from the successes what a byte of text comes to.

    Bounds are for lanes that are paid by the token: on the others the accelerator's time is the cost, and is known.
    """

    def __init__(self, lane: Lane) -> None:
        self._is_by_token = lane.price.meter is PriceMeter.TOKEN
        self._context_tokens = lane.engine.context_tokens
        self._ratios = TokenRatios()
        self._successes = 0

    def of(self, endpoint: str, body: bytes, ended: EngineReply | EngineError | None) -> Spent:
        """Of a call with this body that ended so; None is for one that was stopped on its way."""
        if isinstance(ended, EngineReply) and ended.usage_basis is UsageBasis.ENGINE:  # nearly all
            if self._is_by_token:
                self._learn(endpoint, body, ended.usage)
            return Spent(ended.usage, UsageBasis.ENGINE)
        match ended:
            case EngineReply(usage=usage, usage_basis=basis, usage_upper=upper):
                return self._open(endpoint, body, usage, basis, upper)
            case EngineError(usage=usage, usage_basis=basis, usage_upper=upper) if usage is not None:
                return self._open(endpoint, body, usage, basis, upper)
            case EngineError(is_free=True):
                return self.of_unsent()
            case EngineError(usage_upper=upper):
                return self._open(endpoint, body, _NOTHING, UsageBasis.NONE, upper)
            case _:
                return self._open(endpoint, body, _NOTHING, UsageBasis.NONE, None)

    def of_unsent(self) -> Spent:
        """Of a call that the engine never had: nothing, and that is known."""
        return Spent(_NOTHING, UsageBasis.COUNTED)

    def _open(self, endpoint: str, body: bytes, usage: Usage, basis: UsageBasis, stated: TokensUpper | None) -> Spent:
        is_known = basis not in (UsageBasis.NONE, UsageBasis.IMPLAUSIBLE)
        if not self._is_by_token or (is_known and stated is None):
            return Spent(usage, basis)
        inputs, output = stated or (None, None)
        if is_known:
            upper = Usage(
                max(usage.input_tokens, inputs or 0),
                usage.cached_input_tokens if inputs is None else 0,
                max(usage.output_tokens, output or 0),
                usage.reasoning_tokens,
            )
            return Spent(usage, basis, upper)
        bound = tokens_upper(asked_of(endpoint, body), self._ratios, self._context_tokens)
        if basis is UsageBasis.IMPLAUSIBLE:  # what it states isn't believed, and isn't ruled out
            upper = Usage(max(bound.input_tokens, inputs or 0), 0, max(bound.output_tokens, output or 0))
        else:
            upper = Usage(
                bound.input_tokens if inputs is None else inputs, 0, bound.output_tokens if output is None else output
            )
        return Spent(usage, basis, upper)

    def _learn(self, endpoint: str, body: bytes, usage: Usage) -> None:
        self._successes += 1
        is_due = self._successes <= _LEARNED_AT_FIRST or self._successes % _LEARNED_EVERY == 0
        if is_due and len(body) <= _LEARNED_BYTES_MAX:
            self._ratios.learn(asked_of(endpoint, body), usage.input_tokens)
