"""The HTTP door without a socket: who gets in, and what a wrong request is told."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

import msgspec
import pytest

from broker.api.app import make_app
from broker.api.desk import Desk
from broker.api.errors import Refused
from broker.api.gate import PUBLIC, Scope
from broker.api.server import listen, load_or_create_token
from broker.bootstrap.embedded import Embedded
from broker.domain.errors import BrokerError, UsageError
from broker.intake.uploads import Spool
from tests.unit.builders import MODEL, a_lane, a_line

TOKEN = "ib_secret"
ID = "job_" + "0" * 32


class Door:
    """Asks the application as a server would."""

    def __init__(self, folder) -> None:
        self.embedded = Embedded(folder, [a_lane("one"), a_lane("two")])
        self.submitting = threading.Thread(target=self.embedded.front.submitting.run)
        self.submitting.start()
        self.app = make_app(Desk(self.embedded.front, 10, 1_000), TOKEN)

    def close(self) -> None:
        self.embedded.stop()
        self.submitting.join()

    def ask(self, method, path, body=b"", *, token=TOKEN, host="127.0.0.1:8470", headers=()):
        given = [(b"host", host.encode())] if host else []
        given += [(b"authorization", f"Bearer {token}".encode())] if token else []
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [*given, *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8470),
        }
        return asyncio.run(self._ask(scope, body))

    async def _ask(self, scope, body):
        incoming = deque([{"type": "http.request", "body": body, "more_body": False}])
        sent = []

        async def receive():
            return incoming.popleft() if incoming else await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        await self.app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], content

    def refused(self, *asked, **how):
        status, content = self.ask(*asked, **how)
        error = msgspec.json.decode(content)["error"]
        assert error.keys() == {"code", "message", "field"}
        assert error["message"]
        assert "\n" not in error["message"]
        return status, error["code"]


@pytest.fixture
def door(data):
    made = Door(data)
    yield made
    made.close()


def all_routes(app):
    found = {(method, path): scope for (method, path), (scope, _) in app.direct.items()}
    for route in app._app.routes:
        for handler in route.route_handlers:
            for method in handler.http_methods - {"OPTIONS"}:
                found[method, route.path] = handler.opt.get("scope_needed")
    return found


def test_every_route_names_a_scope_and_only_health_needs_no_token(door):
    routes = all_routes(door.app)
    assert len(routes) == 20
    for (method, path), scope in routes.items():
        assert isinstance(scope, Scope), path
        asked = path.replace("{job:str}", ID).replace("{batch:str}", ID).replace("{name:str}", "one")
        if (method, path) == PUBLIC:
            assert door.ask(method, asked, token=None)[0] == 200
            continue
        assert door.refused(method, asked, token=None) == (401, "unauthorized")
        assert door.refused(method, asked, token="ib_secre") == (401, "unauthorized")
        assert door.refused(method, asked, host="evil.example") == (403, "host_not_allowed")
        assert door.refused(method, asked, host="") == (403, "host_not_allowed")


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/jobs", "/v1/jobs/", "/schema", "/v1/health/x", "/v1/jobs/a/b/c"])
def test_an_unknown_route_tells_strangers_nothing(door, path):
    assert door.refused("GET", path, token=None) == (401, "unauthorized")
    assert door.ask("GET", path)[0] in {404, 405}


def test_a_token_without_the_scope_gets_nowhere(door, monkeypatch):
    monkeypatch.setattr(door.app, "_check", lambda _scope: frozenset({Scope.LANES_READ}))
    for (method, path), scope in all_routes(door.app).items():
        if scope is not Scope.LANES_READ:
            asked = path.replace("{job:str}", ID).replace("{batch:str}", ID).replace("{name:str}", "one")
            assert door.refused(method, asked) == (403, "forbidden"), path
    assert door.ask("GET", "/v1/lanes")[0] == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8470"])
def test_loopback_names_are_served(door, host):
    assert door.ask("GET", "/v1/lanes", host=host)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/jobs/x", 404, "unknown_job"),
        ("GET", f"/v1/jobs/{ID}", 404, "unknown_job"),
        ("GET", f"/v1/jobs/{ID}?wait=30", 404, "unknown_job"),
        ("GET", f"/v1/jobs/{ID}/result", 404, "unknown_job"),
        ("GET", f"/v1/jobs/{ID}?wait=soon", 400, "invalid_request"),
        ("POST", f"/v1/jobs/{ID}/cancel", 404, "unknown_job"),
        ("POST", f"/v1/jobs/{ID}/redrive", 404, "unknown_job"),
        ("GET", "/v1/batches/x/output", 404, "unknown_batch"),
        ("POST", "/v1/batches/x/cancel", 404, "unknown_batch"),
        ("POST", "/v1/batches?window=1y", 400, "invalid_field"),
        ("POST", "/v1/batches?max_cost=lots", 400, "invalid_field"),
        ("POST", "/v1/batches?name=", 400, "invalid_field"),
        ("POST", "/v1/lanes/x/drain", 404, "unknown_lane"),
        ("GET", "/v1/ledger/summary?by=moon", 400, "invalid_field"),
        ("GET", "/v1/instances?lane=x", 404, "unknown_lane"),
        ("GET", "/v1/instances?ended=perhaps", 400, "invalid_request"),
        ("DELETE", "/v1/lanes", 405, "method_not_allowed"),
    ],
)
def test_what_is_wrong_is_said(door, method, path, status, code):
    assert door.refused(method, path) == (status, code)


def test_an_upload_beyond_a_limit_leaves_nothing(door):
    lines = b"".join(a_line(f"a{number}") + b"\n" for number in range(5))
    assert door.ask("POST", "/v1/batches?name=mine", lines)[0] == 201
    assert door.refused("POST", "/v1/batches", lines * 3) == (413, "file_too_large")
    assert door.refused("POST", "/v1/batches", b"\n" * 11) == (413, "file_too_large")
    assert door.refused("POST", "/v1/batches", b"") == (400, "invalid_file")
    assert [path.suffix for path in door.embedded.front.uploads.iterdir()] == [".jsonl"]


def test_a_list_is_taken_in_whole_or_not_at_all(door):
    good = {"body": {"model": MODEL, "messages": [{}]}}
    status, content = door.ask("POST", "/v1/jobs", msgspec.json.encode([good, good | {"tags": {"a": "b"}}]))
    assert status == 201
    ids = [job["id"] for job in msgspec.json.decode(content)["jobs"]]
    assert len(set(ids)) == 2
    status, content = door.ask("GET", f"/v1/jobs/{ids[1]}")
    assert (msgspec.json.decode(content)["status"], msgspec.json.decode(content)["tags"]) == ("waiting", {"a": "b"})
    status, content = door.ask("POST", "/v1/jobs", msgspec.json.encode([good, good | {"endpoint": "/"}]))
    assert (status, msgspec.json.decode(content)["error"]["field"]) == (400, "[1].endpoint")
    too_many = msgspec.json.encode([good] * 1_001)
    assert door.refused("POST", "/v1/jobs", too_many) == (400, "invalid_field")
    key = [(b"idempotency-key", b"k")]
    assert door.refused("POST", "/v1/jobs", msgspec.json.encode([good]), headers=key) == (400, "invalid_field")
    assert door.ask("POST", "/v1/jobs", msgspec.json.encode(good), headers=key)[0] == 201
    assert door.ask("POST", "/v1/jobs", msgspec.json.encode(good), headers=key)[0] == 200


def test_a_full_door_pushes_back(door, monkeypatch):
    monkeypatch.setattr("broker.intake.single_jobs._JOBS_WAITING_MAX", 1)
    monkeypatch.setattr(door.embedded.front.submitting, "_offers", [None])
    monkeypatch.setattr(door.embedded.front.submitting, "_jobs_waiting", 1)
    good = msgspec.json.encode({"body": {"model": MODEL, "messages": [{}]}})
    assert door.refused("POST", "/v1/jobs", good) == (429, "busy")


def test_the_token_is_made_once_for_its_owner_alone(tmp_path):
    token = load_or_create_token(tmp_path)
    assert len(token) > 40
    assert load_or_create_token(tmp_path) == token
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_a_taken_port_is_one_sentence():
    taken = listen("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(BrokerError, match=r"^can't listen on 127.0.0.1:\d+: address already in use; "):
        listen("127.0.0.1", taken.getsockname()[1])
    taken.close()


def test_a_spool_keeps_its_limits(tmp_path):
    spool = Spool(tmp_path, 10, None)
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        spool.add(b"x" * 11)
    spool.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_an_error_of_ours():
    assert isinstance(Refused(400, "a", "b"), BrokerError)
