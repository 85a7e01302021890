"""Where replies may be written: to no file that is being read, and over none that somebody may still want."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.domain.errors import UsageError, reason_of

__all__ = [
    "check_apart",
    "check_free",
    "check_writable",
    "draft_of",
    "holds_anything",
    "set_aside",
    "stat_of_input",
]

_REPLIES_BEGIN = b'{"id":"batch_req_'


def draft_of(path: Path) -> Path:
    """Where a file is written until it is complete and takes its name."""
    return path.with_name(f".{path.name}.part")


def stat_of_input(source: Path) -> os.stat_result | None:
    """What a command is to read, `-` being standard input; None where there is nothing."""
    try:
        return os.fstat(0) if str(source) == "-" else source.stat()
    except OSError:
        return None


def check_apart(outputs: Mapping[str, Path], inputs: Mapping[str, os.stat_result | None]) -> None:
    """No output is an input, nor the other output, by whatever name or link. Raises UsageError.

    `outputs` by what a sentence calls each, `inputs` likewise.
    """
    for name, path in outputs.items():
        for place in (path, draft_of(path), _resolved(path), draft_of(_resolved(path))):
            found = stat_of_input(place)
            for what, taken in inputs.items():
                if found is not None and taken is not None and os.path.samestat(found, taken):
                    raise UsageError(
                        f"{name} {path} is {what} itself, which would be lost: name another file with --output"
                    )
    (first, one), *rest = outputs.items()
    for second, other in rest:
        if str(_resolved(one)).casefold() == str(_resolved(other)).casefold():  # some disks know no capitals
            raise UsageError(f"{first} and {second} are both {one}: give them different names")


def check_free(paths: Sequence[Path]) -> None:
    """None holds anything but the replies of an earlier run, for `set_aside`. Raises UsageError."""
    for path in paths:
        place = _resolved(path)
        if holds_anything(place) and not _holds_replies(place):
            raise UsageError(
                f"{path} exists, and holds something else than replies, which would be lost:"
                " name another file with --output, or add --overwrite"
            )


def set_aside(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Keep what these hold, as `x.1.jsonl` and so on; of each that was kept, what it was called and is called now.

    All get the same number, the lowest that is free for all: the highest is the newest. Raises UsageError.
    """
    kept = [path for path in map(_resolved, paths) if holds_anything(path)]
    number = 1
    while any(_numbered(path, number).exists() for path in paths):
        number += 1
    moved = [(path, _numbered(path, number)) for path in kept]
    for path, aside in moved:
        try:
            path.rename(aside)
        except OSError as error:
            raise UsageError(f"can't keep {path} as {aside}: {reason_of(error)}") from None
    return moved


def _numbered(path: Path, number: int) -> Path:
    place = _resolved(path)
    return place.with_name(f"{place.stem}.{number}{place.suffix}")


def _holds_replies(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_REPLIES_BEGIN)) == _REPLIES_BEGIN
    except OSError:
        return False


def holds_anything(path: Path) -> bool:
    """Whether there is a file with content."""
    found = stat_of_input(path)
    return found is not None and stat.S_ISREG(found.st_mode) and found.st_size > 0


def check_writable(paths: Sequence[Path]) -> None:
    """Found now, not when every job has run and been paid for; folders are made. Raises UsageError."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"can't write {path}: {reason_of(error)}") from None
        if path.is_dir():
            raise UsageError(f"can't write {path}: it is a folder")
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"can't write {path}: it is a device or a pipe, and replies go to files")
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"can't write {path}: its folder is read-only")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"can't write {path}: permission denied")


def _resolved(path: Path) -> Path:
    """Without links and dots, also where a folder is yet to be made: `new/../in.jsonl` will be `in.jsonl`."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link that leads to itself
        return path.absolute()
