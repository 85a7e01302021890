"""The disk that uploads go to is full: the producer is told so in a sentence, and nothing of the file stays."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from broker.api.app import make_app
from broker.api.desk import Desk
from broker.api.tokens import local_token
from broker.bootstrap.embedded import Embedded
from broker.clock import utc_now_us
from broker.front import Front
from tests.harness.small_disk import SmallDisk
from tests.unit.builders import a_lane, some_lines


@pytest.fixture
def disk():
    with SmallDisk(2) as made:
        yield made


@pytest.fixture
def send(tmp_path, disk):
    """A function that uploads a file to a door whose uploads lie on the small disk."""
    embedded = Embedded(tmp_path, [a_lane()])
    front = Front(
        database=embedded.database, lanes=[a_lane()], clock=utc_now_us, wakeups=embedded.front.wakeups,
        health=embedded.health, folder=disk.path,
    )  # fmt: skip
    app = make_app(Desk(front, None, 1_000_000_000), local_token("ib_token"))

    def sent(content):
        async def once():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                headers = {"Authorization": "Bearer ib_token"}
                return await client.post("/broker/v1/batches", content=content, headers=headers, timeout=60)

        return asyncio.run(once())

    yield sent
    embedded.stop()


@pytest.mark.parametrize("lines", [3, 20_000], ids=["a small file", "a file larger than the disk"])
def test_an_upload_to_a_full_disk_is_refused_with_507_and_leaves_nothing(send, disk, lines):
    if lines == 3:
        disk.fill()
    refused = send(some_lines(lines))
    assert (refused.status_code, refused.headers["Retry-After"]) == (507, "30")
    assert refused.json()["error"] == {
        "code": "disk_full",
        "message": "the broker's disk is full: nothing of this request was kept; send it again once there is room",
        "field": None,
    }
    assert list((disk.path / "uploads").glob("*")) == []
    disk.free()
    assert send(some_lines(3)).status_code == 201
