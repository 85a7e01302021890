"""The command line: it reads options, calls the broker and prints; it decides nothing."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

from broker.domain.errors import BrokerError, UsageError

__all__ = ["main"]

_INTERRUPTED = 130
_M_ARENA_MAX = -8  # glibc's malloc.h


def main() -> None:
    """The `broker` command. An error is one sentence; exit code 2 for a wrong command or input, 1 for the rest."""
    _share_heaps()
    try:
        # The commands bring everything with them, which takes a while: Ctrl-C counts from here on.
        from broker.cli.app import app

        _look_for_garbage_less_often()
        app()
    except UsageError as error:
        _complain(str(error))
        sys.exit(2)
    except BrokerError as error:
        _complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)


def _share_heaps() -> None:
    """Have glibc keep two heaps, not one per thread: what one thread frees, another can use, and memory stays flat."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 2)


def _look_for_garbage_less_often() -> None:
    """Rows and messages come and go by the thousand, without cycles; looking for some every 700 took 5 % of the CPU."""
    gc.freeze()
    gc.set_threshold(50_000, 5, 10)


def _complain(sentence: str) -> None:
    from broker.cli.printing import complain

    complain(sentence)
