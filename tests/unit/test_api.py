"""The HTTP door without a socket: who gets in, and what a wrong request is told."""

from __future__ import annotations

import gzip
import threading

import msgspec
import pytest

from broker.api.app import make_app
from broker.api.desk import Desk
from broker.api.errors import Refused
from broker.api.leases import LeaseCounter
from broker.api.routes import LEASE_DOOR, PUBLIC, SCOPES, served_at
from broker.api.server import listen, load_or_create_token
from broker.api.tokens import FixedTokens, local_token
from broker.bootstrap.embedded import Embedded
from broker.bus.envelope import KeyRing
from broker.clock import utc_now_us
from broker.domain.errors import BrokerError, UsageError
from broker.domain.identity import Scope
from broker.domain.paths import OWN
from broker.intake.uploads import Spool
from broker.leasing import LeaseDoor
from tests.unit.asking import all_routes, ask, refusal
from tests.unit.builders import MODEL, a_lane, a_line, an_identity

TOKEN = "ib_secret"
ID = "job_" + "0" * 32
BATCH = "batch_" + "0" * 32


class Door:
    """Asks the application as a server would."""

    def __init__(self, folder) -> None:
        self.embedded = Embedded(folder, [a_lane("one"), a_lane("two")])
        self.submitting = threading.Thread(target=self.embedded.front.submitting.run)
        self.submitting.start()
        self.desk = Desk(self.embedded.front, 10, 1_000)
        self.app = make_app(self.desk, local_token(TOKEN), leases=self._leases())

    def app_for(self, identities):
        return make_app(self.desk, FixedTokens(identities), leases=self._leases())

    def _leases(self):
        return LeaseCounter(LeaseDoor(self.embedded.database, utc_now_us), KeyRing({}), utc_now_us)

    def close(self) -> None:
        self.embedded.stop()
        self.submitting.join()

    def ask(self, *asked, token=TOKEN, **how):
        return ask(self.app, *asked, token=token, **how)

    def refused(self, *asked, **how):
        return refusal(self.ask(*asked, **how))


@pytest.fixture
def door(data):
    made = Door(data)
    yield made
    made.close()


def filled(path):
    """A path with ids of nothing, and a lane that there is."""
    return path.format(job=ID, batch=BATCH, name="one")


def test_every_route_has_a_scope_and_every_scope_a_route(door):
    assert all_routes(door.app) == set(SCOPES) != set()
    assert set(SCOPES.values()) == set(Scope)


def test_a_route_that_nobody_gave_a_scope_is_open_to_nobody(door, monkeypatch):
    for method, path in list(SCOPES):
        asked = filled(path)
        with monkeypatch.context() as patch:
            patch.delitem(SCOPES, (method, path))
            assert door.refused(method, asked) == (403, "forbidden"), path
            assert all_routes(door.app) != set(SCOPES)


def test_only_health_needs_no_token_and_no_route_answers_to_another_name(door):
    for method, path in SCOPES:
        asked = filled(path)
        assert door.refused(method, asked, host="evil.example") == (403, "host_not_allowed")
        assert door.refused(method, asked, host="") == (403, "host_not_allowed")
        if (method, path) == PUBLIC:
            assert door.ask(method, asked, token=None)[0] == 200
        elif (method, path) == LEASE_DOOR:
            assert door.refused(method, asked, token=None) == (401, "not_signed")
            assert door.refused(method, asked) == (401, "not_signed")
        else:
            assert door.refused(method, asked, token=None) == (401, "unauthorized")
            assert door.refused(method, asked, token="ib_secre") == (401, "unauthorized")


@pytest.mark.parametrize(
    "given", [b"ib_secret", b"bearer ib_secret", b"Bearer", b"Bearer ", b"Bearer  ib_secret", b"Basic x"]
)
def test_a_token_that_does_not_come_as_a_bearer_token_is_none(door, given):
    headers = [(b"authorization", given)]
    assert door.refused("GET", f"{OWN}/lanes", token=None, headers=headers) == (401, "unauthorized")


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v2/jobs", f"{OWN}/jobs/", f"{OWN}/", OWN, "/schema", f"{OWN}/health/x", f"{OWN}/jobs/a/b/c"],
)
def test_an_unknown_route_tells_strangers_nothing(door, path):
    assert door.refused("GET", path, token=None) == (401, "unauthorized")
    assert door.ask("GET", path)[0] in {404, 405}


