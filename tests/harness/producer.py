"""A producer that keeps what it sent and what it was told: the one side of the account."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import msgspec

from broker.domain.errors import BrokerError
from broker.sdk.http import Client
from tests.harness.stand import Stand

__all__ = ["Producer"]

_RETRY_SECONDS = 0.3


def _body(text: str) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


class Producer:
    """`attempted` are names of jobs, `acknowledged` those of which the broker said that it has them.

    A job's name is its custom_id or its idempotency key, and is what its engine is asked to repeat.
    """

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.attempted: set[str] = set()
        self.acknowledged: set[str] = set()
        self.batches: dict[str, list[str]] = {}
        self.refused = 0
        self.unsure = 0

    def send_batch(self, jobs: int, window: str = "6h") -> str:
        """One file of so many lines; its id."""
        number = next(self._numbers)
        names = [f"batch{number}-{line}" for line in range(jobs)]
        file = Path(self._stand.folder, f"batch{number}.jsonl")
        with file.open("wb") as lines:
            for name in names:
                line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": _body(name)}
                lines.write(msgspec.json.encode(line) + b"\n")
        self.attempted |= set(names)
        with self._stand.client() as client:
            batch = client.create_batch(file, window=window).id
        self.acknowledged |= set(names)
        self.batches[batch] = names
        return batch

    def send_singles(self, per_second: float) -> None:
        """Single jobs from now until `stop_singles`, each sent again under its key until it is acknowledged."""
        thread = threading.Thread(target=self._singles, args=(per_second,), name="producer", daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop_singles(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _singles(self, per_second: float) -> None:
        with self._stand.client() as client:
            for number in itertools.count():
                if self._stop.wait(1 / per_second):
                    return
                self._single(client, f"single{number}")

    def _single(self, client: Client, name: str) -> None:
        self.attempted.add(name)
        while True:
            try:
                client.submit(_body(name), window="6h", idempotency_key=name)
            except BrokerError as error:
                if getattr(error, "status", 503) in {429, 503}:
                    self.unsure += 1
                    time.sleep(_RETRY_SECONDS)
                    if not self._stop.is_set():
                        continue
                else:
                    self.refused += 1
                return
            self.acknowledged.add(name)
            return
