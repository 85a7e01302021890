"""Cutting shards from a group's line of waiting spans: what is taken, which rows are used up, what is put back."""

from __future__ import annotations

from collections.abc import Container, Sequence

import msgspec

from broker.domain.job import WaitingSpan
from broker.domain.lane import Lane
from broker.rules.sharding import jobs_per_shard

__all__ = ["Changes", "Cursor"]

_UNLIKE = 4
"""Jobs are of quite another size when so many times as many, or as few, would make a shard."""


class Changes(msgspec.Struct, frozen=True):
    """What cutting did to the rows of `ready`.

    `used`: the rows of which jobs were taken, to be deleted. `put_back`: what is left of them, to be inserted: one row
    for the place where cutting ended, if it is inside a span, and one for each span that was begun and then left.
    """

    used: list[WaitingSpan]
    put_back: list[WaitingSpan]


class Cursor:
    """A place in a line of spans: the span with this index, less its first `offset` jobs, is next.

    It only moves forward, so what it has passed is either used or still waiting, as it was. Jobs that were preempted
    `preemptions_max` times have other lanes than the rest.
    """

    def __init__(self, spans: Sequence[WaitingSpan], preemptions_max: int) -> None:
        self._spans = spans
        self._preemptions_max = preemptions_max
        self._index = 0
        self._offset = 0
        self._used: list[WaitingSpan] = []
        self._put_back: list[WaitingSpan] = []

    def first(self, held_batches: Container[bytes | None], bytes_max: int) -> WaitingSpan | None:
        """What is next, without what was taken of it; None at the end.

        Spans of held batches, and those with bodies above `bytes_max`, are left waiting.
        """
        while self._index < len(self._spans):
            span = self._spans[self._index]
            if span.batch_id not in held_batches and span.body_bytes_max <= bytes_max:
                return self._rest()
            self._leave()
        return None

    def _is_kept_off_spot(self, span: WaitingSpan) -> bool:
        return span.preemptions >= self._preemptions_max

    def pass_over(self) -> None:
        """Leave what is next waiting: no lane takes it now, though it may take what comes after."""
        self._leave()

    def take(self, lane: Lane, jobs_max: int) -> list[WaitingSpan]:
        """The next jobs of one batch for one shard, in order: up to `jobs_max`, and to what the lane's message carries.

        A suspect (`alone`) comes by itself. What is kept off spot and what isn't don't come along with each other, for
        the lane was chosen by that, nor do jobs that other lanes failed; nor do jobs of quite another size: they may
        have a better lane, and would make a small shard. `jobs_max` is at least 1; empty only at the end.
        """
        taken: list[WaitingSpan] = []
        count = fitting = 0
        while self._index < len(self._spans):
            rest = self._rest()
            alike = jobs_per_shard(lane, rest)
            fitting = fitting or alike
            jobs_max = min(jobs_max, alike)
            if taken and (
                rest.batch_id != taken[0].batch_id
                or rest.alone
                or self._is_kept_off_spot(rest) is not self._is_kept_off_spot(taken[0])
                or rest.failed_lanes != taken[0].failed_lanes
                or count >= jobs_max
                or max(alike, fitting) > _UNLIKE * min(alike, fitting)
            ):
                break
            part = rest.part(0, min(rest.jobs_count, jobs_max - count))
            taken.append(part)
            count += part.jobs_count
            self._advance(part.jobs_count)
            if count >= jobs_max:
                break
        return taken

    def changes(self) -> Changes:
        """What is to be written; cutting has ended here."""
        if self._offset:
            self._put_back.append(self._rest())
            self._index, self._offset = len(self._spans), 0
        return Changes(self._used, self._put_back)

    def _rest(self) -> WaitingSpan:
        span = self._spans[self._index]
        return span.part(self._offset, span.jobs_count - self._offset) if self._offset else span

    def _advance(self, count: int) -> None:
        span = self._spans[self._index]
        if not self._offset:
            self._used.append(span)
        self._offset += count
        if self._offset == span.jobs_count:
            self._index, self._offset = self._index + 1, 0

    def _leave(self) -> None:
        if self._offset:
            self._put_back.append(self._rest())
        self._index, self._offset = self._index + 1, 0