def test_a_token_without_the_scope_gets_nowhere(door):
    for lacking in set(Scope) - {Scope.HEALTH, Scope.LEASES}:
        app = door.app_for({"narrow": an_identity("default", *(set(Scope) - {lacking})), "wide": an_identity("b")})
        asked = 0
        for (method, path), scope in SCOPES.items():
            if scope is lacking:
                assert refusal(ask(app, method, filled(path), token="narrow")) == (403, "forbidden"), path
                assert ask(app, method, filled(path), token="wide")[0] != 403, path
                asked += 1
            elif scope is not Scope.LEASES:
                assert ask(app, method, filled(path), token="narrow")[0] != 403, path
        assert asked


def test_a_path_of_before_names_the_one_of_now(door):
    for method, path in sorted(SCOPES):
        before = filled(path).replace(OWN, "/v1")
        if served_at(before) == before:
            assert door.refused(method, before, token=None) == (401, "unauthorized")
            status, content = door.ask(method, before)
            assert status == 404, before
            assert msgspec.json.decode(content)["error"]["message"].endswith(f"this one to {filled(path)}")


def test_what_workers_probes_and_autoscalers_ask_answers_at_the_path_of_before_too(door):
    assert door.ask("GET", "/v1/health", token=None) == door.ask("GET", f"{OWN}/health", token=None)
    assert door.ask("GET", "/v1/lanes/two/desired") == (200, b'{"desired":0}')
    assert door.refused("GET", "/v1/lanes/two/desired", token=None) == (401, "unauthorized")
    assert door.refused("GET", "/v1/lanes/none/desired") == (404, "unknown_lane")
    assert door.refused("POST", "/v1/leases", b"?", token=None) == (401, "not_signed")
    assert door.refused("GET", "/v1/leases") == door.refused("GET", f"{OWN}/leases") == (404, "unknown_route")


def test_a_token_is_found_whoever_else_has_one():
    mine, other = an_identity("a"), an_identity("b")
    tokens = FixedTokens({"ib_mine": mine, "ib_other": other})
    assert (tokens.find(b"ib_mine"), tokens.find(b"ib_other")) == (mine, other)
    assert [tokens.find(token) for token in (b"", b"ib_", b"ib_min", b"ib_mine ", "ib_ü".encode())] == [None] * 5


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8470"])
def test_loopback_names_are_served(door, host):
    assert door.ask("GET", f"{OWN}/lanes", host=host)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"{OWN}/jobs/x", 404, "unknown_job"),
        ("GET", f"{OWN}/jobs/{ID}", 404, "unknown_job"),
        ("GET", f"{OWN}/jobs/{ID}?wait=30", 404, "unknown_job"),
        ("GET", f"{OWN}/jobs/{ID}/result", 404, "unknown_job"),
        ("GET", f"{OWN}/jobs/{ID}?wait=soon", 400, "invalid_request"),
        ("POST", f"{OWN}/jobs/{ID}/cancel", 404, "unknown_job"),
        ("POST", f"{OWN}/jobs/{ID}/redrive", 404, "unknown_job"),
        ("GET", f"{OWN}/batches/x/output", 404, "unknown_batch"),
        ("POST", f"{OWN}/batches/x/cancel", 404, "unknown_batch"),
        ("POST", f"{OWN}/batches?window=1y", 400, "invalid_field"),
        ("POST", f"{OWN}/batches?max_cost=lots", 400, "invalid_field"),
        ("POST", f"{OWN}/batches?name=", 400, "invalid_field"),
        ("POST", f"{OWN}/lanes/x/drain", 404, "unknown_lane"),
        ("GET", f"{OWN}/ledger/summary?by=moon", 400, "invalid_field"),
        ("GET", f"{OWN}/instances?lane=x", 404, "unknown_lane"),
        ("GET", f"{OWN}/instances?ended=perhaps", 400, "invalid_request"),
        ("DELETE", f"{OWN}/lanes", 405, "method_not_allowed"),
    ],
)
def test_what_is_wrong_is_said(door, method, path, status, code):
    assert door.refused(method, path) == (status, code)


