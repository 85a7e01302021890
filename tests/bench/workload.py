"""The same bodies in every benchmark: 1,050 bytes in, 315 bytes out."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["BODY_BYTES", "LANES", "REPLY_BYTES", "request_body", "write_batch", "write_catalog"]

BODY_BYTES = 1_050
REPLY_BYTES = 315

LANES = (
    ("bench-tpu", "google-tpu", "1.20"),
    ("bench-azure", "azure-gpu", "3.673"),
    ("bench-oracle", "oracle-gpu", "2.00"),
)

# Around the echoed text the echo engine puts so many bytes, its 32-digit request id included.
_REPLY_FRAME_BYTES = 289


def request_body(number: int) -> bytes:
    """A chat request of BODY_BYTES, whose echo is REPLY_BYTES long."""
    echoed = f"job {number}".ljust(REPLY_BYTES - _REPLY_FRAME_BYTES, ".")
    bare = msgspec.json.encode(_request("", echoed))
    return msgspec.json.encode(_request(("lorem " * 200)[: BODY_BYTES - len(bare)], echoed))


def _request(context: str, echoed: str) -> dict[str, object]:
    messages = [{"role": "system", "content": context}, {"role": "user", "content": echoed}]
    return {"model": "echo", "messages": messages}


def write_batch(path: Path, jobs_count: int) -> Path:
    """A batch file of so many lines."""
    with path.open("wb") as file:
        for number in range(jobs_count):
            file.write(b'{"custom_id":"job-%d","method":"POST","url":"/v1/chat/completions","body":' % number)
            file.write(request_body(number) + b"}\n")
    return path


def write_catalog(path: Path, *, slots: int = 4, shard_jobs_max: int | None = 64) -> Path:
    """Three lanes of echo engines, one per provider; None leaves the size of shards to the catalog's default."""
    shards = "" if shard_jobs_max is None else f"shard_jobs_max = {shard_jobs_max}"
    path.write_text(
        "\n".join(
            f"""
[[lane]]
name = "{name}"
provider = "{provider}"
region = "here"
accelerator = "none"
accelerator_count = 1
market = "on-demand"
stand_in = true
slots = {slots}
jobs_per_second = 2000.0
{shards}
price.instance_hour_usd = "{usd}"
price.source = "the benchmark"
price.as_of = "2026-11-22"
engine.driver = "echo"
engine.models = ["echo"]
"""
            for name, provider, usd in LANES
        )
    )
    return path
