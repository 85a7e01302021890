"""The `broker` command with names that resolve only once a file is there; nothing of the product knows of that.

NAMES_FOLDER is a folder of the test's. A host that ends in `.sick.test` is 127.0.0.1 once the folder has a file of its
name; until then, as from a resolver that doesn't know it, there is no such host. All other names are the system's.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

__all__ = ["NAMES_FOLDER"]

NAMES_FOLDER = "HARNESS_NAMES_FOLDER"


def main() -> None:
    """As the console script does, with `sys.argv` as given."""
    folder = Path(os.environ[NAMES_FOLDER])
    resolve = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if not isinstance(name, str) or not name.endswith(".sick.test"):
            return resolve(host, *arguments, **named)
        if not (folder / name).exists():
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve("127.0.0.1", *arguments, **named)

    socket.getaddrinfo = look_up
    from broker.cli import main as run

    run()
