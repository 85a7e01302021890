"""The llama.cpp server as a process of its own: `python -m workers.engines.llama_cpp_server OPTIONS`.

Started by `LlamaCppEngine`, which holds the other end of its standard input. It prints one JSON line when it
serves (`{"address": "http://127.0.0.1:PORT"}`) or can't (`{"problem": "...", "is_misconfigured": true}`), and ends when
its standard input does, or on Linux at once when its parent dies, so that no kill of a worker leaves a model running.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xllamacpp import Server

__all__ = ["API_KEY_VARIABLE", "main"]

API_KEY_VARIABLE = "BROKER_LLAMA_CPP_KEY"

_PR_SET_PDEATHSIG = 1


def main() -> None:
    options = _read_options()
    _die_with(options.parent_pid)
    report = _take_over_output(options.log_path)
    try:
        server = _serve(options)
    except ImportError:
        problem = "xllamacpp isn't installed: pip install 'inference-broker[llama-cpp]'"
        report({"problem": problem, "is_misconfigured": True})
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  a binding promises no exception types; all become one sentence
        report({"problem": f"llama.cpp can't load {options.model_path}: {error}", "is_misconfigured": True})
        sys.exit(1)
    report({"address": server.listening_address})
    _wait_for_end_of_input()


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama_cpp_server")
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True, help="requests that run at once")
    parser.add_argument("--context-tokens", type=int, required=True, help="for each of the parallel requests")
    parser.add_argument("--gpu-layers", type=int, required=True)
    parser.add_argument("--prompt-cache", action="store_true")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--log-path", default=os.devnull)
    return parser.parse_args()


def _die_with(parent_pid: int) -> None:
    """Two ways, as each has a gap: the signal is Linux's alone; end of input waits where a fork holds the pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before we asked for the signal
            os._exit(1)
    # Loading a model holds the interpreter's lock, so on other systems this thread wakes once loading ends.
    threading.Thread(target=_exit_at_end_of_input, name="parent-watch", daemon=True).start()


def _exit_at_end_of_input() -> None:
    _wait_for_end_of_input()
    # There is nothing to save, and an orderly end would wait for the requests that are running.
    os._exit(0)


def _wait_for_end_of_input() -> None:
    while os.read(0, 4096):
        pass


def _take_over_output(log_path: str) -> Callable[[dict[str, str | bool]], None]:
    """Send what llama.cpp prints to `log_path`; the answer writes one JSON line to the real standard output."""
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    real_output = os.dup(1)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def report(fields: dict[str, str | bool]) -> None:
        os.write(real_output, json.dumps(fields).encode() + b"\n")
        os.close(real_output)

    return report


def _serve(options: argparse.Namespace) -> Server:
    import xllamacpp  # noqa: PLC0415  here, so that its absence is a sentence and not a traceback

    params = xllamacpp.CommonParams()
    params.model.path = options.model_path
    params.model_alias = {options.model_name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    # Any program or web page on this machine can reach the port; only ours knows the key.
    params.api_keys = [os.environ.pop(API_KEY_VARIABLE)]
    params.cors_origins = ""
    params.ui = False
    params.endpoint_slots = False
    params.n_parallel = options.parallel
    params.n_ctx = options.context_tokens * options.parallel
    params.n_threads_http = options.parallel + 2
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.n_gpu_layers = options.gpu_layers
    params.cache_prompt = options.prompt_cache
    params.cache_ram_mib = 0  # llama.cpp would keep up to 8 GiB of old prompts otherwise
    if options.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
