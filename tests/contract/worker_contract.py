"""What a Celery worker must do on any lane's bus; the second half of the contract."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter

from celery.exceptions import Reject

from broker.bus.apps import start_in_process, worker_app
from broker.bus.publisher import Publisher
from tests.contract.bus_under_test import Features

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
