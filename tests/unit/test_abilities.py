"""Lanes of one model that differ in what they can do: pictures and long prompts go only where those are done."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from broker.database.tables import job
from broker.domain.job import Constraints
from broker.domain.lane import EngineSettings
from broker.front import Front
from broker.intake.reruns import RerunTerms
from broker.ledger.explaining import explain, find_job
from broker.ledger.tables import attempt
from broker.rules.abilities import Abilities, Need
from broker.rules.demands import constraints_of
from broker.rules.submission import JobRequest, admit_job
from broker.stages.assembler import Assembler
from tests.unit.builders import MODEL, NOW_US, a_lane, a_line, a_price, an_identity

CHAT = "/v1/chat/completions"


def an_engine(**changes) -> EngineSettings:
    return EngineSettings(driver="echo", models=(MODEL,), **changes)


CHEAP = a_lane("cheap", engine=an_engine(context_tokens=1_000, pictures=False), slots=4)
DEAR = a_lane("dear", engine=an_engine(context_tokens=8_000), price=a_price(7_200_000_000), slots=4)
WIDE = a_lane("wide", engine=an_engine(), price=a_price(14_400_000_000), slots=4)
LANES = [CHEAP, DEAR, WIDE]
ABILITIES = Abilities.of(lane.engine for lane in LANES)


def messages(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], **more}


def a_picture(size: int = 10) -> dict:
    parts = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": "data:," + "A" * size}},
    ]
    return {"messages": [{"role": "user", "content": parts}]}


WORDS = "antidisestablishmentarianism "
FILE = b"".join(
    a_line(name, body=body) + b"\n"
    for name, body in {
        "short": messages("hi"),
        "picture": a_picture(),
        "long": messages(WORDS * 500),  # 1,750 tokens at the least
        "huge": messages(WORDS * 3_000),
        "large picture": a_picture(200_000),
        "also short": messages('what does "image_url" mean?'),
    }.items()
)
WHERE = {
    "short": "cheap",
    "also short": "cheap",
    "picture": "dear",
    "large picture": "dear",
    "long": "dear",
    "huge": "wide",
}


def lanes_of(world) -> dict[str, str]:
    """Runs all that waits; by job, where that was."""
    world.run_all()
    found = {}
    for name in WHERE:
        (job_id,) = world.read(find_job, "t", name)
        (attempt,) = world.read(explain, "t", job_id).attempts
        found[name] = attempt.lane
    return found


def test_each_line_goes_where_it_can_be_done(make_world):
    world = make_world(*LANES)
    world.take_in(FILE)
    assert lanes_of(world) == WHERE
    (job_id,) = world.read(find_job, "t", "huge")
    removed = {one.lane: one.filter for one in world.read(explain, "t", job_id).attempts[0].removed}
    assert removed["cheap"] == "context_tokens: fewer than 8001"
    (job_id,) = world.read(find_job, "t", "picture")
    assert {one.filter for one in world.read(explain, "t", job_id).attempts[0].removed} == {"pictures: reads none"}


def test_of_two_batches_each_keeps_to_its_own_lanes(make_world):
    world = make_world(*LANES)
    world.take_in(FILE, constraints=Constraints(lanes=("cheap",)))  # which nothing is left beside
    assert set(lanes_of(world).values()) == {"cheap"}
    world.take_in(FILE, tenant_id="u", constraints=Constraints(lanes=("cheap", "wide")))
    world.run_all()
    (job_id,) = world.read(find_job, "u", "picture")
    assert world.read(explain, "u", job_id).attempts[0].lane == "wide"


def test_a_single_job_is_bound_likewise():
    def allowed(body: dict, **changes) -> dict:
        request = JobRequest(body=json.dumps({"model": MODEL, **body}).encode(), **changes)
        return json.loads(admit_job(request, LANES, "t", NOW_US).job.constraints)

    assert allowed(messages("hi")) == {}
    assert allowed(a_picture()) == {"pictures": True}
    assert allowed(messages(WORDS * 500)) == {"context_tokens": 1_001}
    both = Constraints(lanes=("cheap", "dear"), context_tokens=20)
    assert allowed(messages(WORDS * 3_000), constraints=both) == {"context_tokens": 1_001, "lanes": ["cheap", "dear"]}
    only = Constraints(lanes=("cheap",))
    assert allowed(a_picture(), constraints=only) == {"lanes": ["cheap"]}


def test_what_bytes_say_nothing_of_is_left_to_the_servers():
    assert ABILITIES.need(CHAT, json.dumps(messages(" \n\t" * 100_000)).encode()) is None
    cyrillic = json.dumps(messages("\u0444" * 7_000)).encode()  # 42,000 bytes, written as escapes
    assert ABILITIES.need(CHAT, cyrillic) is None
    assert ABILITIES.need(CHAT, json.dumps(messages("\u0444" * 7_000), ensure_ascii=False).encode()) is None
    assert ABILITIES.need(CHAT, json.dumps(messages("\u0444" * 9_000)).encode()) == Need(context_tokens=1_001)
    assert ABILITIES.need("/v1/completions", json.dumps({"prompt": [[1, 2, 3]] * 10_000}).encode()) is None
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 90_000}}
    assert ABILITIES.need(CHAT, json.dumps({"messages": [{"role": "user", "content": [sound]}]}).encode()) is None


def test_where_lanes_are_alike_nothing_is_looked_at():
    for engines in ([an_engine()], [an_engine(context_tokens=9, pictures=False)] * 2, []):
        assert Abilities.of(engines) == Abilities()


def test_lines_that_are_run_again_are_sorted_again(make_world):
    world = make_world(*LANES)
    record = world.take_in(FILE)
    world.clock.advance(90_000)
    world.closer.step()  # all have expired
    parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
    front = Front(health=world.health, folder=world.folder, **parts)
    Assembler(world.database, world.clock).step()
    terms = RerunTerms(paths=lambda before: (before.output_path, before.error_path))
    again = front.reruns.create(an_identity("t"), world.batch(record.batch_id), terms)
    while front.reruns.step():
        pass
    assert world.batch(again.batch_id).accepted_jobs == len(WHERE)
    world.run_all()
    places = select(job.c.custom_id, attempt.c.lane).join(attempt, attempt.c.job_id == job.c.job_id)
    ran = world.read(lambda connection: connection.execute(places).all())
    assert dict(map(tuple, ran)) == WHERE


def test_both_can_be_asked_for():
    asked = constraints_of(["pictures=yes", "context-tokens=32000"])
    assert asked == Constraints(pictures=True, context_tokens=32_000)
    with pytest.raises(ValueError, match="context-tokens=N"):
        constraints_of(["context-tokens=many"])
    request = JobRequest(
        body=json.dumps({"model": MODEL, **messages("hi")}).encode(), constraints=Constraints(context_tokens=-1)
    )
    refused = admit_job(request, LANES, "t", NOW_US)
    assert refused.message == "constraints.context_tokens is -1; it must be 0 to 1,000,000,000"
