"""What one would write without us: a file's bodies over so many connections of plain asyncio, and nothing kept.

python -m tests.bench.direct_driver FILE PORT CONNECTIONS
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

__all__ = ["bodies_of", "run_direct"]


class _Line(msgspec.Struct):
    body: msgspec.Raw


_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


def bodies_of(file: Path) -> Iterator[bytes]:
    """Those of a batch file, all read now."""
    return iter([bytes(msgspec.json.decode(line, type=_Line).body) for line in file.read_bytes().splitlines()])


async def run_direct(bodies: Iterator[bytes], port: int, connections: int) -> None:
    """Each connection takes the next body once it is free."""
    await asyncio.gather(*(_work(bodies, port) for _ in range(connections)))


async def _work(bodies: Iterator[bytes], port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        writer.write(_HEAD % len(body) + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in answer[:20]:
            raise SystemExit(f"the engine answered {answer[:40]!r}")
        await reader.readexactly(int(answer.partition(b"content-length:")[2].split(b"\r\n")[0]))
    writer.close()


if __name__ == "__main__":
    asyncio.run(run_direct(bodies_of(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])))