def test_an_upload_beyond_a_limit_leaves_nothing(door):
    lines = b"".join(a_line(f"a{number}") + b"\n" for number in range(5))
    assert door.ask("POST", f"{OWN}/batches?name=mine", lines)[0] == 201
    assert door.refused("POST", f"{OWN}/batches", lines * 3) == (413, "file_too_large")
    assert door.refused("POST", f"{OWN}/batches", b"x\n" * 11) == (413, "file_too_large")
    assert door.ask("POST", f"{OWN}/batches", b"\n" * 11 + a_line() + b"\n" * 11)[0] == 201
    assert door.refused("POST", f"{OWN}/batches", b"") == (400, "invalid_file")
    assert door.refused("POST", f"{OWN}/batches", b"\n \n") == (400, "invalid_file")
    assert _kept(door) == 2


def _kept(door):
    """How many uploads are kept; what was refused leaves nothing."""
    kept = list(door.embedded.front.uploads.glob("*"))
    assert {path.suffix for path in kept} <= {".jsonl", ".mark"}  # the mark says that the folder is the broker's
    return sum(path.suffix == ".jsonl" for path in kept)


def _typed(kind, encoding=""):
    headers = [(b"content-type", kind.encode())] if kind else []
    return headers + ([(b"content-encoding", encoding.encode())] if encoding else [])


def _form(*parts, end=True):
    """A form of fields, each a name, a file's name or none, and its bytes."""
    pieces = []
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename else ""
        pieces.append(f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content)
    return b"\r\n".join([*pieces, b"--edge--\r\n"] if end else pieces)


LINES = a_line("a") + b"\n" + a_line("b") + b"\n"
FORM = "multipart/form-data; boundary=edge"


TAKEN = [
    ("", "", LINES),
    ("application/octet-stream", "", LINES),
    ("application/jsonl", "", LINES),
    ("Application/X-NDJSON; charset=utf-8", "identity", LINES),
    ("text/plain; charset=utf-8", "", LINES),
    ("application/x-www-form-urlencoded", "", LINES),  # curl --data-binary
    ("application/jsonl", "gzip", gzip.compress(LINES)),
    ("", "GZIP", gzip.compress(LINES[:9]) + gzip.compress(LINES[9:])),
    ("application/gzip", "", gzip.compress(LINES)),
    ("", "", gzip.compress(LINES)),
    (FORM, "", _form(("file", "in.jsonl", LINES))),
    (FORM, "", _form(("purpose", "", b"batch"), ("upload", "in.jsonl", LINES), ("note", "", b"x" * 99))),
    (FORM, "", _form(("file", "", LINES))),
    (FORM, "", _form(("file", "in.jsonl.gz", gzip.compress(LINES)))),
]


def test_a_batch_file_comes_up_in_any_usual_form(door):
    for kind, encoding, body in TAKEN:
        status, content = door.ask("POST", f"{OWN}/batches", body, headers=_typed(kind, encoding))
        assert (status, msgspec.json.decode(content)["bytes_in"]) == (201, len(LINES)), (kind, encoding, body)
        (path,) = door.embedded.front.uploads.glob("*.jsonl")
        assert path.read_bytes() == LINES, (kind, encoding, body)
        path.unlink()


CREATE_CALL = b'{"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}'


