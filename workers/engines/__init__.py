"""The drivers of the engine port. A driver's libraries load only when a lane picks it."""

# ruff: noqa: PLC0415  the imports inside functions are this file's purpose
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workers.engines.options import EchoOptions, LlamaCppOptions, OpenAIHttpOptions, checked_options

if TYPE_CHECKING:
    from broker.domain.lane import EngineSettings
    from workers.engine import Engine

__all__ = ["DRIVERS", "open_engine"]


def open_engine(settings: EngineSettings) -> Engine:
    """The engine that `settings` describes, not yet started.

    Raises ValueError, naming field, value and what is allowed, where the driver or one of its options is wrong.
    """
    match settings.driver:
        case "echo":
            return _echo(settings)
        case "openai_http":
            return _openai_http(settings)
        case "llama_cpp":
            return _llama_cpp(settings)
        case unknown:
            raise ValueError(f"engine driver={unknown!r} is unknown; there are: {', '.join(DRIVERS)}")


DRIVERS = ("echo", "openai_http", "llama_cpp")


def _echo(settings: EngineSettings) -> Engine:
    from workers.engines.echo import EchoEngine

    options = checked_options(EchoOptions, "echo", settings.options)
    return EchoEngine(
        options.delay_seconds,
        Path(options.call_log) if options.call_log else None,
        delay_seconds_per_word=options.delay_seconds_per_word,
        delay_file=Path(options.delay_file) if options.delay_file else None,
        fail_every=options.fail_every,
        status=options.status,
        garbage_every=options.garbage_every,
        hang_every=options.hang_every,
        request_timeout_seconds=settings.request_timeout_seconds,
    )


def _openai_http(settings: EngineSettings) -> Engine:
    from workers.engines.openai_http import OpenAIHttpEngine

    options = checked_options(OpenAIHttpOptions, "openai_http", settings.options)
    return OpenAIHttpEngine(
        options.base_url,
        concurrency=settings.concurrency,
        request_timeout_seconds=settings.request_timeout_seconds,
        connect_timeout_seconds=options.connect_timeout_seconds,
        served_model=options.served_model,
        api_key_variable=options.api_key_variable,
        health_path=options.health_path,
        counts_one_choice=options.counts_one_choice,
        context_tokens=settings.context_tokens,
        use_proxy=options.use_proxy,
        call_log=options.call_log,
    )


def _llama_cpp(settings: EngineSettings) -> Engine:
    from workers.engines.llama_cpp import LlamaCppEngine

    options = checked_options(LlamaCppOptions, "llama_cpp", settings.options)
    return LlamaCppEngine(
        model_path=options.model_path,
        model_package=options.model_package,
        model_name=settings.models[0] if settings.models else "",
        threads=options.threads,
        parallel=options.parallel,
        context_tokens=options.context_tokens,
        gpu_layers=options.gpu_layers,
        prompt_cache=options.prompt_cache,
        embeddings=options.embeddings,
        log_path=options.log_path,
        call_log=options.call_log,
        request_timeout_seconds=settings.request_timeout_seconds,
        start_timeout_seconds=options.start_timeout_seconds,
        restarts_per_minute_max=options.restarts_per_minute_max,
    )
