"""What lanes need of OCI Queue is shown, made once, and never changed."""

from __future__ import annotations

import pytest

from broker.bus.bus_plan import QueueState
from broker.bus.driver import BusUnavailable
from broker.bus.drivers.ociqueue.provision import provision
from infra.emulators.ociqueue import COMPARTMENT, Action, Emulator, Fault, Options, Point


@pytest.fixture
def server():
    with Emulator() as running:
        yield running


def url_of(server, query=""):
    return f"laneoci://127.0.0.1:{server.port}/{COMPARTMENT}?emulator=true{query}"


def test_what_is_missing_is_shown_then_made_and_then_there():
    with Emulator(Options(work_seconds=0.1)) as server:
        shown_made_and_there(server)


def shown_made_and_there(server):
    url = url_of(server)
    for make, state in ((False, QueueState.MISSING), (True, QueueState.CREATED), (True, QueueState.PRESENT)):
        lines = list(provision(url, ["shards", "events"], make=make))
        assert [line.name for line in lines] == ["shards-dead", "shards", "events-dead", "events"]
        assert {(line.bus, line.state, line.note) for line in lines} == {(url, state, "keeps messages for 7 days")}
    assert len(server.state()["queues"]) == 4


def test_one_queue_for_all_dead_letters_is_made_once(server):
    lines = list(provision(url_of(server, "&dead_letters=graves"), ["shards", "events"], make=True))
    assert [line.name for line in lines] == ["graves", "shards", "events"]


def test_differences_are_named_with_the_way_out_and_left_alone(server):
    server.create_queue("shards", retention_seconds=3_600, delivery_count=5)
    for make in (False, True):
        _, line = provision(url_of(server), ["shards"], make=make)
        assert line.state is QueueState.DIFFERENT
        assert "deadLetterQueueDeliveryCount is 5" in line.note
        assert "--dead-letter-queue-delivery-count 0" in line.note
        assert "retentionInSeconds is 3600, 604800 is wanted" in line.note
        assert "retention_seconds=3600" in line.note


def test_who_wants_what_is_there_sees_no_difference(server):
    server.create_queue("shards", retention_seconds=3_600)
    _, line = provision(url_of(server, "&retention_seconds=3600"), ["shards"], make=False)
    assert (line.state, line.note) == (QueueState.PRESENT, "keeps messages for 3600 seconds")


def test_a_name_that_two_queues_have_and_one_that_is_not_ready_are_named():
    with Emulator(Options(work_seconds=60, manual_clock=True)) as still:
        older = still.create_queue("shards", retention_seconds=604_800)
        still.advance(1)
        still.create_queue("shards")
        still.advance(60)
        still.create_queue("shards-dead", retention_seconds=604_800)
        dead, line = provision(url_of(still), ["shards"], make=False)
    assert "2 queues have this name" in line.note
    assert older in line.note
    assert dead.state is QueueState.DIFFERENT
    assert "it is CREATING" in dead.note


def test_a_service_that_fails_is_unavailable(server):
    server.add_fault(Fault(Point.ADMIN, Action.REFUSE, status=500, code="InternalServerError", message="out of order"))
    with pytest.raises(BusUnavailable, match="out of order"):
        list(provision(url_of(server), ["shards"], make=False))
    with pytest.raises(ValueError, match="colour"):
        list(provision(url_of(server, "&colour=red"), ["shards"], make=False))
