"""RabbitMQ's frames while a batch is published: gathered whole, in order, beside acknowledgements of other threads."""

from __future__ import annotations

import threading

import pytest

from broker.bus.amqp import CORK_BYTES, _CorkedWriter


class Watched(_CorkedWriter):
    """Fails where what decides over other threads' frames changes without the lock."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_corked" and "_lock" in self.__dict__:
            assert self._lock.locked(), "the flag changes outside the lock"
        super().__setattr__(name, value)


def test_a_batch_is_one_write_and_its_flag_changes_under_the_lock():
    written: list[bytes] = []
    writer = Watched(written.append)
    writer.write(b"a")
    with writer.corked():
        writer.write(b"b")
        writer.write(b"c")
        assert written == [b"a"]
    writer.write(b"d")
    assert written == [b"a", b"bc", b"d"]


def test_after_an_error_what_was_gathered_is_dropped_and_the_next_batch_is_whole():
    written: list[bytes] = []
    writer = Watched(written.append)

    def break_off() -> None:
        with writer.corked():
            writer.write(b"half a batch")
            raise TimeoutError

    with pytest.raises(TimeoutError):
        break_off()
    writer.write(b"a")
    with writer.corked():
        writer.write(b"b")
    assert written == [b"a", b"b"]


def test_a_socket_that_fails_at_the_end_of_a_batch_leaves_the_writer_uncorked():
    fails = [True, False]

    def write(data: bytes) -> None:
        if fails.pop(0):
            raise BrokenPipeError
        written.append(data)

    written: list[bytes] = []
    writer = Watched(write)
    with pytest.raises(BrokenPipeError), writer.corked():
        writer.write(b"a")
    writer.write(b"b")
    assert written == [b"b"]


def test_every_frame_of_every_thread_arrives_once_and_in_its_threads_order():
    written: list[bytes] = []
    writer = _CorkedWriter(written.append)
    frames, threads_count = 2_000, 3

    def acknowledge(who: int) -> None:
        for number in range(frames):
            writer.write(b"%d:%06d;" % (who, number))

    threads = [threading.Thread(target=acknowledge, args=(who,)) for who in range(1, 1 + threads_count)]
    for thread in threads:
        thread.start()
    for batch in range(200):
        with writer.corked():
            for number in range(10):
                writer.write(b"0:%06d;" % (batch * 10 + number))
    for thread in threads:
        thread.join()
    came = b"".join(written).decode().rstrip(";").split(";")
    for who in range(1 + threads_count):
        assert [frame for frame in came if frame.startswith(f"{who}:")] == [
            f"{who}:{number:06d}" for number in range(frames)
        ]


def test_a_large_batch_is_written_in_parts():
    written: list[bytes] = []
    writer = _CorkedWriter(written.append)
    with writer.corked():
        writer.write(bytes(CORK_BYTES - 1))
        assert written == []
        writer.write(b"xy")
        writer.write(b"z")
    assert [len(data) for data in written] == [CORK_BYTES + 1, 1]
