"""A PostgreSQL of one's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg

from infra.servers.process import PrivateServer, ServerFailed, find_program, free_port

__all__ = ["PrivatePostgres"]

FOLDERS = tuple(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)))


class PrivatePostgres(PrivateServer):
    """A cluster with fsync on, trusting who comes over loopback; its database is `test`.

    PostgreSQL refuses to run as root, so root runs it as the user `postgres`. `settings` are further
    settings of the server, such as `{"max_connections": "20"}`.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": sessions are ended, what was committed is kept

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._program = find_program("PostgreSQL", ["postgres"], FOLDERS)
        initialise = find_program("PostgreSQL", ["initdb"], FOLDERS)
        super().__init__()
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/test"
        self._admin_url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._settings = settings or {}
        if os.geteuid() == 0:
            self.user = "postgres"
            shutil.chown(self.folder, self.user, self.user)
        command = [initialise, "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        made = subprocess.run(
            [*command, "--locale=C"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            user=self.user,
            group=self.user,
        )
        if made.returncode != 0:
            self.remove()
            raise ServerFailed(f"initdb failed:\n{made.stderr}")

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "on",
            "shared_buffers": "32MB",
            **self._settings,
        }
        return [self._program, "-D", str(self._data), *(f"--{name}={value}" for name, value in settings.items())]

    def start(self) -> None:
        super().start()
        with psycopg.connect(self._admin_url, autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = 'test'").fetchone() is None:
                connection.execute("CREATE DATABASE test")

    def stop_immediately(self) -> None:
        """What `pg_ctl stop -m immediate` does: no checkpoint, so that the next start recovers from its log."""
        if self.process is None:
            raise ServerFailed("private postgres does not run")
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(15)
        self.process = None

    def answers(self) -> bool:
        try:
            psycopg.connect(self._admin_url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def _data(self) -> str:
        return str(self.folder / "data")
