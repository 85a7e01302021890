"""The lines of a batch file: read as a stream, none longer than a limit in memory, empty ones passed over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.job import AcceptedLine, RefusedLine
from broker.domain.lane import Lane
from broker.rules.abilities import Abilities, constrained
from broker.rules.admission import admit_line, refuse_line
from broker.rules.size_classes import allowed_lanes, size_class, size_limits

__all__ = ["LINE_BYTES_MAX", "Admission", "Chunk", "Line", "LineClass", "read_chunk"]

LINE_BYTES_MAX = 64_000_000
"""Pictures come in lines; longer ones are refused, unread. Which lanes carry a long one is a matter of theirs."""

_CHUNK_LINES = 2_000
_CHUNK_BYTES = 8_000_000
_KEPT_OF_LONG_LINES = 1_000_000
_BOM = b"\xef\xbb\xbf"


class Line(msgspec.Struct, frozen=True):
    """A line that holds anything. One that `is_too_long` has its beginning alone, for the name in it."""

    number: int
    text: bytes
    is_too_long: bool = False


class Chunk(msgspec.Struct):
    """Some lines of a file: how many it has there with those that are empty, and how many bytes they took."""

    lines: list[Line] = []
    count: int = 0
    bytes_read: int = 0
    at_end: bool = False


def read_chunk(source: BinaryIO, lines_before: int, *, at_start: bool) -> Chunk:
    """The next lines of `source`, which stands at the beginning of one."""
    chunk = Chunk()
    while chunk.count < _CHUNK_LINES and chunk.bytes_read < _CHUNK_BYTES:
        line = source.readline(LINE_BYTES_MAX + 1)
        if not line:
            chunk.at_end = True
            break
        chunk.bytes_read += len(line)
        chunk.count += 1
        is_too_long = len(line) > LINE_BYTES_MAX and not line.endswith(b"\n")
        if is_too_long:
            chunk.bytes_read += _skip_line(source)
            line = line[:_KEPT_OF_LONG_LINES]
        number = lines_before + chunk.count
        if at_start and number == 1:
            line = line.removeprefix(_BOM)
        if line and not line.isspace():
            chunk.lines.append(Line(number, line.rstrip(b"\r\n"), is_too_long))
    return chunk


def _skip_line(source: BinaryIO) -> int:
    """How many bytes there were up to its end."""
    skipped = 0
    while line := source.readline(_KEPT_OF_LONG_LINES):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


class LineClass(NamedTuple):
    """Lines of one class are carried, and can be done, by the same lanes: those that `constraints` allow."""

    size: int
    constraints: str


class Admission:
    """Which lines may run on `lanes` under a batch's constraints; what those can is looked up once a model."""

    def __init__(self, models: Collection[str], constraints: str, lanes: Sequence[Lane]) -> None:
        self._models = models
        self._constraints = constraints
        self._lanes = lanes
        self._limits: dict[str, tuple[int, ...]] = {}
        self._abilities: dict[str, Abilities] = {}

    def admit(self, line: Line) -> AcceptedLine | RefusedLine:
        """What becomes of it; whether its name was taken before is the caller's to know."""
        if line.is_too_long:
            message = f"the line is longer than {LINE_BYTES_MAX:,} bytes, the limit of a line"
            return refuse_line(line.number, line.text, ErrorCode.LINE_TOO_LARGE, message)
        found = admit_line(line.number, line.text, self._models)
        if isinstance(found, RefusedLine):
            return found
        limits = self._limits_of(found)
        if not limits or len(found.body) <= limits[-1]:
            return found
        message = f"the body has {len(found.body):,} bytes; what the lanes allowed can carry is {limits[-1]:,} at most"
        return RefusedLine(found.line_number, found.custom_id, ErrorCode.LINE_TOO_LARGE, message)

    def class_of(self, line: AcceptedLine) -> LineClass:
        """What it waits together with."""
        size = size_class(len(line.body), self._limits_of(line))
        need = self._abilities_of(line).need(line.endpoint, line.body)
        return LineClass(size, constrained(self._constraints, need) if need else self._constraints)

    def _abilities_of(self, line: AcceptedLine) -> Abilities:
        abilities = self._abilities.get(line.model)
        if abilities is None:
            allowed = allowed_lanes(line.model, self._constraints, self._lanes)
            abilities = self._abilities[line.model] = Abilities.of(lane.engine for lane in allowed)
        return abilities

    def _limits_of(self, line: AcceptedLine) -> tuple[int, ...]:
        limits = self._limits.get(line.model)
        if limits is None:
            limits = self._limits[line.model] = size_limits(line.model, self._constraints, self._lanes)
        return limits
