"""The engine port: what runs the model."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.usage import Usage, UsageBasis

__all__ = ["Engine", "EngineError", "EngineReply", "EngineRequest", "TokensUpper"]


class EngineRequest(msgspec.Struct, frozen=True):
    """One inference request.

    `endpoint` is OpenAI's path, such as `/v1/chat/completions`; `body` is the producer's JSON, unchanged;
    `label` names the request in an engine's own call log and is never sent to it.
    """

    label: str
    endpoint: str
    body: bytes


class TokensUpper(NamedTuple):
    """The most tokens that a reply can mean by what it states; None where it says nothing: the request bounds it."""

    input_tokens: int | None
    output_tokens: int | None


class EngineReply(msgspec.Struct, frozen=True):
    """A valid success: HTTP 2xx with a JSON body that holds what the endpoint promises, and the usage that it states.

    `usage_basis` says how far that usage can be believed; NONE where none is stated. `usage_upper` is there where more
    than `usage` may have been used. `usage.accelerator_us` is left at 0; the meter fills it in.
    """

    status_code: int
    body: bytes
    usage: Usage
    request_id: str = ""
    usage_basis: UsageBasis = UsageBasis.ENGINE
    usage_upper: TokensUpper | None = None


class EngineError(Exception):
    """The request failed. `code` says what follows; `status_code` is 0 where no HTTP reply came.

    `body` is the engine's own error body, if it sent one, for the producer's error file. It may echo the
    prompt, so it is never logged and never enters the ledger. `retry_after_s`: how long the server asks to be left
    alone, 0 where it doesn't. `usage` is what a reply that is thrown away states all the same, None where nothing was
    stated, and `usage_upper` as in a reply; `is_free`: the call can't have cost anything, for the server never had it,
    or refused it.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        status_code: int = 0,
        body: bytes = b"",
        retry_after_s: float = 0.0,
        usage: Usage | None = None,
        usage_basis: UsageBasis = UsageBasis.NONE,
        usage_upper: TokensUpper | None = None,
        is_free: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status_code = status_code
        self.body = body
        self.retry_after_s = retry_after_s
        self.usage = usage
        self.usage_basis = usage_basis
        self.usage_upper = usage_upper
        self.is_free = is_free


class Engine(Protocol):
    """Runs requests concurrently on one event loop; drivers live in `workers.engines`.

    A driver never retries: it raises `EngineError` and lets the broker decide.
    """

    async def start(self) -> None:
        """Bring the engine to where it can answer, loading the model if it must.

        Raises EngineError when it can't be brought up: ENGINE_MISCONFIGURED where trying again is of no use before
        someone has changed what the lane's settings name, any other code where it isn't ready yet.
        """

    async def run(self, request: EngineRequest) -> EngineReply:
        """The reply to one request. Raises EngineError. Cancelling the call aborts the request at the engine."""

    async def stop(self) -> None:
        """Release everything; harmless when not started."""
