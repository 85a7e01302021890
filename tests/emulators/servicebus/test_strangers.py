"""What Microsoft's Python clients do seldom, and a stranger's script may."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid

import pytest
from azure.core.credentials import AzureNamedKeyCredential
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusReceiveMode,
    ServiceBusSubQueue,
    TransportType,
)
from azure.servicebus.aio import ServiceBusClient as AioClient
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageBodyType, AmqpMessageHeader
from azure.servicebus.exceptions import MessageNotFoundError, MessageSizeExceededError

from infra.emulators.servicebus import KEY, KEY_NAME

WAIT = 5


def received(receiver, count):
    messages = []
    while len(messages) < count:
        more = receiver.receive_messages(count - len(messages), max_wait_time=WAIT)
        assert more
        messages += more
    return messages


def fill(batch):
    """Put in what fits; how many that was."""
    for count in range(10_000):
        try:
            batch.add_message(ServiceBusMessage("z" * 500))
        except MessageSizeExceededError:
            return count
    raise AssertionError("it never was full")


def test_every_section_of_an_annotated_message(client, queue):
    name = queue()
    sent = AmqpAnnotatedMessage(
        value_body={"x": [1, 2.5, None, True]},
        header=AmqpMessageHeader(priority=7, durable=True),
        annotations={"note": 1},
        delivery_annotations={"hop": 1},  # the SDK encodes them last
        application_properties={"p": uuid.UUID(int=5), "d": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)},
        footer={"f": "g"},
    )
    with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        sender.send_messages(sent)
        sender.send_messages(AmqpAnnotatedMessage(sequence_body=[[1, 2], ["a"]]))
        sender.send_messages([AmqpAnnotatedMessage(data_body=[b"1", b"2"]), ServiceBusMessage(None)])
        annotated, sequence, data, empty = received(receiver, 4)
        assert annotated.body_type is AmqpMessageBodyType.VALUE
        raw = annotated.raw_amqp_message
        assert (raw.header.priority, raw.header.durable) == (7, True)
        assert raw.annotations[b"note"] == 1
        assert raw.footer == {b"f": b"g"}
        assert not raw.delivery_annotations
        assert raw.application_properties[b"p"] == uuid.UUID(int=5)
        assert list(sequence.body) == [[1, 2], [b"a"]]
        assert b"".join(data.body) == b"12"
        for message in (annotated, sequence, data, empty):
            receiver.complete_message(message)


def test_a_received_message_may_be_sent_again(client, queue):
    name = queue()
    with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        fields = {"message_id": "i", "correlation_id": "k", "subject": "s", "reply_to": "r", "to": "t"}
        sender.send_messages(ServiceBusMessage("again", time_to_live=dt.timedelta(minutes=2), **fields))
        (first,) = received(receiver, 1)
        sender.send_messages(first)
        receiver.complete_message(first)
        (second,) = received(receiver, 1)
        assert {field: getattr(second, field) for field in fields} == fields
        assert second.sequence_number > first.sequence_number
        receiver.complete_message(second)


def test_deferred_messages_in_every_way(client, queue):
    name = queue()
    with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        sender.send_messages([ServiceBusMessage(text) for text in "abcd"])
        messages = received(receiver, 4)
        for message in messages:
            receiver.defer_message(message)
        numbers = [message.sequence_number for message in messages]
        done, again, dead = receiver.receive_deferred_messages(numbers[:3])
        receiver.complete_message(done)
        receiver.abandon_message(again)
        receiver.dead_letter_message(dead, reason="r")
        (again,) = receiver.receive_deferred_messages(numbers[1])
        assert receiver.renew_message_lock(again) > dt.datetime.now(dt.UTC)
        receiver.complete_message(again)
        mode = ServiceBusReceiveMode.RECEIVE_AND_DELETE
        with client.get_queue_receiver(name, receive_mode=mode) as taking:
            assert [str(each) for each in taking.receive_deferred_messages(numbers[3:])] == ["d"]
        with pytest.raises(MessageNotFoundError):
            receiver.receive_deferred_messages(numbers[0])


def test_a_full_batch_prefetched_and_iterated(client, queue):
    name = queue()
    with client.get_queue_sender(name) as sender:
        batch = sender.create_message_batch()
        count = fill(batch)
        sender.send_messages(batch)
    with client.get_queue_receiver(name, prefetch_count=50, max_wait_time=2) as receiver:
        seen = 0
        for message in receiver:
            receiver.complete_message(message)
            seen += 1
    assert seen == count > 300


def test_dead_letters_are_a_queue_of_their_own(client, queue):
    name = queue()
    with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        sender.send_messages(ServiceBusMessage("bad", application_properties={"k": "v"}))
        receiver.dead_letter_message(*received(receiver, 1))
    with client.get_queue_receiver(f"{name}/$DeadLetterQueue") as dead:
        (letter,) = received(dead, 1)
        assert letter.application_properties == {b"k": b"v"}
        dead.abandon_message(letter)
        (letter,) = received(dead, 1)
        dead.defer_message(letter)
        (letter,) = dead.receive_deferred_messages(letter.sequence_number)
        dead.complete_message(letter)
        assert dead.peek_messages() == []
    with client.get_queue_receiver(name, sub_queue=ServiceBusSubQueue.TRANSFER_DEAD_LETTER) as none:
        assert none.receive_messages(1, max_wait_time=0.5) == []


def test_a_named_key_at_an_endpoint_of_its_own(emulator, queue):
    name = queue()
    client = ServiceBusClient(
        "contoso.servicebus.windows.net",
        AzureNamedKeyCredential(KEY_NAME, KEY),
        custom_endpoint_address=f"sb://127.0.0.1:{emulator.port}",
        connection_verify=str(emulator.certificate),
        transport_type=TransportType.Amqp,
    )
    with client, client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        sender.send_messages(ServiceBusMessage("x"))
        receiver.complete_message(*received(receiver, 1))


def test_poison_abandoned_by_aio_ends_in_the_dead_letters(emulator, queue):
    name = queue(max_delivery_count=5)

    async def story():
        async with AioClient.from_connection_string(emulator.connection_string) as client:
            async with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
                await asyncio.gather(*(sender.send_messages(ServiceBusMessage(f"{n}")) for n in range(5)))
                for _ in range(25):
                    (message,) = await receiver.receive_messages(1, max_wait_time=WAIT)
                    await receiver.abandon_message(message)
            mode, dead = ServiceBusReceiveMode.RECEIVE_AND_DELETE, ServiceBusSubQueue.DEAD_LETTER
            async with client.get_queue_receiver(name, sub_queue=dead, max_wait_time=1, receive_mode=mode) as letters:
                return [letter.dead_letter_reason async for letter in letters]

    assert asyncio.run(story()) == ["MaxDeliveryCountExceeded"] * 5
