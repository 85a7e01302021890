"""A disk of the test's own that can be filled to the last byte, and given room again."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

__all__ = ["SmallDisk"]

_BLOCK_BYTES = 1 << 16


class SmallDisk:
    """A tmpfs of so many megabytes at `path`, gone at the end. It takes root and the right to mount."""

    def __init__(self, megabytes: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="disk-"))
        self.path.chmod(0o755)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(self.path)]
        if os.geteuid() or subprocess.run(command, check=False).returncode:
            self.path.rmdir()
            pytest.skip("a small file system of its own needs root and the right to mount")
        self._ballast = self.path / "ballast"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False)
        self.path.rmdir()

    @contextmanager
    def holding_temporary_files(self) -> Iterator[None]:
        """What is made in here with `tempfile` is made on it."""
        before, tempfile.tempdir = tempfile.tempdir, str(self.path)
        try:
            yield
        finally:
            tempfile.tempdir = before

    def fill(self) -> int:
        """Take all room there is; how many bytes that was."""
        written = 0
        with self._ballast.open("ab", buffering=0) as file:
            for size in (_BLOCK_BYTES, 512):
                try:
                    while True:
                        written += file.write(bytes(size)) or 0
                except OSError:
                    continue
        return written

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink(missing_ok=True)
