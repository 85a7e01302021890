"""The two files of a batch that ran another's lines again: what all runs brought, in the order of the source.

Of each line the newest run that had it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from broker.database.connection import Connection, Database
from broker.domain.errors import BrokerError
from broker.domain.job import RefusedLine
from broker.domain.outcome import Outcome
from broker.ledger import results
from broker.ledger.results import EndedLine
from broker.rules.output import refusal_line
from broker.stages.output_files import Draft, failure_of, next_page_lines, success_of

__all__ = ["MergedFiles"]

_LINES_PER_PAGE = 500

T = TypeVar("T")

_Placed = tuple[int, int, EndedLine | RefusedLine]
"""A line's number, the place of its run, the newest of which is 0, and the line."""


class MergedFiles:
    """The files of `batch_ids[0]`, which ran lines of the next one again, and so on; all of their lines have ended.

    Whatever raises, call `discard` then.
    """

    def __init__(self, database: Database, batch_ids: Sequence[bytes], output_path: str, error_path: str) -> None:
        self._database = database
        self._batch_ids = batch_ids
        self._output, self._errors = Draft(Path(output_path)), Draft(Path(error_path))
        self._newest_counts = [0, 0]

    def advance(self) -> None:
        """Nothing is written ahead: most lines have ended before, and are read at once."""

    def finish(self, ended_jobs: int, refused_lines: int) -> None:
        """Write both and give them their names. The counts are the newest run's.

        Raises OSError; BrokerError if there are not as many lines as it has.
        """
        runs = [self._ended(place, batch_id) for place, batch_id in enumerate(self._batch_ids)]
        runs += [self._refused(place, batch_id) for place, batch_id in enumerate(self._batch_ids)]
        for _, of_line in groupby(merge(*runs, key=itemgetter(0, 1)), key=itemgetter(0)):
            self._write(*next(of_line)[1:])
        if self._newest_counts != [ended_jobs, refused_lines]:
            found_jobs, found_refused = self._newest_counts
            raise BrokerError(
                f"batch {self._batch_ids[0].hex()} has {ended_jobs:,} ended jobs and {refused_lines:,} refused lines,"
                f" but {found_jobs:,} and {found_refused:,} were found: its files are not written"
            )
        self._output.keep()
        self._errors.keep()

    def discard(self) -> None:
        """Leave nothing of what has no final name yet."""
        self._output.discard()
        self._errors.discard()

    def _write(self, place: int, line: EndedLine | RefusedLine) -> None:
        if isinstance(line, RefusedLine):
            refusal = refusal_line(self._batch_ids[place], line.line_number, line.custom_id, line.code, line.message)
            self._errors.write(refusal)
        elif line.outcome is Outcome.SUCCEEDED:
            self._output.write(success_of(line))
        else:
            self._errors.write(failure_of(line))
        if place == 0:
            self._newest_counts[isinstance(line, RefusedLine)] += 1

    def _ended(self, place: int, batch_id: bytes) -> Iterator[_Placed]:
        after, limit, goes_on = 0, _LINES_PER_PAGE, True
        while goes_on:
            page, goes_on = self._read(results.ended_lines, batch_id, after, limit)
            yield from ((line.line_number, place, line) for line in page)
            if page:
                after, limit = page[-1].line_number, next_page_lines(page)

    def _refused(self, place: int, batch_id: bytes) -> Iterator[_Placed]:
        after = 0
        while page := self._read(results.refused_lines, batch_id, after, _LINES_PER_PAGE):
            yield from ((line.line_number, place, line) for line in page)
            after = page[-1].line_number

    def _read(self, read: Callable[[Connection, bytes, int, int], T], batch_id: bytes, after: int, limit: int) -> T:
        return self._database.read(lambda connection: read(connection, batch_id, after, limit))
