"""Microsoft's asynchronous client against the emulator."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusSubQueue
from azure.servicebus.aio import AutoLockRenewer, ServiceBusClient
from azure.servicebus.exceptions import MessageLockLostError, MessageSizeExceededError, MessagingEntityNotFoundError

WAIT = 5


def run(emulator, story):
    async def tell():
        async with ServiceBusClient.from_connection_string(emulator.connection_string, retry_total=0) as client:
            await story(client)

    asyncio.run(tell())


def test_send_receive_and_settle(emulator, queue):
    name = queue()

    async def story(client):
        async with client.get_queue_sender(name) as sender:
            await sender.send_messages([ServiceBusMessage(f"{n}") for n in range(4)])
            with pytest.raises(MessageSizeExceededError):
                await sender.send_messages(ServiceBusMessage(b"x" * 300_000))
        async with client.get_queue_receiver(name) as receiver:
            done, again, later, dead = await receiver.receive_messages(4, max_wait_time=WAIT)
            await receiver.complete_message(done)
            await receiver.abandon_message(again)
            await receiver.defer_message(later)
            await receiver.dead_letter_message(dead, reason="r", error_description="d")
            (message,) = await receiver.receive_messages(1, max_wait_time=WAIT)
            assert (str(message), message.delivery_count) == ("1", 1)
            await receiver.renew_message_lock(message)
            await receiver.complete_message(message)
            (deferred,) = await receiver.receive_deferred_messages(later.sequence_number)
            await receiver.complete_message(deferred)
            assert await receiver.peek_messages(5, sequence_number=1) == []
        async with client.get_queue_receiver(name, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as receiver:
            (letter,) = await receiver.receive_messages(1, max_wait_time=WAIT)
            assert (letter.dead_letter_reason, letter.dead_letter_error_description) == ("r", "d")
            await receiver.complete_message(letter)

    run(emulator, story)
    assert emulator.state()["queues"][name]["active"] == 0


def test_locks(emulator, queue):
    name = queue(lock_duration_ms=3_000)

    async def story(client):
        async with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
            await sender.send_messages([ServiceBusMessage("kept"), ServiceBusMessage("lost")])
            kept, lost = await receiver.receive_messages(2, max_wait_time=WAIT)
            async with AutoLockRenewer() as renewer:
                renewer.register(receiver, kept)
                await asyncio.sleep(4)
                await receiver.complete_message(kept)
            with pytest.raises(MessageLockLostError):
                await receiver.complete_message(lost)

    run(emulator, story)


def test_schedule_and_cancel(emulator, queue):
    name = queue()

    async def story(client):
        async with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
            soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
            first, second = await sender.schedule_messages([ServiceBusMessage("a"), ServiceBusMessage("b")], soon)
            await sender.cancel_scheduled_messages(first)
            (message,) = await receiver.receive_messages(1, max_wait_time=WAIT)
            assert str(message) == "b"
            assert message.sequence_number > second
            await receiver.complete_message(message)

    run(emulator, story)


def test_four_receivers_share_and_do_not_copy(emulator, queue):
    name = queue()

    async def drain(client, got):
        async with client.get_queue_receiver(name, max_wait_time=1.5) as receiver:
            async for message in receiver:
                got.append(str(message))
                await receiver.complete_message(message)

    async def story(client):
        async with client.get_queue_sender(name) as sender:
            await sender.send_messages([ServiceBusMessage(f"{n}") for n in range(200)])
        got = [[] for _ in range(4)]
        await asyncio.gather(*(drain(client, each) for each in got))
        assert sorted(int(body) for each in got for body in each) == list(range(200))

    run(emulator, story)


def test_a_missing_queue(emulator):
    async def story(client):
        with pytest.raises(MessagingEntityNotFoundError):
            async with client.get_queue_receiver("nowhere"):
                pass

    run(emulator, story)
