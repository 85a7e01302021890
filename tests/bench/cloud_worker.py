"""A Celery worker with an empty task, the same for every bus: `python -m tests.bench.cloud_worker URL QUEUE`.

For each task it writes the task's argument and the time, on the machine's monotonic clock, as one line. With
`publish` and a count as further arguments it sends so many tasks instead and is gone.
"""

from __future__ import annotations

import os
import sys
import time

from celery import Celery

from broker.bus.topology import lane_queue, plain_url, prepare_kombu, transport_for, transport_options_for

__all__ = ["app_on", "main"]

CONCURRENCY = 4
PREFETCH_MULTIPLIER = 4


def app_on(url: str, queue: str) -> Celery:
    """Celery as its documentation sets it up for work that must not be lost, with our transport or kombu's."""
    prepare_kombu()
    app = Celery("bench", broker=plain_url(url))
    app.conf.update(
        broker_transport=transport_for(url),
        broker_transport_options=transport_options_for(url, None),
        task_queues=[lane_queue(url, queue)],
        task_default_queue=queue,
        task_acks_late=True,
        task_ignore_result=True,
        worker_concurrency=CONCURRENCY,
        worker_prefetch_multiplier=PREFETCH_MULTIPLIER,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )

    @app.task(name="bench.note")
    def note(number: float) -> None:
        os.write(1, f"{number!r} {time.monotonic()!r}\n".encode())

    return app


def main(url: str, queue: str, *publish: str) -> None:
    """Work until told to end, or publish."""
    app = app_on(url, queue)
    if publish:
        for number in range(int(publish[1])):
            app.send_task("bench.note", [number])
        # kombu's gcpubsub doesn't wait until Google has what it sends; what is left dies with the process.
        time.sleep(3)
        return
    app.Worker(pool_cls="threads", without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
