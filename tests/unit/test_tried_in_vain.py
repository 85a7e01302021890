"""A job whose window closes after tries that failed is told of them, beside others that never had a try."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from broker.database import batches
from broker.domain.errors import ErrorCode
from broker.ledger.explaining import find_job
from broker.ledger.standing import find_result, standing
from broker.stages.assembler import Assembler
from tests.unit.builders import DAY_SECONDS, a_failure, a_job_ran, a_lane, a_price, some_lines

EXPIRED = "This request could not be executed before the completion window expired."


@pytest.fixture
def tried(make_world):
    """Of two batches some lines failed once or twice, with servers in trouble, and wait; one has succeeded."""
    world = make_world(a_lane("cheap", shard_jobs_max=2), a_lane("dear", price=a_price(7_200_000_000)))
    world.batches = [
        world.take_in(some_lines(3), **paths(world, "t")),
        world.take_in(some_lines(2), tenant_id="u", **paths(world, "u")),
    ]
    world.take_in(some_lines(1, "single"), tenant_id="v")
    return world


def paths(world, name: str) -> dict[str, str]:
    return {"output_path": str(world.folder / f"{name}.out"), "error_path": str(world.folder / f"{name}.err")}


def fail_some(world, code: ErrorCode) -> None:
    """Everything that runs fails; the last line of all succeeds."""
    for shard in world.claimed():
        names = range(shard.jobs_count)
        world.record(
            world.ran(
                shard,
                *(a_job_ran(n) if shard.tenant_id == "v" else a_failure(n, code, status_code=503) for n in names),
            )
        )


def errors_of(world, record) -> dict[str, dict]:
    lines = map(msgspec.json.decode, Path(record.error_path).read_bytes().splitlines())
    return {line["custom_id"]: line["error"] for line in lines}


def test_the_error_file_says_what_was_tried(tried):
    fail_some(tried, ErrorCode.ENGINE_BUSY)
    tried.clock.advance(60)
    fail_some(tried, ErrorCode.ENGINE_MOVED)
    never = tried.take_in(some_lines(2, "late"), tenant_id="w", **paths(tried, "w"))
    tried.clock.advance(DAY_SECONDS + 1)
    tried.closer.step()
    Assembler(tried.database, tried.clock).step()
    for record in tried.batches:
        found = errors_of(tried, record)
        assert len(found) == record.accepted_jobs
        for error in found.values():
            assert error["code"] == "batch_expired"
            assert error["message"].startswith(f"{EXPIRED} It was tried "), error
            assert error["message"].endswith(("which ended as engine_busy.", "which ended as engine_moved.")), error
    assert any(
        "2 times, the last time on lane" in error["message"] for error in errors_of(tried, tried.batches[0]).values()
    )
    assert {error["message"] for error in errors_of(tried, never).values()} == {EXPIRED}


def test_the_door_says_it_too_and_who_is_cancelled_hears_it(tried):
    fail_some(tried, ErrorCode.ENGINE_UNREACHABLE)
    first, second = tried.batches
    tried.database.write(lambda connection: batches.request_cancel(connection, "u", second.batch_id, tried.clock()))
    tried.closer.step()
    (job_id,) = tried.read(find_job, "u", "a1")
    said = (
        "This request was cancelled with its batch. It was tried once on lane cheap, which ended as engine_unreachable."
    )
    assert tried.read(standing, "u", job_id).message == said
    assert tried.read(find_result, "u", job_id).status_code == 0
    (other,) = tried.read(find_job, "t", "a1")
    assert tried.read(standing, "t", other).message is None
    assert first.tenant_id == "t"
