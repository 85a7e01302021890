"""What `broker batch run` does is the local tenant's and touches no other's rows; so does the folder's token."""

from __future__ import annotations

from broker.api.server import load_or_create_token
from broker.api.tokens import local_token
from broker.bootstrap import batch_run
from broker.bootstrap.batch_run import BatchRun, RunOptions
from broker.bootstrap.batch_source import open_source
from broker.bootstrap.embedded import Embedded
from broker.domain.identity import LOCAL, Scope
from tests.unit.builders import a_lane, an_identity, some_lines
from tests.unit.statements import watched


def test_every_statement_of_batch_run_binds_the_local_tenant(data, monkeypatch):
    # How fast lanes are is learned from all tenants' attempts, and tells of none of them.
    monkeypatch.setattr(batch_run, "learned_speeds", lambda _connection, _lanes: {})
    source = data / "in.jsonl"
    source.write_bytes(some_lines(3))
    with Embedded(data, [a_lane()]) as embedded, open_source(source, data) as opened:
        for budget in (None, 1_000_000, 2_000_000):
            options = RunOptions(source=source, output=data / f"{budget}.jsonl", max_cost_nano_usd=budget)
            with watched(LOCAL.tenant) as seen:
                run = BatchRun(embedded, options, opened)
                run.progress()
                run.result()
            assert seen.faults == []
            assert seen.tables >= {"batch", "batch_count", "attempt"}
        assert run.record.tenant_id == LOCAL.tenant


def test_the_same_file_is_another_batch_with_another_tenant(data):
    source = data / "in.jsonl"
    source.write_bytes(some_lines(3))
    with Embedded(data, [a_lane()]) as embedded, open_source(source, data) as opened:
        options = RunOptions(source=source, output=data / "out.jsonl")
        runs = [
            BatchRun(embedded, options, opened, identity)
            for identity in (LOCAL, an_identity("b"), LOCAL, an_identity("b"))
        ]
    assert [run.is_resumed for run in runs] == [False, False, True, True]
    assert [run.record.tenant_id for run in runs] == ["default", "b"] * 2
    assert [run.record.batch_id for run in runs[:2]] == [run.record.batch_id for run in runs[2:]]


def test_the_folders_token_may_do_all_that_no_signature_is_needed_for(tmp_path):
    token = load_or_create_token(tmp_path)
    identity = local_token(token).find(token.encode())
    assert (identity, identity.tenant) == (LOCAL, "default")
    assert set(Scope) - identity.scopes == {Scope.LEASES}
