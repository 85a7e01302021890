"""A RabbitMQ of a test's own."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

import kombu

from tests.services.process import PrivateServer, find_program, free_port

__all__ = ["PrivateRabbit"]

# Debian's /usr/sbin wrapper would change the user, and with it the cookie, to those of the system's own server.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin")


class PrivateRabbit(PrivateServer):
    """A node with its own name, cookie, port mapper, ports and data; on loopback alone.

    `settings` are further lines of rabbitmq.conf, such as `{"consumer_timeout": "5000"}`.
    """

    name = "rabbit"

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._program = find_program("RabbitMQ", ["rabbitmq-server"], FOLDERS)
        self._control = find_program("RabbitMQ", ["rabbitmqctl"], FOLDERS)
        self._mapper_program = find_program("Erlang", ["epmd"])
        super().__init__()
        self.port, self._distribution_port, self._mapper_port = free_port(), free_port(), free_port()
        self.node = f"private-{uuid.uuid4().hex[:8]}@localhost"
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._mapper: subprocess.Popen[bytes] | None = None
        self._write_settings(settings or {})

    def command(self) -> list[str]:
        return [self._program]

    def environment(self) -> Mapping[str, str]:
        data = self.folder / "data"
        return {
            "HOME": str(self.folder),  # Erlang's cookie is made there
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(data),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1",
        }

    def start(self) -> None:
        if self._mapper is None:
            # Started here, or Erlang would leave one behind as a daemon that nobody owns.
            command = [self._mapper_program, "-port", str(self._mapper_port), "-address", "127.0.0.1"]
            self._mapper = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            self.note_process(self._mapper.pid)
        super().start()

    def answers(self) -> bool:
        connection = kombu.Connection(self.url, connect_timeout=2)
        try:
            connection.connect()
            connection.release()
        except (OSError, *connection.connection_errors, *connection.channel_errors):
            return False
        return True

    def remove(self) -> None:
        super().remove()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()
            self._mapper = None

    def control(self, *arguments: str) -> str:
        """What `rabbitmqctl` says to these arguments; a refusal raises with its text."""
        environment = {**os.environ, **self.environment()}
        command = [self._control, "--quiet", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def recreate_vhost(self, name: str = "/") -> None:
        """Delete the virtual host with all its queues, and make it anew, empty."""
        self.control("delete_vhost", name)
        self.control("add_vhost", name)
        self.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")

    def _write_settings(self, settings: Mapping[str, str]) -> None:
        lines = {
            "listeners.tcp.local": f"127.0.0.1:{self.port}",
            "vm_memory_high_watermark.absolute": "256MB",
            "disk_free_limit.absolute": "10MB",
            # Quorum queues hold what is in the log in memory; by default 512 MB, which the limit above never lets fill.
            "raft.wal_max_size_bytes": str(32 * 1024 * 1024),
            "log.console": "false",
            "log.file.level": "info",
            "collect_statistics_interval": "1000",
            **settings,
        }
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        Path(self.folder, "rabbitmq.conf").write_text(text)
        Path(self.folder, "enabled_plugins").write_text("[].\n")
        Path(self.folder, "log").mkdir()
