"""The worker's HTTP client alone, without worker and broker: a file's bodies at so many places.

    python -m tests.bench.client_driver FILE PORT PLACES

Prints its CPU seconds, from the first call to the last reply.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.direct_driver import bodies_of
from workers.engine import EngineRequest
from workers.engines.openai_http import OpenAIHttpEngine

__all__ = ["run_client"]


async def run_client(bodies: Iterator[bytes], port: int, places: int) -> float:
    """CPU seconds."""
    engine = OpenAIHttpEngine(f"http://127.0.0.1:{port}", concurrency=places, use_proxy=False)
    await engine.start()
    began = time.process_time()
    await asyncio.gather(*(_work(engine, bodies) for _ in range(places)))
    used = time.process_time() - began
    await engine.stop()
    return used


async def _work(engine: OpenAIHttpEngine, bodies: Iterator[bytes]) -> None:
    for body in bodies:
        await engine.run(EngineRequest("", "/v1/chat/completions", body))


if __name__ == "__main__":
    print(asyncio.run(run_client(bodies_of(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))))
