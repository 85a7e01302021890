"""Faults on order, and what the SDK makes of them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus.exceptions import (
    MessageLockLostError,
    OperationTimeoutError,
    ServiceBusError,
    ServiceBusServerBusyError,
)

from infra.emulators.servicebus import Action, Fault, Point

WAIT = 5


@pytest.fixture
def patient_client(emulator):
    with ServiceBusClient.from_connection_string(emulator.connection_string, retry_backoff_factor=0.1) as opened:
        yield opened


def test_a_busy_server_is_told_apart(client, emulator, queue):
    name = queue()
    with client.get_queue_sender(name) as sender:
        emulator.add_fault(Fault(Point.SEND, Action.REFUSE, name, skip=1))
        sender.send_messages(ServiceBusMessage("first"))
        with pytest.raises(ServiceBusServerBusyError):
            sender.send_messages(ServiceBusMessage("second"))
        sender.send_messages(ServiceBusMessage("third"))
    assert emulator.state()["queues"][name]["active"] == 2


def test_a_fault_strikes_its_own_queue_alone(client, emulator, queue):
    hit, spared = queue(), queue()
    emulator.add_fault(Fault(Point.ATTACH, Action.REFUSE, hit, condition="amqp:internal-error"))
    with client.get_queue_sender(spared) as sender:
        sender.send_messages(ServiceBusMessage("x"))
    with pytest.raises(ServiceBusError), client.get_queue_sender(hit) as sender:
        sender.send_messages(ServiceBusMessage("x"))


def test_a_late_answer_is_late(client, emulator, queue):
    name = queue()
    with client.get_queue_sender(name) as sender:
        sender.send_messages(ServiceBusMessage("x"))
        emulator.add_fault(Fault(Point.SEND, Action.DELAY, name, delay_seconds=0.7))
        began = time.monotonic()
        sender.send_messages(ServiceBusMessage("y"))
        assert time.monotonic() - began >= 0.7


def test_a_send_whose_answer_is_lost_is_sent_all_the_same(client, emulator, queue):
    name = queue()
    with client.get_queue_sender(name) as sender:
        sender.send_messages(ServiceBusMessage("x"))
        emulator.add_fault(Fault(Point.SEND, Action.LOSE, name))
        with pytest.raises(OperationTimeoutError):
            sender.send_messages(ServiceBusMessage("y"), timeout=1.5)
    assert emulator.state()["queues"][name]["active"] == 2


@pytest.mark.parametrize(("action", "kept"), [(Action.DROP_BEFORE, 1), (Action.DROP_AFTER, 2)])
def test_a_cut_while_sending_may_double_but_never_lose(patient_client, emulator, queue, action, kept):
    name = queue()
    with patient_client.get_queue_sender(name) as sender:
        emulator.add_fault(Fault(Point.SEND, action, name))
        sender.send_messages(ServiceBusMessage("x"))
    assert emulator.state()["queues"][name]["active"] == kept


def test_a_link_that_is_detached_comes_back(patient_client, emulator, queue):
    name = queue()
    with patient_client.get_queue_sender(name) as sender, patient_client.get_queue_receiver(name) as receiver:
        sender.send_messages(ServiceBusMessage("1"))
        assert len(receiver.receive_messages(1, max_wait_time=WAIT)) == 1
        emulator.detach_links(name)
        sender.send_messages(ServiceBusMessage("2"))
        assert [str(each) for each in receiver.receive_messages(1, max_wait_time=WAIT)] == ["2"]


def test_a_settlement_can_lose_its_lock(client, emulator, queue):
    name = queue()
    with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        sender.send_messages(ServiceBusMessage("x"))
        (message,) = receiver.receive_messages(1, max_wait_time=WAIT)
        emulator.add_fault(Fault(Point.SETTLE, Action.REFUSE, name, condition="com.microsoft:message-lock-lost"))
        with pytest.raises(MessageLockLostError):
            receiver.complete_message(message)


def test_a_management_request_can_fail(client, emulator, queue):
    name = queue()
    with client.get_queue_receiver(name) as receiver:
        emulator.add_fault(Fault(Point.MANAGEMENT, Action.REFUSE, name))
        with pytest.raises(ServiceBusServerBusyError):
            receiver.peek_messages(1)
        assert receiver.peek_messages(1) == []


def test_connections_closed_politely(patient_client, emulator, queue):
    name = queue()
    with patient_client.get_queue_sender(name) as sender:
        sender.send_messages(ServiceBusMessage("1"))
        emulator.close_connections()
        sender.send_messages(ServiceBusMessage("2"))
    assert emulator.state()["queues"][name]["active"] == 2


def test_time_can_be_moved_by_hand(still):
    with (
        ServiceBusClient.from_connection_string(still.connection_string, retry_total=0) as client,
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q") as receiver,
    ):
        sender.send_messages(ServiceBusMessage("x"))
        (message,) = receiver.receive_messages(1, max_wait_time=WAIT)
        still.advance(29)
        receiver.renew_message_lock(message)
        still.advance(29)
        assert receiver.receive_messages(1, max_wait_time=0.3) == []
        still.advance(1)
        (again,) = receiver.receive_messages(1, max_wait_time=WAIT)
        assert again.delivery_count == 1


class Control:
    """The control port, as a test in any language would use it."""

    def __init__(self, port):
        self._base = f"http://127.0.0.1:{port}"

    def __call__(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, method=method)
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)


def test_the_control_port(client, emulator, queue):
    control = Control(emulator.control_port)
    name = queue()
    fault = {"point": "send", "action": "refuse", "entity": name, "condition": "com.microsoft:server-busy", "times": 2}
    assert control("POST", "/faults", fault)["number"] > 0
    with client.get_queue_sender(name) as sender:
        with pytest.raises(ServiceBusServerBusyError):
            sender.send_messages(ServiceBusMessage("x"))
        (standing,) = control("GET", "/faults")
        assert (standing["times"], standing["action"]) == (1, "refuse")
        control("DELETE", "/faults")
        sender.send_messages(ServiceBusMessage("x"))
        assert control("GET", "/state")["queues"][name]["active"] == 1
        assert control("POST", "/links/detach", {"entity": name})["count"] == 1
        assert control("POST", "/connections/close", {})["count"] >= 1
    made = control("PUT", f"/queues/{name}", {"max_delivery_count": 2})
    assert made["max_delivery_count"] == 2
    assert control("POST", "/connections/drop", {})["count"] >= 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/faults", {"point": "nowhere", "action": "refuse"}, 400),
        ("POST", "/faults", {"point": "send", "action": "refuse", "typo": 1}, 400),
        ("POST", "/clock/advance", {"seconds": 1}, 400),
        ("PUT", "/queues/a%20b", {}, 400),
        ("GET", "/nowhere", None, 404),
    ],
)
def test_the_control_port_says_what_it_does_not_understand(emulator, method, path, body, status):
    with pytest.raises(urllib.error.HTTPError) as caught:
        Control(emulator.control_port)(method, path, body)
    assert caught.value.code == status
    assert json.load(caught.value)["error"]
