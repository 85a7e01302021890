"""Servers of a test's own: those of infra.servers. Where a program isn't installed the test skips and says which.

With BROKER_REQUIRE_SERVICES=1 it fails instead, so that CI can't pass by skipping.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from infra.servers import process
from infra.servers.process import PrivateServer, ServerMissing, free_port

__all__ = ["InTests", "PrivateServer", "find_program", "free_port"]


@contextmanager
def _or_skip() -> Iterator[None]:
    try:
        yield
    except ServerMissing as error:
        if os.environ.get("BROKER_REQUIRE_SERVICES") == "1":
            pytest.fail(f"BROKER_REQUIRE_SERVICES=1, but {error}", pytrace=False)
        pytest.skip(str(error))


def find_program(service: str, names: Sequence[str], folders: Sequence[str] = ()) -> str:
    with _or_skip():
        return process.find_program(service, names, folders)


class InTests:
    """Before a server in a class's bases: without the server's program the test skips."""

    def __init__(self, *settings: object) -> None:
        with _or_skip():
            super().__init__(*settings)
