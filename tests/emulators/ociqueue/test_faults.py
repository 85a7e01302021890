"""Faults on order, the control port and the clock."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import oci
import pytest
from oci.exceptions import RequestException, ServiceError

from infra.emulators.ociqueue import Action, Fault, Point

models = oci.queue.models


def ask_control(emulator, method, path, body=None):
    request = urllib.request.Request(
        f"http://127.0.0.1:{emulator.control_port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_refusal_has_its_status_code_and_patience(emulator, client, queue, put):
    ocid = queue()
    emulator.add_fault(Fault(Point.PUT, Action.REFUSE, retry_after_seconds=1.5))
    with pytest.raises(ServiceError) as caught:
        put(client, ocid, "m")
    assert (caught.value.status, caught.value.code) == (429, "TooManyRequests")
    assert caught.value.headers["retry-after"] == "1.5"
    assert caught.value.headers["opc-request-id"]
    put(client, ocid, "m")
    assert client.get_stats(ocid).data.queue.visible_messages == 1


def test_a_fault_strikes_after_some_for_some_at_some_queues(emulator, client, queue, put):
    ocid, other = queue(), queue()
    name = emulator.call(lambda service: service.queues.name_of(ocid))
    emulator.add_fault(Fault(Point.PUT, Action.REFUSE, name, 500, "InternalServerError", times=2, skip=1))
    put(client, other, "m")
    put(client, ocid, "m")
    for _ in range(2):
        with pytest.raises(ServiceError, match="InternalServerError"):
            put(client, ocid, "m")
    put(client, ocid, "m")


@pytest.mark.parametrize(("action", "done"), [(Action.DROP_BEFORE, 0), (Action.DROP_AFTER, 1), (Action.LOSE, 1)])
def test_an_answer_that_does_not_come(emulator, clients, queue, put, action, done):
    ocid = queue()
    client = clients(emulator.endpoint, timeout=(5, 0.5)).queue
    emulator.add_fault(Fault(Point.PUT, action))
    with pytest.raises(RequestException):
        put(client, ocid, "m")
    assert client.get_stats(ocid).data.queue.visible_messages == done


def test_an_answer_that_comes_late(emulator, client, queue, put):
    emulator.add_fault(Fault(Point.PUT, Action.DELAY, delay_seconds=0.3))
    began = time.monotonic()
    put(client, queue(), "m")
    assert time.monotonic() - began >= 0.3


def test_a_batch_is_spoilt_by_halves(emulator, client, queue, put, get):
    ocid = queue()
    put(client, ocid, "1", "2", "3")
    entries = [models.DeleteMessagesDetailsEntry(receipt=message.receipt) for message in get(client, ocid)]
    emulator.add_fault(Fault(Point.DELETE, Action.SPOIL, status=503))
    answer = client.delete_messages(ocid, models.DeleteMessagesDetails(entries=entries)).data
    assert [entry.error_code for entry in answer.entries] == [503, None, 503]
    assert answer.server_failures == 2
    emulator.add_fault(Fault(Point.DELETE, Action.SPOIL, status=503, code="ServiceUnavailable"))
    with pytest.raises(ServiceError, match="ServiceUnavailable"):
        client.delete_message(ocid, entries[0].receipt)


def test_connections_that_are_cut_are_opened_again(emulator, client, queue, put):
    ocid = queue()
    put(client, ocid, "m")
    emulator.drop_connections()
    time.sleep(0.05)
    put(client, ocid, "m")


def test_the_sdks_own_retries_see_a_fault_through(emulator, clients, queue):
    ocid = queue()
    client = clients(emulator.endpoint, retry_strategy=oci.retry.DEFAULT_RETRY_STRATEGY).queue
    emulator.add_fault(Fault(Point.STATS, Action.REFUSE, status=500, code="InternalServerError"))
    assert client.get_stats(ocid).data.queue.visible_messages == 0


def test_the_control_port(still):
    emulator = still.emulator
    fault = {"point": "put", "action": "refuse", "queue": "orders", "status": 500}
    assert ask_control(emulator, "POST", "/faults", fault) == (200, {"number": 1})
    ((_, (listed,)),) = [ask_control(emulator, "GET", "/faults")]
    assert {name: listed[name] for name in fault} == fault
    assert ask_control(emulator, "DELETE", "/faults") == (200, {})
    before = ask_control(emulator, "GET", "/state")[1]["now_ms"]
    assert ask_control(emulator, "POST", "/clock/advance", {"seconds": 2.5}) == (200, {"now_ms": before + 2_500})
    emulator.create_queue("orders")
    state = ask_control(emulator, "GET", "/state")[1]
    assert {**state["queues"]["orders"], "id": ""} == {
        "visible": 0,
        "in_flight": 0,
        "size_bytes": 0,
        "dead": 0,
        "id": "",
    }
    assert ask_control(emulator, "POST", "/connections/drop") == (200, {"count": 0})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/nothing", None, 404, "GET /state"),
        ("POST", "/faults", {"point": "nowhere", "action": "refuse"}, 400, "nowhere"),
        ("POST", "/faults", {"point": "put"}, 400, "action"),
        ("POST", "/clock/advance", {"seconds": 1}, 400, "--manual-clock"),
        ("POST", "/faults", [], 400, "JSON object"),
    ],
)
def test_what_the_control_port_does_not_understand(emulator, method, path, body, status, words):
    code, answer = ask_control(emulator, method, path, body)
    assert code == status
    assert words in answer["error"]
