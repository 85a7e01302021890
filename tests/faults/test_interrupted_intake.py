"""kill -9 while a large file is being read: started again, it reads on, and no line is lost or doubled."""

from __future__ import annotations

from functools import partial

from tests.flow.program import Program, custom_ids, encoded, kill_group, lines_of, request, wait_until

LINES = 20_000
KILLS = 3


def line_of(number: int) -> bytes:
    """Each hundredth is none of ours; each 997th has the name of one far before it, across most interruptions."""
    if number % 100 == 0:
        return b"this is not JSON"
    if number > LINES // 2 and number % 997 == 0:
        return encoded(request(number, custom_id="job-1"))
    return encoded(request(number))


def reads_beyond(program: Program, read: int) -> bool:
    """Also looks that at no moment lines are in whose reading isn't, or the other way round."""
    counted = "SELECT read_lines, accepted_jobs, (SELECT count(*) FROM job) FROM batch"
    for lines, accepted, inserted in program.query_live(counted):
        assert accepted == inserted
        return bool(lines > read)
    return False


def test_a_killed_reading_goes_on_where_it_stopped(tmp_path):
    program = Program(tmp_path)
    program.three_lanes(slots=1, shard_jobs_max=512, jobs_per_second=2_000.0)
    lines = [line_of(number) for number in range(1, LINES + 1)]
    program.give(lines)
    read = 0
    for _ in range(KILLS):
        process = program.start(*program.command())
        try:
            wait_until(partial(reads_beyond, program, read), process, f"it read beyond line {read}", pause_seconds=0)
        finally:
            kill_group(process)
        [(read, read_bytes, accepted, refused, inserted)] = program.query(
            "SELECT read_lines, read_bytes, accepted_jobs, refused_lines, (SELECT count(*) FROM job) FROM batch"
        )
        assert read < LINES, "it was killed too late: read to the end"
        assert read_bytes == sum(len(line) + 1 for line in lines[:read])
        assert accepted + refused == read
        assert inserted == accepted
    ended = program.ended_jobs()
    before = len(program.calls())
    program.finish()
    assert not ended & set(program.calls()[before:])
    good = [n for n in range(1, LINES + 1) if n % 100 and not (n > LINES // 2 and n % 997 == 0)]
    assert custom_ids(program.output) == [f"job-{number}" for number in good]
    refused_lines = [line["error"]["line"] for line in lines_of(program.errors)]
    assert refused_lines == sorted(set(range(1, LINES + 1)) - set(good))
    assert program.query("SELECT count(*) FROM job") == [(len(good),)]
    assert len(set(program.calls())) == len(good)
