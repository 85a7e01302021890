"""Microsoft's synchronous client against the emulator."""

from __future__ import annotations

import datetime as dt
import time
import uuid

import pytest
from azure.servicebus import (
    AutoLockRenewer,
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusMessageState,
    ServiceBusReceiveMode,
    ServiceBusSubQueue,
    TransportType,
)
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
)

from infra.emulators.servicebus import QueueStatus

WAIT = 5


def send(client, name, *messages):
    with client.get_queue_sender(name) as sender:
        sender.send_messages([ServiceBusMessage(body) if isinstance(body, str) else body for body in messages])


def bodies(messages):
    return [str(message) for message in messages]


def test_a_message_arrives_as_it_was_sent(client, queue):
    name = queue()
    properties = {
        "int": 5,
        "text": "grüße",
        "yes": True,
        "float": 2.5,
        "none": None,
        "id": uuid.UUID(int=7),
    }
    sent = ServiceBusMessage(
        b"\x00\x01body",
        application_properties=properties,
        content_type="text/plain",
        correlation_id="c-1",
        subject="label",
        message_id="m-1",
        to="there",
        reply_to="here",
        partition_key="p",
        time_to_live=dt.timedelta(hours=1),
    )
    send(client, name, sent)
    with client.get_queue_receiver(name) as receiver:
        (message,) = receiver.receive_messages(1, max_wait_time=WAIT)
        assert isinstance(message.lock_token, uuid.UUID)
        receiver.complete_message(message)
    assert b"".join(message.body) == b"\x00\x01body"
    found = {key.decode(): value for key, value in message.application_properties.items()}
    assert found == {**properties, "text": "grüße".encode()}
    assert (message.content_type, message.correlation_id, message.subject) == ("text/plain", "c-1", "label")
    assert (message.message_id, message.to, message.reply_to, message.partition_key) == ("m-1", "there", "here", "p")
    assert message.delivery_count == 0
    assert (message.sequence_number, message.enqueued_sequence_number) == (1, 1)
    assert message.expires_at_utc - message.enqueued_time_utc == dt.timedelta(hours=1)
    age = dt.datetime.now(dt.UTC) - message.enqueued_time_utc
    assert dt.timedelta() <= age < dt.timedelta(seconds=30)
    assert message.state is ServiceBusMessageState.ACTIVE


def test_lists_and_batches_arrive_in_order(client, queue):
    name = queue()
    with client.get_queue_sender(name) as sender:
        sender.send_messages([ServiceBusMessage(f"{number}") for number in range(100)])
        batch = sender.create_message_batch()
        assert batch.max_size_in_bytes == 256 * 1024
        filled = 0
        while True:
            try:
                batch.add_message(ServiceBusMessage("x" * 1_000))
            except ValueError:
                break
            filled += 1
        sender.send_messages(batch)
    assert filled > 200
    with client.get_queue_receiver(name, receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE) as receiver:
        got = []
        while len(got) < 100 + filled:
            got += bodies(receiver.receive_messages(500, max_wait_time=WAIT))
        assert receiver.receive_messages(1, max_wait_time=0.3) == []
    assert got == [f"{number}" for number in range(100)] + ["x" * 1_000] * filled


