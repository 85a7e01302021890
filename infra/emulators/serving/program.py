"""An emulator as a program: runs until it is interrupted or terminated."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from infra.emulators.serving.hosting import Running

__all__ = ["log_to_stderr", "run_until_stopped"]

R = TypeVar("R", bound=Running[Any])


async def run_until_stopped(serving: Awaitable[R], lines: Callable[[R], list[str]]) -> None:
    """Serve; say where, in these lines, and that it is ready; close after SIGINT or SIGTERM."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    running = await serving
    ports = "Ports: " + ", ".join(f"{name} {port}" for name, port in running.ports.items())
    first, *rest = lines(running)
    print("\n".join([first, ports, *rest, "Ready. Ctrl-C stops it."]), flush=True)
    await stopping.wait()
    await running.server.close()


def log_to_stderr(*, verbose: bool) -> None:
    """Warnings, or with `verbose` more."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")
