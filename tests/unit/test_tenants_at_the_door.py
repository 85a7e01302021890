"""Of jobs, batches, files and ledger rows a tenant sees its own: another's are to it as what never was."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from sqlalchemy import select

import broker.ledger.tables  # noqa: F401 (fills the metadata)
from broker.api.app import make_app
from broker.api.routes import SCOPES
from broker.api.tokens import FixedTokens
from broker.database import batches, submissions, tables
from broker.database.types import metadata
from broker.domain.identity import Scope
from broker.domain.ids import parse_id
from broker.domain.paths import OWN
from broker.ledger import standing
from broker.ledger.explaining import explain, find_job, where_is
from tests.unit.asking import ask, refusal
from tests.unit.builders import a_lane, an_identity
from tests.unit.producers import OTHER_TENANT, TENANT, ProducersWorld, a_request
from tests.unit.statements import PLATFORMS_TABLES, TENANTS_TABLES, fault_of, watched
from tests.unit.two_tenants import KEY, TwoTenants

NOBODYS = {"job": "job_" + "5" * 32, "batch": "batch_" + "5" * 32}
OF_AN_ID = [(method, path) for method, path in SCOPES if "{job}" in path or "{batch}" in path]
LACKING = list(product(Scope, ("blue", "red")))
LISTS = ["batches", "ledger/summary?by=tenant,outcome", "lanes", "instances"]


@pytest.fixture
def two(make_world):
    made = TwoTenants(make_world(a_lane(), a_lane("lane-b")))
    yield made
    made.close()


def kinds(path):
    return ("job", "jobs") if "{job}" in path else ("batch", "batches")


def ids_of(tenant, path):
    return getattr(tenant, kinds(path)[1]).values()


def shown(answer, text):
    """An answer without the id that was asked about."""
    status, content = answer
    return status, content.decode().replace(text, "ID")


def rows_of_all(two):
    names = sorted(TENANTS_TABLES | {"ready", "shard"})
    return {name: sorted(map(repr, two.world.rows(metadata.tables[name]))) for name in names}


def test_another_tenants_id_is_as_unknown_as_one_that_never_was_and_nothing_comes_of_asking(two):
    before = rows_of_all(two)
    asked = 0
    for (mine, theirs), (method, path) in product([(two.blue, two.red), (two.red, two.blue)], OF_AN_ID):
        kind = kinds(path)[0]
        nobodys = shown(two.ask(mine, method, path.format(**NOBODYS)), NOBODYS[kind])
        assert nobodys[0] == 404
        assert msgspec.json.decode(nobodys[1])["error"]["code"] == f"unknown_{kind}"
        for text, wait in product(ids_of(theirs, path), ["", "?wait=5"]):
            asked_at = path.format(job=text, batch=text) + wait
            assert shown(two.ask(mine, method, asked_at), text) == nobodys, asked_at
            asked += 1
    assert asked == 2 * 2 * (4 * 4 + 5 * 3)
    assert rows_of_all(two) == before


def test_each_route_answers_its_own_tenant(two):
    for tenant in (two.blue, two.red):
        name = tenant.identity.tenant
        for kind, text in tenant.jobs.items():
            assert two.answer(tenant, "GET", f"jobs/{text}")["status"] == kind
            assert two.answer(tenant, "GET", f"jobs/{text}")["tags"] == {"whose": name}
        two.answer(tenant, "GET", f"jobs/{tenant.jobs['succeeded']}/result")
        again = two.answer(tenant, "POST", f"jobs/{tenant.jobs['failed']}/redrive")
        assert again["redrive_of"] == tenant.jobs["failed"]
        assert two.answer(tenant, "POST", f"jobs/{tenant.jobs['waiting']}/cancel")["cancel_requested"]
        assert two.answer(tenant, "POST", f"batches/{tenant.batches['half']}/cancel")["status"] == "cancelling"
        finished = f"{OWN}/batches/{tenant.batches['finished']}"
        output, errors = (two.ask(tenant, "GET", f"{finished}/{which}") for which in ("output", "errors"))
        assert (output[0], errors[0]) == (200, 200)
        names = [msgspec.json.decode(line)["custom_id"] for line in output[1].splitlines()]
        assert names == [f"{name}-{number}" for number in range(tenant.size)]
        assert [msgspec.json.decode(line)["custom_id"] for line in errors[1].splitlines()] == [f"{name}-bad"]


def test_lists_and_sums_are_of_ones_own_alone(two):
    for tenant in (two.blue, two.red):
        listed = {one["id"]: one for one in two.answer(tenant, "GET", "batches")["batches"]}
        assert listed.keys() == set(tenant.batches.values())
        finished = listed[tenant.batches["finished"]]
        assert (finished["succeeded"], finished["refused_lines"]) == (tenant.size, 1)
        for text, one in listed.items():
            assert two.answer(tenant, "GET", f"batches/{text}") == one
        rows = two.answer(tenant, "GET", "ledger/summary?by=tenant,outcome")["rows"]
        sums = {(row["tenant"], row["outcome"]): row["jobs"] for row in rows}
        name = tenant.identity.tenant
        assert sums == {(name, "failed"): 1, (name, "succeeded"): tenant.size + 2}


def test_a_key_stands_for_another_job_with_each_tenant(two):
    request = {"body": {"model": "m", "messages": [{}]}, "idempotency_key": KEY}
    for tenant in (two.blue, two.red):
        whole = msgspec.json.encode(request | {"tags": {"whose": tenant.identity.tenant}})
        submitted = two.answer(tenant, "POST", "jobs", whole)
        assert submitted == {"id": tenant.jobs["succeeded"], "object": "job", "new": False}
        assert two.ask(tenant, "POST", f"{OWN}/jobs", msgspec.json.encode(request))[0] == 422


def test_without_a_token_or_the_scope_nothing_is_had_of_ones_own_either(two):
    narrow = {f"{lacking} of {name}": an_identity(name, *(set(Scope) - {lacking})) for lacking, name in LACKING}
    app = make_app(two.desk, FixedTokens(narrow))
    before, asked = rows_of_all(two), 0
    for tenant, (method, path) in product((two.blue, two.red), SCOPES):
        if (scope := SCOPES[method, path]) in {Scope.HEALTH, Scope.LEASES}:
            continue
        for kind in ("running", "waiting"):
            text = path.format(job=tenant.jobs[kind], batch=tenant.batches["half"], name="lane-b")
            assert refusal(ask(app, method, text, b"[]")) == (401, "unauthorized"), path
            token = f"{scope} of {tenant.identity.tenant}"
            assert refusal(ask(app, method, text, b"[]", token=token)) == (403, "forbidden"), path
            asked += 1
    assert asked == 2 * 2 * (len(SCOPES) - 2)
    assert rows_of_all(two) == before


# Statements.


def every_call(two, tenant):
    """What the tenant can ask, of its own and of others' ids."""
    for (method, path), owner in product(OF_AN_ID, (two.blue, two.red)):
        for text in ids_of(owner, path):
            status, content = two.ask(tenant, method, path.format(job=text, batch=text))
            assert status < 500, content
    for path in LISTS:
        two.answer(tenant, "GET", path)
    two.submit(tenant, "more", idempotency_key=f"more of {tenant.token}")
    two.upload(tenant, "more")


