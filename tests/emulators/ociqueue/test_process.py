"""The emulator as a program: its command line, and `kill -9` with and without a journal."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import oci
import pytest

from infra.emulators.ociqueue import COMPARTMENT

ROOT = Path(__file__).parents[3]
models = oci.queue.models


@contextlib.contextmanager
def program(*arguments):
    """The running program: its process and what it said before it was ready, by the word before the colon."""
    command = [sys.executable, "-m", "infra.emulators.ociqueue", "--port", "0", *map(str, arguments)]
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


def test_it_says_where_it_is_and_stops_when_told(clients, key, tmp_path):
    (tmp_path / "key.pem").write_text(key.public)
    arguments = ("--queue", "orders,visibility=5,deliveries=3", "--control-port", "0")
    with program(*arguments, "--key", f"{key.id}={tmp_path / 'key.pem'}") as (process, said):
        name, ocid = said["Queues"].split()
        assert name == "orders"
        assert "control" in said["Ports"]
        described = clients(said["Endpoint"]).admin.get_queue(ocid).data
        assert (described.compartment_id, described.visibility_in_seconds) == (COMPARTMENT, 5)
        assert described.dead_letter_queue_delivery_count == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--queue", "x,colour=red"), "no queue has the field 'colour'"),
        (("--queue", "x,visibility=0"), "visibility_seconds is 0"),
        (("--key", "id=/nowhere.pem"), "nowhere.pem"),
        (("--host", "203.0.113.1"), "error"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments, words):
    command = [sys.executable, "-m", "infra.emulators.ociqueue", "--port", "0", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kept", [True, False], ids=["with a journal", "without"])
def test_kill_9(tmp_path, clients, put, get, kept):
    journal = ("--journal", tmp_path / "journal") if kept else ()
    arguments = ("--queue", "q,deliveries=2", *journal)
    with program(*arguments) as (process, said):
        ocid = said["Queues"].split()[1]
        client = clients(said["Endpoint"]).queue
        put(client, ocid, *map(str, range(6)), custom_properties={"a": "b"})
        for _ in range(2):
            (poison,) = get(client, ocid, limit=1)
            details = models.UpdateMessageDetails(visibility_in_seconds=0)
            client.update_message(ocid, poison.receipt, details)
        done, _ = get(client, ocid, limit=2)
        client.delete_message(ocid, done.receipt)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if kept:
        (tmp_path / "journal").open("ab").write(b'["put","q",7,')  # a line that was cut off
    for lives in (1, 2):  # what was restored is kept again
        with program(*arguments) as (_, said):
            now = said["Queues"].split()[1]
            assert (now == ocid) is kept
            client = clients(said["Endpoint"]).queue
            found = {
                message.content: (message.delivery_count, message.metadata.custom_properties)
                for message in get(client, now)
            }
            dead = [message.content for message in get(client, f"{now}-dlq")]
        if not kept:
            assert (found, dead) == ({}, [])
            return
        if lives == 1:
            assert dead == ["0"]
            assert found == {text: (count, {"a": "b"}) for text, count in {"2": 2, "3": 1, "4": 1, "5": 1}.items()}
        else:  # what the first life held when it was killed had been delivered twice
            assert dead == ["0", "2"]
            assert found == {text: (2, {"a": "b"}) for text in "345"}
