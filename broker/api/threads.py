"""Where handlers block: a few threads of the door's own, so that a slow question holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")

_THREADS = 8
_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="door")


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """What `work` returns; it may block."""
    return await asyncio.get_running_loop().run_in_executor(_pool, work, *arguments)
