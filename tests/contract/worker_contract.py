"""What a Celery worker must do on any lane's bus; the second half of the contract."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter

import msgspec
import pytest
from celery.exceptions import Reject

from broker.bus.apps import start_in_process, worker_app
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from tests.contract.bus_under_test import Features, delete_queues, received

__all__ = ["Lane", "WorkerContract"]


class Lane:
    """A queue, a publisher and at most one worker at a time, with every run counted."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.queue = f"contract.{uuid.uuid4().hex[:12]}"
        self.publisher = Publisher(features.url, features.options)
        self.started: Counter[bytes] = Counter()
        self.finished: Counter[bytes] = Counter()
        self.worker = None
        self._lock = threading.Lock()

    def work(self, run_shard, concurrency=4):
        def counted(envelope):
            with self._lock:
                self.started[envelope] += 1
            run_shard(envelope)
            with self._lock:
                self.finished[envelope] += 1

        name = f"worker-{uuid.uuid4().hex[:6]}"
        options = self.features.options
        app = worker_app(name, self.features.url, [self.queue], concurrency, options, run_shard=counted)
        self.worker = start_in_process(app)
        return self.worker

    def wait(self, done, seconds):
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"started {self.started.total()}, finished {self.finished.total()}"
            time.sleep(0.002)

    def close(self):
        if self.worker is not None:
            assert self.worker.stop(10)
        self.publisher.close()
        delete_queues(self.features, [self.queue])


