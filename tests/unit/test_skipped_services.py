"""Tests that skip for want of a service are counted where everyone sees it."""

from __future__ import annotations

import pytest

from infra.servers.process import ServerMissing, find_program
from tests.conftest import untested
from tests.services.probing import SHARED, Absent


def reason_without(kind: str, monkeypatch) -> str:
    monkeypatch.setenv(SHARED[kind].variable, SHARED[kind].usual_url.split("://")[0] + "://127.0.0.1:1/x")
    with pytest.raises(Absent) as caught:
        SHARED[kind].url()
    return str(caught.value)


def test_each_missing_service_is_a_line_with_its_tests(monkeypatch):
    with pytest.raises(ServerMissing) as caught:
        find_program("Pub/Sub emulator", ["no-such-program"])
    reasons = [reason_without("postgres", monkeypatch)] * 3 + [reason_without("redis", monkeypatch), str(caught.value)]
    how = "(BROKER_REQUIRE_SERVICES=1 makes that an error)"
    assert untested(["needs the demo extra: xllamacpp", *reasons]) == [
        f"NOT TESTED: 3 tests skipped, as there is no PostgreSQL here {how}",
        f"NOT TESTED: 1 test skipped, as there is no Redis here {how}",
        f"NOT TESTED: 1 test skipped, as there is no Pub/Sub emulator here {how}",
    ]


def test_a_rabbitmq_that_is_not_there_is_absent_too(monkeypatch):
    assert untested([reason_without("rabbitmq", monkeypatch)])[0].startswith(
        "NOT TESTED: 1 test skipped, as there is no R"
    )


def test_nothing_is_said_where_all_are_there():
    assert untested([]) == []