def test_every_statement_of_the_http_door_binds_the_tenant(two):
    for tenant in (two.blue, two.red):
        with watched(tenant.identity.tenant) as seen:
            every_call(two, tenant)
        assert seen.faults == []
        # All that a door can look into; what it adds it does by COPY on PostgreSQL.
        assert seen.tables >= {"job", "batch", "batch_count", "result", "payload", "job_outcome", "attempt"}
        assert seen.tables >= {"cancel_request", "idempotency", "shard_span"}


def _original(connection, tenant, job_id):
    """A look-up that asks whose the row is only afterwards."""
    owner = connection.execute(select(tables.job.c.tenant_id).where(tables.job.c.job_id == job_id)).scalar_one()
    assert owner == tenant


@pytest.mark.parametrize(
    ("place", "name", "without"),
    [
        (batches, "find", lambda connection, _tenant, batch_id: batches.get(connection, batch_id)),
        (batches, "progress_of", lambda connection, _tenant, ids: {i: batches.progress(connection, i) for i in ids}),
        (submissions, "original", _original),
    ],
)
def test_a_planted_statement_without_a_tenant_is_caught(two, monkeypatch, place, name, without):
    monkeypatch.setattr(place, name, without)
    with watched("blue") as seen:
        every_call(two, two.blue)
    assert seen.faults
    assert all("without a bound tenant" in fault for fault in seen.faults)


