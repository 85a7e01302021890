"""The emulator as a program: its command line, and `kill -9` with and without a journal."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def program(*arguments):
    """The running program: its process and what it said before it was ready, by the word before the colon."""
    command = [sys.executable, "-m", "infra.emulators.servicebus", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = {}
    try:
        for line in process.stdout:
            if line.startswith("Ready"):
                break
            word, _, rest = line.strip().partition(": ")
            said[word] = rest
        yield process, said
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def links(said, queue, to=None):
    """A sender to the queue, and a receiver from it or from its dead letters."""
    with (
        ServiceBusClient.from_connection_string(said["Connection string"], retry_total=0) as client,
        client.get_queue_sender(queue) as sender,
        client.get_queue_receiver(to or queue) as receiver,
    ):
        yield sender, receiver


def test_it_says_where_it_is_and_stops_when_told():
    arguments = ("--no-tls", "--queue", "orders,LockDuration=PT5S,MaxDeliveryCount=3", "--control-port", "0")
    with program(*arguments) as (process, said):
        assert said["Queues"] == "orders"
        assert "control" in said["Ports"]
        with links(said, "orders") as (sender, _):
            sender.send_messages(ServiceBusMessage("x"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_configuration_of_microsofts_emulator(tmp_path):
    queue = {"Name": "queue.1", "Properties": {"LockDuration": "PT1M", "MaxDeliveryCount": 3, "ForwardTo": ""}}
    path = tmp_path / "Config.json"
    path.write_text(json.dumps({"UserConfig": {"Namespaces": [{"Name": "ns", "Queues": [queue]}]}}))
    with program("--no-tls", "--config", path) as (_, said):
        assert said["Queues"] == "queue.1"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--queue", "x,Colour=red"), "Colour"),
        (("--queue", "x,RequiresSession=true"), "sessions"),
        (("--queue", "a//b"), "name"),
        (("--host", "203.0.113.1", "--no-tls"), "error"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments, word):
    command = [sys.executable, "-m", "infra.emulators.servicebus", "--port", "0", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kept", [True, False], ids=["with a journal", "without"])
def test_kill_9(tmp_path, kept):
    journal = ("--journal", tmp_path / "journal") if kept else ()
    arguments = ("--no-tls", "--queue", "q,MaxDeliveryCount=2", *journal)
    with program(*arguments) as (process, said), links(said, "q") as (sender, receiver):
        sender.send_messages([ServiceBusMessage(f"{n}", application_properties={"n": n}) for n in range(6)])
        done, dead, later, again, _ = receiver.receive_messages(5, max_wait_time=5)
        receiver.complete_message(done)
        receiver.dead_letter_message(dead, reason="why")
        receiver.defer_message(later)
        receiver.abandon_message(again)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if kept:
        (tmp_path / "journal").open("ab").write(b'["put","q",7,')  # a line that was cut off
    for _ in range(2):  # what was restored is kept again
        with program(*arguments) as (_, said):
            with links(said, "q") as (_, receiver):
                found = {str(each): (each.delivery_count, each.state.name) for each in receiver.peek_messages(10)}
            with links(said, "q", "q/$DeadLetterQueue") as (_, receiver):
                letters = [each.dead_letter_reason for each in receiver.peek_messages(10)]
        if not kept:
            assert found == {}
            return
        assert letters == ["why"]
        assert found == {"2": (0, "DEFERRED"), "3": (1, "ACTIVE"), "4": (0, "ACTIVE"), "5": (0, "ACTIVE")}
