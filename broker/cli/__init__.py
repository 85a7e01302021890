"""The command line: it reads options, calls the broker and prints; it decides nothing."""

from __future__ import annotations

import os
import sys

from broker.cli.memory import look_for_garbage_less_often, share_heaps
from broker.domain.errors import BrokerError, UsageError, reason_of

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """The `broker` command. An error is one sentence; exit code 2 for a wrong command or input, 1 for the rest."""
    share_heaps()
    try:
        # Before the imports, which make objects by the hundred thousand and no garbage.
        look_for_garbage_less_often()
        # They take a while: Ctrl-C counts from here on.
        from broker.cli.app import app

        try:
            app()
        finally:
            sys.stdout.flush()  # at the interpreter's end it would be too late to say what is wrong
    except UsageError as error:
        _complain(str(error))
        sys.exit(2)
    except BrokerError as error:
        _complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        _forget_output()
        sys.exit(1)
    except OSError as error:
        if not _is_of_output():
            raise
        _forget_output()
        _complain(f"can't write to standard output: {reason_of(error)}")
        sys.exit(1)


def _is_of_output() -> bool:
    """Whether standard output takes nothing more."""
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return True
    return False


def _forget_output() -> None:
    """Else the interpreter tries once more as it ends, and complains in its own words."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str) -> None:
    from broker.cli.printing import complain

    complain(sentence)