@pytest.mark.parametrize(
    ("statement", "parameters", "fault"),
    [
        ("SELECT result.body FROM result WHERE result.job_id = ?", (b"1",), "without"),
        ("UPDATE batch SET status=? WHERE batch.batch_id = ?", ("t", b"1"), "without"),
        ("INSERT INTO cancel_request (job_id) SELECT job.job_id FROM job WHERE job.job_id = ?", (b"1",), "without"),
        ("SELECT 1 FROM job WHERE job.tenant_id = ?", ("other",), "another"),
        ("SELECT 1 FROM job WHERE job.tenant_id = %(a)s::VARCHAR", {"a": "other"}, "another"),
        ("INSERT INTO job (job_id, tenant_id) VALUES (?, ?)", [(b"1", "t"), (b"2", "other")], "another"),
        ("INSERT INTO job (job_id, tenant_id) VALUES (?, ?)", [(b"1", "t"), (b"2", "t")], None),
        ("INSERT INTO payload (job_id, body) VALUES (?, ?)", [(b"1", b"x")], None),
        ("SELECT 1 FROM job WHERE job.tenant_id = %(a)s::VARCHAR", {"a": "t"}, None),
        ("SELECT lane_state.lane FROM lane_state", (), None),
    ],
)
def test_the_watch_knows_a_fault(statement, parameters, fault):
    found = fault_of(statement, parameters, "t")
    assert (fault in found) if fault else found is None


def test_every_table_is_a_tenants_or_the_platforms():
    assert TENANTS_TABLES.isdisjoint(PLATFORMS_TABLES)
    assert set(metadata.tables) == TENANTS_TABLES | PLATFORMS_TABLES


def test_every_statement_of_the_door_on_the_bus_binds_the_keys_tenant(make_world):
    bus = ProducersWorld(make_world(a_lane(), a_lane("lane-b")))
    try:
        for tenant, signer in ((TENANT, bus.producer), (OTHER_TENANT, bus.other)):
            jobs = [a_request("one", idempotency_key="k"), a_request("two"), a_request(constraints={"lanes": ["x"]})]
            with watched(tenant) as seen:
                bus.put(bus.sealed(jobs, signer=signer, reply_to="replies.mine"), bus.sealed(jobs, signer=signer))
                bus.receive(2)
            assert seen.faults == []
            assert seen.tables >= {"idempotency", "reply"}
    finally:
        bus.close()


def test_a_story_is_told_to_its_tenant_and_to_whoever_reads_the_database(two):
    for mine, theirs in ((two.blue, two.red), (two.red, two.blue)):
        tenant, world = mine.identity.tenant, two.world
        for text in theirs.jobs.values():
            job_id = parse_id("job", text)
            assert world.read(explain, tenant, job_id) is None
            assert world.read(explain, None, job_id).tenant == theirs.identity.tenant
        job_id = parse_id("job", mine.jobs["running"])
        with watched(tenant) as seen:
            assert world.read(explain, tenant, job_id).job_id == mine.jobs["running"]
            assert world.read(where_is, tenant, job_id).startswith("running on lane")
            assert world.read(find_job, tenant, f"{tenant}-0") != []
            assert world.read(find_job, tenant, f"{theirs.identity.tenant}-0") == []
        assert seen.faults == []
        assert world.read(where_is, theirs.identity.tenant, job_id) == "waiting for a lane with room"
        assert world.read(standing.standing, theirs.identity.tenant, job_id) is None


def test_a_batch_is_changed_by_its_own_tenant_alone(two):
    finished, half = (parse_id("batch", two.blue.batches[kind]) for kind in ("finished", "half"))
    before = rows_of_all(two)["batch"]
    for change in (
        lambda connection: batches.reopen(connection, "red", finished),
        lambda connection: batches.set_budget(connection, "red", half, 5),
        lambda connection: batches.set_paths(connection, "red", half, "a", "b"),
        lambda connection: batches.request_cancel(connection, "red", half, 1),
    ):
        two.world.database.write(change)
        assert rows_of_all(two)["batch"] == before
    two.world.database.write(lambda connection: batches.set_budget(connection, "blue", half, 5))
    assert two.world.batch(half).max_cost_nano_usd == 5


def test_uploads_of_both_are_read_into_their_own_batches(two):
    two.read_uploads()
    for tenant in (two.blue, two.red):
        record = two.world.batch(parse_id("batch", tenant.batches["unread"]))
        assert (record.tenant_id, record.accepted_jobs) == (tenant.identity.tenant, tenant.size)
        chosen = select(tables.job.c.tenant_id).where(tables.job.c.batch_id == record.batch_id)
        owners = two.world.read(lambda connection, chosen=chosen: connection.execute(chosen).scalars().all())
        assert owners == [tenant.identity.tenant] * tenant.size
