"""Whether a build may work on a database's schema, and who still works on it that a contract would break.

A schema carries its revision, and the oldest build that it still serves; a build carries the revisions it knows. So an
older build decides about a schema from after its time without knowing what changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

__all__ = ["CONTRACT", "Build", "SchemaState", "judge", "older_sessions", "phase_of", "session_name"]

CONTRACT = "contract"
"""The word in a revision's file name that makes it one of the contract phase, as in `0012_contract_lane_rest.py`."""

_FILE = re.compile(r"(\d{4})_(\w+)\.py")
_NAME_CHARS_MAX = 35
_SESSION = re.compile(r"broker\b.*? ?(?P<revision>\b\d{4} )?[0-9a-f]{20}")


class SchemaState(StrEnum):
    """What a database holds, seen from this program."""

    EMPTY = "empty"
    CURRENT = "current"
    OLDER = "older"
    AHEAD = "ahead"  # of a later program, and still serves this one
    NEWER = "newer"  # of a later program, and no longer serves this one
    FOREIGN = "foreign"  # another program's tables, or no database at all


class Build(NamedTuple):
    """What a build knows of the history: all its revisions, oldest first, and the one whose schema it needs.

    It needs the last one before those of the contract phase that end its history: it doesn't use what they remove.
    """

    revisions: tuple[str, ...]
    needed: str

    @classmethod
    def of_files(cls, names: Iterable[str]) -> Build:
        """The build whose history's files have these names; at least one must be of the expand phase."""
        files = sorted(match.groups() for name in names if (match := _FILE.fullmatch(name)))
        expand = [revision for revision, title in files if phase_of(title) != CONTRACT]
        return cls(tuple(revision for revision, _ in files), expand[-1])


def phase_of(title: str) -> str:
    """`contract` or `expand`, by what follows the number in a revision's file name."""
    return CONTRACT if title.removesuffix(".py").split("_")[0] == CONTRACT else "expand"


def judge(build: Build, revision: str, oldest_served: str) -> SchemaState:
    """How a schema of this revision, which serves builds from `oldest_served` on, looks to this build."""
    if revision in build.revisions:
        return SchemaState.CURRENT if revision >= build.needed else SchemaState.OLDER
    # Only a later program can have written a later number; nobody of ours writes anything else.
    if not revision.isdecimal() or int(revision) < int(build.revisions[-1]):
        return SchemaState.FOREIGN
    serves = oldest_served.isdecimal() and int(oldest_served) <= int(build.needed)
    return SchemaState.AHEAD if serves else SchemaState.NEWER


def session_name(name: str, needed: str, unique: str) -> str:
    """What a session of this build calls itself to PostgreSQL, which keeps 63 bytes; `unique` are 20 digits."""
    return f"{name[:_NAME_CHARS_MAX]} {needed} {unique}"


def older_sessions(names: Sequence[tuple[int, str]], floor: str) -> list[str]:
    """Sessions, of (process id, name), whose build is older than `floor`: those that name no revision are.

    What isn't named as a broker's session is another program's.
    """
    found = []
    for pid, name in names:
        match = _SESSION.fullmatch(name)
        if match and (match["revision"] or "").strip() < floor:
            found.append(f"session {pid} ({name.rpartition(' ')[0]})")
    return found
