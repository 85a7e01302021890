"""Microsoft's administration client against the emulator, over TLS and without."""

from __future__ import annotations

import datetime as dt
import socket

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.servicebus import ServiceBusMessage
from azure.servicebus.management import ServiceBusAdministrationClient
from hypothesis import given
from hypothesis import strategies as st

from infra.emulators.servicebus import Action, Fault, Point
from infra.emulators.servicebus.admin.entries import duration, read_duration
from infra.emulators.servicebus.queues.description import FOREVER_MS

MINUTE = dt.timedelta(minutes=1)


class Plain(RequestsTransport):
    """The client insists on https; this sends the same without TLS."""

    def send(self, request, **kwargs):
        request.url = request.url.replace("https://", "http://", 1)
        return super().send(request, **kwargs)


@pytest.fixture(params=["tls", "plain"])
def admin(request, emulator):
    how = {"tls": {"connection_verify": str(emulator.certificate)}, "plain": {"transport": Plain()}}[request.param]
    with ServiceBusAdministrationClient.from_connection_string(
        emulator.connection_string, retry_total=0, **how
    ) as opened:
        yield opened
        for found in opened.list_queues():
            if found.name.startswith("admin"):
                opened.delete_queue(found.name)


def test_a_queue_from_making_to_deleting(admin):
    made = admin.create_queue(
        "admin/orders",
        lock_duration=dt.timedelta(seconds=45),
        max_delivery_count=4,
        default_message_time_to_live=dt.timedelta(days=2, hours=3, minutes=4, seconds=5.25),
        dead_lettering_on_message_expiration=True,
        requires_duplicate_detection=True,
        duplicate_detection_history_time_window=7 * MINUTE,
        max_size_in_megabytes=2048,
        user_metadata="<ours> & theirs",
        max_message_size_in_kilobytes=1024,
    )
    assert made.lock_duration == dt.timedelta(seconds=45)
    assert made.default_message_time_to_live == dt.timedelta(days=2, hours=3, minutes=4, seconds=5.25)
    found = admin.get_queue("Admin/Orders")
    assert found.user_metadata == "<ours> & theirs"
    assert (found.max_delivery_count, found.requires_duplicate_detection, found.status) == (4, True, "Active")
    found.max_delivery_count = 6
    found.status = "SendDisabled"
    admin.update_queue(found)
    assert (admin.get_queue("admin/orders").max_delivery_count, admin.get_queue("admin/orders").status) == (
        6,
        "SendDisabled",
    )
    with pytest.raises(ResourceExistsError):
        admin.create_queue("admin/orders")
    admin.delete_queue("admin/orders")
    with pytest.raises(ResourceNotFoundError):
        admin.get_queue("admin/orders")
    with pytest.raises(ResourceNotFoundError):
        admin.delete_queue("admin/orders")
    with pytest.raises(ResourceNotFoundError):
        admin.update_queue(found)


def test_what_is_counted(admin, client):
    admin.create_queue("admin-counts")
    with client.get_queue_sender("admin-counts") as sender, client.get_queue_receiver("admin-counts") as receiver:
        sender.send_messages([ServiceBusMessage(f"{number}") for number in range(5)])
        sender.schedule_messages([ServiceBusMessage("later")], dt.datetime.now(dt.UTC) + 5 * MINUTE)
        dead, _ = receiver.receive_messages(2, max_wait_time=5)
        receiver.dead_letter_message(dead, reason="r")
        counts = admin.get_queue_runtime_properties("admin-counts")
    assert (counts.active_message_count, counts.dead_letter_message_count, counts.scheduled_message_count) == (4, 1, 1)
    assert counts.total_message_count == 6
    assert counts.size_in_bytes > 0
    assert counts.created_at_utc <= counts.accessed_at_utc <= dt.datetime.now(dt.UTC)


def test_lists_in_pages(admin):
    for number in range(7):
        admin.create_queue(f"admin-{number}")
    names = [found.name for found in admin.list_queues(max_page_size=3) if found.name.startswith("admin")]
    assert names == [f"admin-{number}" for number in range(7)]
    listed = [found.name for found in admin.list_queues_runtime_properties() if found.name.startswith("admin")]
    assert listed == names
    assert list(admin.list_topics()) == []


def test_the_namespace(admin):
    found = admin.get_namespace_properties()
    assert (found.name, found.messaging_sku) == ("servicebus-emulator", "Standard")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"requires_session": True}, "sessions"),
        ({"lock_duration": 10 * MINUTE}, "lock_duration"),
        ({"max_delivery_count": 0}, "max_delivery_count"),
        ({"forward_to": "elsewhere"}, "ForwardTo"),
    ],
)
def test_what_the_emulator_cannot_do_it_refuses(admin, settings, word):
    with pytest.raises(HttpResponseError, match=word):
        admin.create_queue("admin-odd", **settings)


def test_topics_are_refused(admin):
    with pytest.raises(HttpResponseError, match="QueueDescription was expected"):
        admin.create_topic("admin-topic")


def test_a_wrong_key_is_refused(emulator):
    text = emulator.connection_string.replace("SharedAccessKey=", "SharedAccessKey=x")
    admin = ServiceBusAdministrationClient.from_connection_string(text, transport=Plain(), retry_total=0)
    with pytest.raises(ClientAuthenticationError, match="signature"):
        admin.create_queue("admin-x")


def test_faults_reach_administration_too(admin, emulator):
    emulator.add_fault(Fault(Point.ADMIN, Action.REFUSE, "admin-*"))
    with pytest.raises(HttpResponseError, match="busy"):
        admin.create_queue("admin-x")
    admin.create_queue("admin-x")


def _say(emulator, words):
    with socket.create_connection(("127.0.0.1", emulator.port), 5) as opened:
        opened.sendall(words)
        return opened.recv(4096)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", b"401"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"PUT /x HTTP/1.1\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"401"),
    ],
)
def test_http_that_is_odd(emulator, words, status):
    assert _say(emulator, words).split(b" ")[1] == status


@given(st.integers(0, FOREVER_MS))
def test_durations_are_read_as_they_are_written(milliseconds):
    assert read_duration(duration(milliseconds)) == milliseconds


@pytest.mark.parametrize("text", ["", "P", "PT", "5", "P1Y", "-PT5S"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError):
        read_duration(text)
