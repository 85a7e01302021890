"""A store for large bodies that can't be used is told of at the start, in one sentence that names the variable."""

from __future__ import annotations

import pytest

from broker.bootstrap.buses import open_store
from broker.bootstrap.lane_worker import LaneWorker, WorkerTerms
from broker.domain.errors import UsageError
from broker.keys import load_or_create_signer, trust_text
from tests.unit.builders import a_lane


def test_the_broker_makes_its_folder_and_leaves_nothing_in_it(tmp_path):
    store = open_store(f"file://{tmp_path}/new/folder", makes_folder=True)
    assert list(store.stored("checks", None)) == []
    store.put("shards/x", b"1")
    assert open_store(f"file://{tmp_path}/new/folder", makes_folder=False).get("shards/x", 1) == b"1"


@pytest.mark.parametrize("makes_folder", [True, False])
def test_a_folder_that_can_not_be_used_is_told(tmp_path, makes_folder):
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(UsageError, match=r"^BROKER_PAYLOADS_URL: [^\n]+$"):
            open_store(f"file://{tmp_path}/{path}", makes_folder=makes_folder)


def test_a_folder_that_can_not_be_written_is_told(tmp_path):
    (tmp_path / "checks").touch()  # in the place of a folder; rights would not stop root
    with pytest.raises(UsageError, match=r"^BROKER_PAYLOADS_URL: the payload was not stored: [^\n]+$"):
        open_store(f"file://{tmp_path}", makes_folder=False)


def test_a_store_elsewhere_is_not_asked_yet(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert open_store("s3://bucket/x", makes_folder=False).signs


def test_a_worker_does_not_start_without_the_brokers_folder(tmp_path):
    signer, _ = load_or_create_signer(tmp_path, "lane-a")
    (tmp_path / "broker.pub").write_text(trust_text([(signer.key_id, signer.public_bytes)]))
    terms = WorkerTerms(
        url="http://127.0.0.1:9",
        bus_url="lanemem://unit",
        key=tmp_path / "lane-a.key",
        trusted=tmp_path / "broker.pub",
        payloads_url=f"file://{tmp_path}/unmounted",
    )
    with pytest.raises(UsageError) as caught:
        LaneWorker(a_lane(), terms)
    folder = f"there is no folder {tmp_path}/unmounted"
    assert str(caught.value) == f"BROKER_PAYLOADS_URL: {folder}: it must be the one that the broker's processes have"
    assert not (tmp_path / "unmounted").exists()
