"""The peers on RabbitMQ: a queue message per job, and one committed PostgreSQL row per job, on threads.

`python -m tests.bench.bus_peers dramatiq|celery COUNT` publishes; the workers are the peers' own commands:
`python -m dramatiq tests.bench.bus_peers:dramatiq_broker` and `python -m celery -A tests.bench.bus_peers worker`.
BENCH_POSTGRES and BENCH_RABBIT say where.
"""

from __future__ import annotations

import os
import sys
import threading

import dramatiq
import psycopg
from celery import Celery
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.bench.workload import REPLY_BYTES, request_body

__all__ = ["app", "dramatiq_broker", "main"]

_RABBIT = os.environ.get("BENCH_RABBIT", "amqp://guest:guest@127.0.0.1:5672//")
_POSTGRES = os.environ.get("BENCH_POSTGRES", "")
_INSERT = "INSERT INTO done (name, provider, body_bytes, reply, ended_at) VALUES (%s, 'here', %s, %s, now())"

_mine = threading.local()

dramatiq_broker = RabbitmqBroker(url=_RABBIT.rstrip("/"))
dramatiq.set_broker(dramatiq_broker)

app = Celery("bench", broker=_RABBIT)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=16,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


def _keep(name: str, body: str) -> None:
    """The job's one durable row."""
    if not hasattr(_mine, "connection"):
        _mine.connection = psycopg.connect(_POSTGRES, autocommit=True)
    _mine.connection.execute(_INSERT, (name, len(body), body[-REPLY_BYTES:]))


@dramatiq.actor(max_retries=0)
def run_dramatiq(name: str, body: str) -> None:
    _keep(name, body)


@app.task(name="bench.run")
def run_celery(name: str, body: str) -> None:
    _keep(name, body)


def main(peer: str, count: int) -> None:
    """Publish so many jobs, one after another, and stay."""
    send = run_dramatiq.send if peer == "dramatiq" else run_celery.delay
    for number in range(count):
        send(f"job-{number}", request_body(number).decode())
    threading.Event().wait()  # until it is stopped: what lies in its buffers would go with it


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
