"""How the process asks for memory: settings of glibc's and of Python's, for rows and messages by the thousand."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

__all__ = ["keep_heaps", "leave_modules_out_of_garbage_collection", "look_for_garbage_less_often", "share_heaps"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h

_MMAP_BYTES = 8 << 20
_TRIM_BYTES = 16 << 20


def share_heaps() -> None:
    """Have glibc keep two heaps, not one per thread: what one thread frees, another can use, and memory stays flat."""
    _set(_M_ARENA_MAX, 2)


def keep_heaps() -> None:
    """Have glibc keep what the heaps grew to, up to some 16 MB each.

    Left alone, it gives back the buffers of each large statement and message, and the kernel clears the same pages
    again for the next, which took 5 to 10 % of a busy process's CPU.
    """
    _set(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    _set(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def look_for_garbage_less_often() -> None:
    """Rows and messages come and go by the thousand, without cycles; looking for some every 700 took 5 % of the CPU."""
    gc.set_threshold(50_000, 5, 10)


def leave_modules_out_of_garbage_collection() -> None:
    """For processes that stay: what was imported by now is never garbage, so no collection need walk through it."""
    gc.freeze()


def _set(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