REFUSED = [
    ("application/json", "", CREATE_CALL, 415, "multipart/form-data"),
    ("application/json", "", LINES, 415, "application/json"),
    ("", "", CREATE_CALL, 415, "OpenAI's call"),
    ("text/plain", "", CREATE_CALL, 415, "OpenAI's call"),
    ("image/png", "", LINES, 415, "image/png"),
    ("", "br", LINES, 415, "'br'"),
    (FORM, "gzip", LINES, 415, "pack the file in it"),
    ("", "gzip", gzip.compress(LINES)[:-9], 400, "end is missing"),
    ("", "gzip", b"\x1f\x8b" + LINES, 400, "damaged"),
    ("", "", gzip.compress(gzip.compress(LINES)), 400, "more than once"),
    ("", "gzip", gzip.compress(b" " * 5_000_000), 413, "1,000 bytes"),
    (FORM, "", _form(("file", "a.gz", gzip.compress(b"x" * 5_000_000))), 413, "1,000 bytes"),
    (FORM, "", _form(("file", "a", LINES), ("file", "b", LINES)), 400, "more than one file"),
    (FORM, "", _form(("purpose", "", b"batch")), 400, "no file"),
    (FORM, "", _form(("file", "a", LINES), end=False), 400, "end is missing"),
    (FORM, "", _form(("x", "", b"x" * 1_100_000), ("file", "a", LINES)), 400, "beside its file"),
    (FORM, "", LINES, 400, "form"),
    ("multipart/form-data", "", LINES, 400, "boundary"),
    ("", "", LINES.decode().encode("utf-16"), 400, "UTF-16"),
    ("", "", b"[" + a_line() + b"]", 400, "JSON array"),
    ("", "", a_line() + b",\n" + a_line("b") + b",\n", 400, "commas"),
]


def test_what_is_no_batch_file_is_refused_whole_in_a_sentence(door):
    codes = {400: "invalid_file", 413: "file_too_large", 415: "unsupported_media_type"}
    for kind, encoding, body, status, said in REFUSED:
        answer = door.ask("POST", f"{OWN}/batches", body, headers=_typed(kind, encoding))
        assert refusal(answer) == (status, codes[status]), said
        assert said in msgspec.json.decode(answer[1])["error"]["message"]
        assert _kept(door) == 0, said
    assert msgspec.json.decode(door.ask("GET", f"{OWN}/batches")[1]) == {"batches": []}


def test_a_list_is_taken_in_whole_or_not_at_all(door):
    good = {"body": {"model": MODEL, "messages": [{}]}}
    status, content = door.ask("POST", f"{OWN}/jobs", msgspec.json.encode([good, good | {"tags": {"a": "b"}}]))
    assert status == 201
    ids = [job["id"] for job in msgspec.json.decode(content)["jobs"]]
    assert len(set(ids)) == 2
    status, content = door.ask("GET", f"{OWN}/jobs/{ids[1]}")
    assert (msgspec.json.decode(content)["status"], msgspec.json.decode(content)["tags"]) == ("waiting", {"a": "b"})
    status, content = door.ask("POST", f"{OWN}/jobs", msgspec.json.encode([good, good | {"endpoint": "/"}]))
    assert (status, msgspec.json.decode(content)["error"]["field"]) == (400, "[1].endpoint")
    too_many = msgspec.json.encode([good] * 1_001)
    assert door.refused("POST", f"{OWN}/jobs", too_many) == (400, "invalid_field")
    key = [(b"idempotency-key", b"k")]
    assert door.refused("POST", f"{OWN}/jobs", msgspec.json.encode([good]), headers=key) == (400, "invalid_field")
    assert door.ask("POST", f"{OWN}/jobs", msgspec.json.encode(good), headers=key)[0] == 201
    assert door.ask("POST", f"{OWN}/jobs", msgspec.json.encode(good), headers=key)[0] == 200


def test_a_full_door_pushes_back(door, monkeypatch):
    monkeypatch.setattr("broker.intake.single_jobs._JOBS_WAITING_MAX", 1)
    monkeypatch.setattr(door.embedded.front.submitting, "_offers", [None])
    monkeypatch.setattr(door.embedded.front.submitting, "_jobs_waiting", 1)
    good = msgspec.json.encode({"body": {"model": MODEL, "messages": [{}]}})
    assert door.refused("POST", f"{OWN}/jobs", good) == (429, "busy")


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
