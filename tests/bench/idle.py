"""What the service adds to a single job when it has nothing else to do."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from tests.bench.service import running_service
from tests.bench.table import print_table
from tests.bench.workload import request_body

__all__ = ["measure_idle"]

_WARM_UP = 30
_JOBS = 300
_PAUSE_SECONDS = 0.02


def measure_idle(folder: Path, catalog: Path) -> dict[str, float]:
    """Milliseconds from sending a job over HTTP to holding its result, on an instant engine: p50 and p99 of 300."""
    data = folder / "idle"
    shutil.rmtree(data, ignore_errors=True)
    taken = []
    os.sync()  # what was written before, an installation perhaps, is not to be waited for here
    with running_service(data, catalog) as (_, client):
        for number in range(_WARM_UP + _JOBS):
            time.sleep(_PAUSE_SECONDS)
            began = time.perf_counter()
            job = client.submit(request_body(number))
            client.result(job.id, wait_seconds=10)
            taken.append((time.perf_counter() - began) * 1_000)
    ordered = sorted(taken[_WARM_UP:])
    p50, p99 = ordered[_JOBS // 2], ordered[_JOBS * 99 // 100]
    print_table(
        "Idle: one job over HTTP, from sending it to holding its result (instant engine, 300 in sequence)",
        ("", "p50 ms", "p99 ms", "slowest ms"),
        [("broker up", f"{p50:.1f}", f"{p99:.1f}", f"{ordered[-1]:.1f}")],
    )
    return {"embedded_idle_p50_ms": round(p50, 2), "embedded_idle_p99_ms": round(p99, 2)}
