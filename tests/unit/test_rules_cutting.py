"""Cutting shards from a line of spans: nothing is lost, doubled, out of order or too large."""

from __future__ import annotations

from itertools import count

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.ids import ids_of_span
from broker.rules.cutting import Cursor
from broker.rules.sharding import JOB_OVERHEAD_BYTES
from tests.unit.builders import a_lane, a_span

BATCHES = (b"b" * 16, b"c" * 16, None)
LANES = [
    a_lane("small", message_bytes_max=10_000, shard_jobs_max=6),
    a_lane("slow", jobs_per_second=0.3, shard_jobs_max=64),
    a_lane("large", shard_jobs_max=512),
]


def _spans(parts):
    """Spans in the order of their ids, none of which is shared."""
    numbers = count(1)
    return [
        a_span(
            jobs_count,
            first_job_id=next(numbers).to_bytes(12, "big") + bytes(4),
            batch_id=batch_id,
            body_bytes_max=size,
            alone=alone,
        )
        for jobs_count, batch_id, size, alone in parts
    ]


def _jobs(spans):
    return [job for span in spans for job in ids_of_span(span.first_job_id, span.jobs_count)]


lines = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from(BATCHES), st.sampled_from([10, 900, 20_000]), st.booleans()),
    max_size=12,
).map(_spans)
# A shard for a lane, of at most so many jobs; or what is next is left: for its batch, or for what it is.
steps = st.lists(
    st.sampled_from(["hold", "pass over"]) | st.tuples(st.sampled_from(LANES), st.integers(1, 50)), max_size=12
)
bytes_most = st.sampled_from([500, 5_000, 1 << 30])


@given(lines, st.lists(st.tuples(steps, bytes_most), max_size=3))
def test_every_job_is_taken_put_back_or_left_waiting_and_shards_keep_their_limits(spans, rounds):
    cursor, held, shards = Cursor(spans, 3), set(), []
    for step, bytes_max in [(step, bytes_max) for steps, bytes_max in rounds for step in steps]:
        first = cursor.first(held, bytes_max)
        if first is None:
            break
        assert first.body_bytes_max <= bytes_max
        assert first.batch_id not in held
        if step == "hold":
            held.add(first.batch_id)
            continue
        if step == "pass over":
            cursor.pass_over()
            continue
        lane, jobs_max = step
        shards.append(cursor.take(lane, jobs_max))
        _check_shard(shards[-1], first, lane, jobs_max)
    changes = cursor.changes()
    used = {span.first_job_id for span in changes.used}
    left = [span for span in spans if span.first_job_id not in used]
    taken = [job for shard in shards for job in _jobs(shard)]
    assert sorted(taken + _jobs(changes.put_back) + _jobs(left)) == _jobs(spans)  # each in exactly one of them
    assert taken == sorted(taken)  # in the order of the line
    assert len(used) == len(changes.used)
    assert len({span.first_job_id[:12] for span in changes.put_back}) == len(changes.put_back)  # a row for a span
    assert all(span in spans for span in changes.used)  # the rows themselves, to be deleted by their first id


def _check_shard(shard, first, lane, jobs_max):
    jobs_count = sum(part.jobs_count for part in shard)
    assert 1 <= jobs_count <= min(jobs_max, lane.shard_jobs_max)
    assert shard[0].first_job_id == first.first_job_id
    assert {part.batch_id for part in shard} == {first.batch_id}
    assert jobs_count == 1 or not any(part.alone for part in shard)
    largest = max(part.body_bytes_max for part in shard)
    assert jobs_count == 1 or jobs_count * (largest + JOB_OVERHEAD_BYTES) <= lane.message_bytes_max


@given(lines)
def test_what_is_not_cut_stays_as_it_was(spans):
    cursor = Cursor(spans, 3)
    assert cursor.first(set(), 1 << 30) == (spans[0] if spans else None)
    assert cursor.first(set(BATCHES), 1 << 30) is None
    changes = cursor.changes()
    assert (changes.used, changes.put_back) == ([], [])


def test_what_is_left_of_a_span_keeps_all_but_its_place():
    span = a_span(10, attempt_number=2, failures=1, not_before_us=7)
    cursor = Cursor([span], 3)
    (taken,) = cursor.take(LANES[2], 4)
    changes = cursor.changes()
    assert (taken.jobs_count, changes.used) == (4, [span])
    (rest,) = changes.put_back
    assert rest.jobs_count == 6
    assert msgspec.structs.replace(rest, first_job_id=span.first_job_id, jobs_count=10) == span
