"""What each engine driver lets a lane set, checked once, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar, get_type_hints

import msgspec
from msgspec import Meta

__all__ = ["EchoOptions", "LlamaCppOptions", "OpenAIHttpOptions", "checked_options"]

_Count = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(ge=0)]
_PositiveSeconds = Annotated[float, Meta(gt=0)]
_ErrorStatus = Annotated[int, Meta(ge=300, le=599)]
_VariableName = Annotated[str, Meta(pattern="^([A-Za-z_][A-Za-z0-9_]*)?$")]
_Path = Annotated[str, Meta(pattern="^(/.*)?$")]


class EchoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """See `EchoEngine`."""

    delay_seconds: _Seconds = 0.0
    delay_seconds_per_word: _Seconds = 0.0
    delay_file: str = ""
    call_log: str = ""
    fail_every: _Count = 0
    status: _ErrorStatus = 500
    garbage_every: _Count = 0
    hang_every: _Count = 0


class OpenAIHttpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """See `OpenAIHttpEngine`."""

    base_url: str = ""
    api_key_variable: _VariableName = ""
    served_model: str = ""
    health_path: _Path = ""
    connect_timeout_seconds: _PositiveSeconds = 5.0
    counts_one_choice: bool = False
    use_proxy: bool = True
    call_log: str = ""


class LlamaCppOptions(msgspec.Struct, frozen=True, kw_only=True):
    """See `LlamaCppEngine`."""

    model_path: str = ""
    model_package: str = ""
    threads: _Positive = 1
    parallel: _Positive = 4
    context_tokens: _Positive = 1024
    gpu_layers: Annotated[int, Meta(ge=-1)] = 0
    prompt_cache: bool = False
    embeddings: bool = False
    log_path: str = ""
    call_log: str = ""
    start_timeout_seconds: _PositiveSeconds = 120.0
    restarts_per_minute_max: _Count = 3


_Options = TypeVar("_Options", bound=msgspec.Struct)


def checked_options(kind: type[_Options], driver: str, options: Mapping[str, str | int | float | bool]) -> _Options:
    """`options` as a `kind`. Raises ValueError that names the option, its value and what is allowed.

    The value of an option that sounds like a secret is never shown.
    """
    allowed = get_type_hints(kind, include_extras=True)
    for name, value in options.items():
        shown = f"{name}=(hidden)" if _sounds_secret(name) else f"{name}={value!r}"
        if name not in allowed:
            raise ValueError(f"engine option {shown} is unknown to the driver {driver}; it has: {', '.join(allowed)}")
        try:
            msgspec.convert(value, allowed[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"engine option {shown} of the driver {driver} is wrong: {error}") from None
    return msgspec.convert(dict(options), kind)


def _sounds_secret(name: str) -> bool:
    # A key pasted where its variable's name belongs must not end up in a log.
    return any(word in name.lower() for word in ("key", "secret", "token_value", "password"))
