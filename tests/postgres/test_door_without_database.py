"""The door while PostgreSQL is away for longer than it is waited for: come again later, and never 500."""

from __future__ import annotations

import asyncio

import httpx
import psycopg
import pytest

from broker.api.app import make_app
from broker.api.desk import Desk
from broker.api.errors import Refused
from broker.api.leases import LeaseCounter
from broker.api.tokens import local_token
from broker.bus.envelope import Kind, seal
from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms
from broker.domain.identity import LOCAL
from broker.domain.presence import WorkerPresence
from broker.domain.shard import ClaimShards, RenewLease
from broker.front import Front
from broker.leasing import LeaseDoor

QUESTIONS = [
    ClaimShards((b"s" * 16,), "lane-a", "w1"),
    RenewLease(b"s" * 16, "lane-a", "w1", b""),
    WorkerPresence("w1", "lane-a", 1),
]


@pytest.fixture
def ask(world, proxied_url, tmp_path, monkeypatch):
    """A function that asks a door whose database is behind the proxy, and waits for it half a second at most."""
    monkeypatch.setattr("broker.database.drivers.postgres.connections.CONNECT_SECONDS", 1)
    database = PostgresDatabase(proxied_url, PostgresTerms(name="door", pool_size=2, retry_seconds=0.5))
    front = Front(
        database=database, lanes=world.lanes, clock=world.clock, wakeups=world.wakeups, health=world.health,
        folder=tmp_path,
    )  # fmt: skip
    leases = LeaseCounter(LeaseDoor(database, world.clock), world.ring, world.clock)
    app = make_app(Desk(front, None, 1_000_000), local_token("ib_token"), leases=leases)

    def asked(method, path, **how):
        async def once():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, headers={"Authorization": "Bearer ib_token"}, **how)

        return asyncio.run(once())

    yield asked
    database.close()


def _sealed(world, question):
    return seal(world.signers["lane-a"], Kind.LEASE, "broker", question, now_us=world.clock(), valid_us=60_000_000)


def _comes_again(answer):
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], answer.headers["Retry-After"]) == (503, "unavailable", "1"), error
    assert error["message"].count("\n") == 0
    return True


def test_workers_and_producers_are_told_to_come_again_and_are_answered_once_it_is_back(ask, proxy, world):
    asked = [("POST", "/broker/v1/leases", {"content": _sealed(world, question)}) for question in QUESTIONS]
    asked += [
        ("GET", "/broker/v1/lanes", {}),
        ("GET", "/broker/v1/jobs/job_" + 32 * "0", {}),
        ("POST", "/broker/v1/lanes/lane-a/pause", {}),
    ]
    before = [ask(method, path, **how).status_code for method, path, how in asked]
    assert before == [200, 200, 200, 200, 404, 200]
    proxy.refuse()
    assert all(_comes_again(ask(method, path, **how)) for method, path, how in asked)
    proxy.heal()
    assert [ask(method, path, **how).status_code for method, path, how in asked] == before


def test_a_summary_that_takes_too_long_is_cut_off_in_one_sentence(world, postgres_url, tmp_path, monkeypatch):
    monkeypatch.setattr("broker.api.desk.ledger._SUMMARY_SECONDS_MAX", 1)
    front = Front(
        database=world.database, lanes=world.lanes, clock=world.clock, wakeups=world.wakeups, health=world.health,
        folder=tmp_path,
    )  # fmt: skip
    desk = Desk(front, None, 1_000_000)
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE attempt IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Refused, match="the summary takes longer than 1 s") as refused:
            desk.ledger.summary(LOCAL, "lane")
        assert (refused.value.status, refused.value.code) == (503, "too_slow")
        other.rollback()
    assert desk.ledger.summary(LOCAL, "lane") == []