class WorkerContract:
    """Each test is one case."""

    def test_c25_shards_handed_back_at_a_stop_run_once_to_the_end_elsewhere(self, lane):
        preempted = threading.Event()

        def until_preempted(envelope):
            preempted.wait(30)
            raise Reject("preempted", requeue=True)

        first = lane.work(until_preempted)
        lane.publisher.publish_shards(lane.queue, [b"1", b"2", b"3"])
        lane.wait(lambda: lane.started.total() == 3, 5)
        began = time.monotonic()
        preempted.set()
        assert first.stop(5)
        assert time.monotonic() - began < 5
        lane.work(lambda envelope: None)
        lane.wait(lambda: lane.finished.total() == 3, 3 + lane.features.lease_seconds)
        time.sleep(0.1)
        assert lane.finished == {b"1": 1, b"2": 1, b"3": 1}

    def test_c25_a_process_told_to_end_hands_its_shards_back_and_is_gone_in_time(self, lane):
        if not lane.features.other_processes:
            pytest.skip("the bus lives in this process alone")
        settings = msgspec.json.encode([lane.features.url, lane.features.options, lane.queue]).decode()
        command = [sys.executable, "-c", f"{lane.features.imports}\n{WORK_UNTIL_TOLD_TO_END}", settings]
        other = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            lane.publisher.publish_shards(lane.queue, [b"1", b"2", b"3"])
            assert sorted(other.stdout.readline() for _ in range(3)) == [b"1\n", b"2\n", b"3\n"]
            began = time.monotonic()
            other.send_signal(signal.SIGTERM)
            assert other.wait(10) == 0
            assert time.monotonic() - began < 5
        finally:
            other.kill()
            other.communicate()
        lane.work(lambda envelope: None)
        lane.wait(lambda: lane.finished.total() == 3, 3 + lane.features.lease_seconds)
        time.sleep(0.1)
        assert lane.finished == {b"1": 1, b"2": 1, b"3": 1}

    def test_prefetch_leaves_the_rest_to_others(self, lane):
        going = threading.Event()
        lane.work(lambda envelope: going.wait(20), concurrency=2)
        lane.publisher.publish_shards(lane.queue, [b"%d" % number for number in range(6)])
        lane.wait(lambda: lane.started.total() == 2, 5)
        time.sleep(0.3)
        inbox = Inbox(lane.features.url, [lane.queue], 100, lane.features.options)
        left = received(inbox, 6, 1.0)
        inbox.acknowledge(left)
        inbox.close()
        going.set()
        lane.wait(lambda: lane.finished.total() == 2, 5)
        assert len(left) == 4

    def test_a_stop_lets_running_shards_end_and_acknowledges_them(self, lane):
        worker = lane.work(lambda envelope: time.sleep(0.3), concurrency=1)
        lane.publisher.publish_shards(lane.queue, [b"runs", b"waits"])
        lane.wait(lambda: lane.started.total() == 1, 5)
        assert worker.stop(5)
        assert lane.finished == {b"runs": 1}
        lane.work(lambda envelope: None)
        lane.wait(lambda: lane.finished[b"waits"] == 1, 3)
        time.sleep(lane.features.lease_seconds * 1.2)
        assert lane.finished == {b"runs": 1, b"waits": 1}

    def test_c26_what_is_published_during_a_stop_runs_at_the_next_worker(self, lane):
        going = threading.Event()
        first = lane.work(lambda envelope: going.wait(10), concurrency=1)
        lane.publisher.publish_shards(lane.queue, [b"first"])
        lane.wait(lambda: lane.started.total() == 1, 5)
        stopping = threading.Thread(target=first.stop, args=(10,))
        stopping.start()
        time.sleep(0.1)
        lane.publisher.publish_shards(lane.queue, [b"late"])
        going.set()
        stopping.join()
        lane.work(lambda envelope: None)
        lane.wait(lambda: lane.finished[b"late"] == 1, lane.features.lease_seconds + 3)
        assert lane.finished == {b"first": 1, b"late": 1}

    def test_c27_a_shard_may_publish_to_its_own_lane_and_outlast_its_lease(self, lane):
        def run(envelope):
            if envelope == b"long":
                lane.publisher.publish_shards(lane.queue, [b"child"])
                time.sleep(lane.features.lease_seconds * 3)

        lane.work(run, concurrency=2)
        lane.publisher.publish_shards(lane.queue, [b"long"])
        lane.wait(lambda: lane.finished.total() == 2, 5 + lane.features.lease_seconds * 3)
        assert lane.started == {b"long": 1, b"child": 1}

    def test_c28_a_thousand_shards_each_run_once(self, lane, record_property):
        envelopes = [b"%d" % number for number in range(1_000)]
        lane.work(lambda envelope: None)
        began = time.perf_counter()
        lane.publisher.publish_shards(lane.queue, envelopes)
        lane.wait(lambda: lane.finished.total() >= 1_000, 30)
        record_property("shards_per_second", 1_000 / (time.perf_counter() - began))
        time.sleep(0.05)
        assert lane.finished == dict.fromkeys(envelopes, 1)

    def test_a_shard_that_raises_is_acknowledged(self, lane):
        def run(envelope):
            raise RuntimeError("broken")

        worker = lane.work(run)
        lane.publisher.publish_shards(lane.queue, [b"bad"])
        lane.wait(lambda: lane.started.total() == 1, 5)
        time.sleep(lane.features.lease_seconds * 1.2)
        assert worker.stop(5)
        assert lane.started == {b"bad": 1}


WORK_UNTIL_TOLD_TO_END = """
import os, sys, threading
import msgspec
from celery import signals
from celery.exceptions import Reject
from broker.bus.apps import worker_app

url, options, queue = msgspec.json.decode(sys.argv[1])
told_to_end = threading.Event()


def run_shard(envelope):
    os.write(1, envelope + b"\\n")  # print would write the text and its end apart, with other threads between
    told_to_end.wait(30)
    raise Reject("preempted", requeue=True)


app = worker_app("told-to-end", url, [queue], 4, options, run_shard=run_shard)
signals.worker_shutting_down.connect(lambda **_: told_to_end.set(), weak=False)
worker = app.Worker(pool_cls="threads", without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True)
worker.start()
sys.exit(worker.exitcode)
"""
