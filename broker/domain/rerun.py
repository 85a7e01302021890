"""A batch that runs another's lines again: which batch, and which of its lines."""

from __future__ import annotations

from typing import Self

import msgspec

from broker.domain.errors import UsageError
from broker.domain.outcome import Outcome

__all__ = ["RERUN_OUTCOMES", "Rerun", "RerunRefused", "rerun_outcomes"]

_PREFIX = "rerun:"
RERUN_OUTCOMES = (Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELLED)
"""How a line can have ended that runs again. One that was refused never became a job, so nothing of it was kept."""


class Rerun(msgspec.Struct, frozen=True):
    """Kept as the batch's `source_name`, for its lines come of no file. A file's name there is a whole path."""

    of_batch: bytes
    outcomes: tuple[Outcome, ...]

    @property
    def source_name(self) -> str:
        """Itself as text."""
        return f"{_PREFIX}{self.of_batch.hex()}:{','.join(self.outcomes)}"

    @classmethod
    def parse(cls, source_name: str) -> Self | None:
        """The inverse of `source_name`; None for any other."""
        if not source_name.startswith(_PREFIX):
            return None
        of_batch, outcomes = source_name.removeprefix(_PREFIX).split(":")
        return cls(bytes.fromhex(of_batch), tuple(Outcome(one) for one in outcomes.split(",")))


class RerunRefused(UsageError):
    """There is nothing that could run again, or not now; `code` names the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def rerun_outcomes(text: str | None) -> tuple[Outcome, ...]:
    """Those of a text such as `failed,expired`; all that can run again where there is none. Raises ValueError."""
    if text is None:
        return RERUN_OUTCOMES
    known = {str(one): one for one in RERUN_OUTCOMES}
    names = [name.strip() for name in text.split(",")]
    if "refused" in names:
        raise ValueError("a refused line never ran, and nothing of it was kept: mend the file, and run that")
    for name in names:
        if name not in known:
            raise ValueError(f"{name[:40]!r} is none of {', '.join(known)}")
    return tuple(one for name, one in known.items() if name in names)