def test_every_way_of_settling(client, queue):
    name = queue(max_delivery_count=3)
    send(client, name, "complete", "abandon", "defer", "dead-letter")
    with client.get_queue_receiver(name) as receiver:
        done, again, later, dead = receiver.receive_messages(4, max_wait_time=WAIT)
        receiver.complete_message(done)
        receiver.defer_message(later)
        receiver.dead_letter_message(dead, reason="unreadable", error_description="no such model")
        receiver.abandon_message(again)
        for count in (1, 2):
            (again,) = receiver.receive_messages(1, max_wait_time=WAIT)
            assert (str(again), again.delivery_count) == ("abandon", count)
            receiver.abandon_message(again)
        assert receiver.receive_messages(1, max_wait_time=0.3) == []
        (deferred,) = receiver.receive_deferred_messages([later.sequence_number])
        assert (str(deferred), deferred.state) == ("defer", ServiceBusMessageState.DEFERRED)
        receiver.renew_message_lock(deferred)
        receiver.complete_message(deferred)
        with pytest.raises(MessageNotFoundError):
            receiver.receive_deferred_messages([later.sequence_number])
    with client.get_queue_receiver(name, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as receiver:
        assert len(receiver.peek_messages(10)) == 2
        letters = receiver.receive_messages(10, max_wait_time=WAIT)
        for letter in letters:
            receiver.complete_message(letter)
    reasons = {str(each): (each.dead_letter_reason, each.dead_letter_error_description) for each in letters}
    assert reasons == {
        "dead-letter": ("unreadable", "no such model"),
        "abandon": ("MaxDeliveryCountExceeded", "Message could not be consumed after 3 delivery attempts."),
    }


def test_a_lock_ends_and_can_be_renewed(client, queue):
    name = queue(lock_duration_ms=1_000)
    send(client, name, "held")
    with client.get_queue_receiver(name) as receiver:
        (message,) = receiver.receive_messages(1, max_wait_time=WAIT)
        for _ in range(3):
            time.sleep(0.6)
            assert receiver.renew_message_lock(message) == message.locked_until_utc
        time.sleep(1.2)
        with pytest.raises(MessageLockLostError):
            receiver.complete_message(message)
        (again,) = receiver.receive_messages(1, max_wait_time=WAIT)
        assert (again.delivery_count, again.sequence_number) == (1, message.sequence_number)
        assert again.lock_token != message.lock_token
        receiver.complete_message(again)


def test_the_sdks_own_renewer_keeps_a_lock(client, queue):
    name = queue(lock_duration_ms=2_000)
    send(client, name, "held")
    with AutoLockRenewer() as renewer, client.get_queue_receiver(name) as receiver:
        (message,) = receiver.receive_messages(1, max_wait_time=WAIT)
        renewer.register(receiver, message, max_lock_renewal_duration=30)
        time.sleep(4.5)
        receiver.complete_message(message)
    assert message.auto_renew_error is None


def test_scheduled_messages(client, queue):
    name = queue()
    with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
        numbers = sender.schedule_messages([ServiceBusMessage("wanted"), ServiceBusMessage("cancelled")], soon)
        assert numbers == [1, 2]
        sender.cancel_scheduled_messages(numbers[1])
        sender.send_messages(ServiceBusMessage("annotated", scheduled_enqueue_time_utc=soon))
        (peeked, _) = receiver.peek_messages(10)
        assert peeked.state is ServiceBusMessageState.SCHEDULED
        assert receiver.receive_messages(2, max_wait_time=0.3) == []
        got = []
        while len(got) < 2:
            got += receiver.receive_messages(2, max_wait_time=WAIT)
        assert dt.datetime.now(dt.UTC) >= soon
        assert sorted(bodies(got)) == ["annotated", "wanted"]
        with pytest.raises(MessageNotFoundError):
            sender.cancel_scheduled_messages(numbers[0])


@pytest.mark.parametrize("size", [0, 1, 150_000, 240_000])
def test_bodies_of_many_sizes(client, queue, size):
    name = queue()
    body = bytes(range(256)) * (size // 256 + 1)
    send(client, name, ServiceBusMessage(body[:size]))
    with client.get_queue_receiver(name) as receiver:
        (message,) = receiver.receive_messages(1, max_wait_time=WAIT)
        assert b"".join(message.body) == body[:size]
        receiver.complete_message(message)


def test_a_message_over_many_frames(client, queue):
    name = queue(max_message_kilobytes=8_192)
    body = b"0123456789abcdef" * (5 << 16)
    send(client, name, ServiceBusMessage(body))
    with client.get_queue_receiver(name) as receiver:
        (message,) = receiver.receive_messages(1, max_wait_time=20)
        assert b"".join(message.body) == body
        receiver.complete_message(message)


def test_a_message_that_is_too_large_is_refused_as_that(client, queue):
    name = queue()
    with client.get_queue_sender(name) as sender:
        with pytest.raises(MessageSizeExceededError):
            sender.send_messages(ServiceBusMessage(b"x" * 300_000))
        sender.send_messages(ServiceBusMessage("fits"))


def test_a_full_queue_and_a_disabled_one(client, queue):
    full = queue(max_size_megabytes=1)
    with client.get_queue_sender(full) as sender:
        for _ in range(5):
            sender.send_messages(ServiceBusMessage(b"x" * 200_000))
        with pytest.raises(ServiceBusQuotaExceededError):
            sender.send_messages(ServiceBusMessage(b"x" * 200_000))
    with pytest.raises(MessagingEntityDisabledError):
        send(client, queue(status=QueueStatus.DISABLED), "x")


def test_missing_queues_and_wrong_keys(client, emulator, queue):
    with pytest.raises(MessagingEntityNotFoundError):
        send(client, "nowhere", "x")
    wrong = emulator.connection_string.replace("SharedAccessKey=", "SharedAccessKey=x")
    with (
        ServiceBusClient.from_connection_string(wrong, retry_total=0) as stranger,
        pytest.raises(ServiceBusAuthenticationError),
    ):
        send(stranger, queue(), "x")


def test_nothing_can_be_sent_to_dead_letters(client, queue):
    with pytest.raises(ServiceBusError, match="dead-letter queue"):
        send(client, f"{queue()}/$DeadLetterQueue", "x")


def test_sessions_are_refused_not_ignored(client, queue):
    with pytest.raises(ServiceBusError, match="no sessions"), client.get_queue_receiver(queue(), session_id="s"):
        pass


def test_an_empty_receive_ends_in_time_and_an_iterator_too(client, queue):
    with client.get_queue_receiver(queue(), max_wait_time=0.5) as receiver:
        began = time.monotonic()
        assert receiver.receive_messages(1, max_wait_time=1) == []
        assert 0.9 < time.monotonic() - began < 3
        assert list(receiver) == []


def test_a_waiting_receiver_hears_at_once(client, queue):
    name = queue()
    with client.get_queue_receiver(name) as receiver, client.get_queue_sender(name) as sender:
        waits = []
        for _ in range(5):
            sender.send_messages(ServiceBusMessage("x"))
            began = time.monotonic()
            (message,) = receiver.receive_messages(1, max_wait_time=WAIT)
            waits.append(time.monotonic() - began)
            receiver.complete_message(message)
    assert sorted(waits)[2] < 0.25


def test_closing_a_receiver_gives_back_what_it_had_prefetched(client, emulator, queue):
    name = queue()
    send(client, name, *map(str, range(10)))
    with client.get_queue_receiver(name, prefetch_count=10) as receiver:
        receiver.receive_messages(1, max_wait_time=WAIT)
        time.sleep(0.3)
    counts = emulator.state()["queues"][name]
    assert (counts["active"], counts["locked"]) == (10, 1)


def test_duplicates_are_dropped(client, queue):
    name = queue(requires_duplicate_detection=True)
    send(client, name, *(ServiceBusMessage(f"{n}", message_id="same") for n in range(3)))
    with client.get_queue_receiver(name) as receiver:
        assert bodies(receiver.receive_messages(5, max_wait_time=WAIT)) == ["0"]


def test_a_dropped_connection_is_made_anew_by_the_sdk(emulator, queue):
    name = queue()
    with (
        ServiceBusClient.from_connection_string(emulator.connection_string) as client,
        client.get_queue_sender(name) as sender,
        client.get_queue_receiver(name) as receiver,
    ):
        sender.send_messages(ServiceBusMessage("1"))
        (first,) = receiver.receive_messages(1, max_wait_time=WAIT)
        emulator.drop_connections()
        sender.send_messages(ServiceBusMessage("2"))
        receiver.complete_message(first)
        assert bodies(receiver.receive_messages(1, max_wait_time=10)) == ["2"]


def test_tls_as_in_production(emulator, queue):
    """Without the flag for emulators the SDK speaks TLS only, here to an endpoint of its own."""
    name = queue()
    text = emulator.connection_string.replace("UseDevelopmentEmulator=true;", "")
    text = text.replace(f"127.0.0.1:{emulator.port}", "contoso.servicebus.windows.net")
    with ServiceBusClient.from_connection_string(
        text,
        custom_endpoint_address=f"sb://127.0.0.1:{emulator.port}",
        connection_verify=str(emulator.certificate),
        transport_type=TransportType.Amqp,
    ) as client:
        send(client, name, "secret")
        with client.get_queue_receiver(name) as receiver:
            assert bodies(receiver.receive_messages(1, max_wait_time=WAIT)) == ["secret"]
