"""Where handlers block: a few threads of the door's own, in pools apart, so that no kind of question waits for another.

Workers' claims, renewals and presences have one to themselves: a lease ends while its renewal waits. The ledger's
summaries, which may take a minute, have another, and a place in its queue is not for everybody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from broker.api.errors import Refused

__all__ = ["in_lease_thread", "in_summary_thread", "in_thread"]

T = TypeVar("T")

_THREADS = 8
_SUMMARY_THREADS, _SUMMARIES_MAX = 2, 16

_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="door")
_lease_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="lease-door")
_summary_pool = ThreadPoolExecutor(_SUMMARY_THREADS, thread_name_prefix="summary")
_summaries = threading.BoundedSemaphore(_SUMMARIES_MAX)


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """What `work` returns; it may block."""
    return await asyncio.get_running_loop().run_in_executor(_pool, work, *arguments)


async def in_lease_thread(work: Callable[..., T], *arguments: object) -> T:
    """Likewise, for what workers' leases depend on."""
    return await asyncio.get_running_loop().run_in_executor(_lease_pool, work, *arguments)


async def in_summary_thread(work: Callable[..., T], *arguments: object) -> T:
    """Likewise, for what may take a minute. Raises Refused when too many such questions are waiting already."""
    if not _summaries.acquire(blocking=False):
        message = f"{_SUMMARIES_MAX} summaries are being made or waited for already: ask again later"
        raise Refused(503, "busy", message, retry_after_seconds=10)
    asked = _summary_pool.submit(work, *arguments)
    asked.add_done_callback(lambda _: _summaries.release())
    return await asyncio.wrap_future(asked)
