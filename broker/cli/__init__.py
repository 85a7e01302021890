"""The command line: it reads options, calls the broker and prints; it decides nothing."""

from __future__ import annotations

import sys

from broker.cli.memory import look_for_garbage_less_often, share_heaps
from broker.domain.errors import BrokerError, UsageError

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


def _complain(sentence: str) -> None:
    from broker.cli.printing import complain

    complain(sentence)
