"""Where a worker finds the lease door: at this version's path, or at that of the version before."""

from __future__ import annotations

import msgspec
import pytest

from broker.api.gate import Gate
from broker.api.server import Door, listen
from broker.api.tokens import local_token
from broker.clock import utc_now_us
from broker.domain.paths import LEASES, LEASES_BEFORE
from broker.domain.presence import PresenceAnswer, WorkerPresence
from tests.unit.builders import a_signer
from workers.door import DoorShut, HttpLeaseDoor

HERE = WorkerPresence("w1", "lane-a", 1)


class Broker:
    """A real socket, and behind it the gate or what stands in its place; it knows which paths were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.paths = {LEASES}
        self.gate = Gate(self._nothing, tokens=local_token("ib_token"), hosts=["127.0.0.1"], direct={})
        self.knows_its_routes = True
        self.door = Door(self, listen("127.0.0.1", 0))
        self.door.start()

    async def __call__(self, scope, receive, send) -> None:
        self.asked.append(scope["path"])
        if scope["path"] in self.paths:
            body = msgspec.msgpack.encode(PresenceAnswer(1))
            await self._send(send, 200, body)
        elif self.knows_its_routes:  # a broker's gate, which has no lease door there, wants a token
            await self.gate(scope, receive, send)
        else:  # a proxy, or a gate of some other version
            await self._send(send, 404, b"{}")

    async def _nothing(self, scope, receive, send) -> None:
        raise AssertionError("nobody without a token gets so far")

    async def _send(self, send, status, body) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def questions(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def broker():
    made = Broker()
    yield made
    made.door.stop()


@pytest.fixture
def worker(broker):
    signer, _ = a_signer()
    made = HttpLeaseDoor(broker.door.url, signer, utc_now_us)
    yield made
    made.close()


def test_a_broker_of_this_version_is_asked_at_its_own_path_alone(broker, worker):
    worker.report(HERE)
    worker.report(HERE)
    assert broker.questions() == [LEASES, LEASES]


@pytest.mark.parametrize("by_the_gate", [True, False], ids=["wants a token", "404"])
def test_the_path_of_the_version_before_is_found_once_and_kept_until_it_is_gone(broker, worker, by_the_gate):
    broker.knows_its_routes = by_the_gate
    broker.paths = {LEASES_BEFORE}
    for _ in range(3):
        worker.report(HERE)
    assert broker.questions() == [LEASES, LEASES_BEFORE, LEASES_BEFORE, LEASES_BEFORE]
    assert worker.refusal is None
    broker.paths = {LEASES, LEASES_BEFORE}  # this version: it answers at both
    worker.report(HERE)
    assert broker.questions() == [LEASES_BEFORE]
    broker.paths = {LEASES}  # the next
    worker.report(HERE)
    worker.report(HERE)
    assert broker.questions() == [LEASES_BEFORE, LEASES, LEASES]


def test_where_there_is_no_lease_door_at_all_the_worker_says_why(broker, worker):
    broker.paths = set()
    with pytest.raises(DoorShut, match="the broker answers 401: the bearer token is missing"):
        worker.report(HERE)
    assert broker.questions() == [LEASES, LEASES_BEFORE]
    broker.paths = {LEASES}
    worker.report(HERE)
    assert broker.questions() == [LEASES]
