"""`python -m infra.emulators.servicebus`: run the emulator until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.emulators.servicebus.admin.entries import READERS
from infra.emulators.servicebus.emulator import KEY, KEY_NAME, Options, RunningBus, connection_string, serve
from infra.emulators.servicebus.queues.description import QueueDescription, RefusedDescription
from infra.emulators.servicebus.queues.namespace import InvalidName, QueueExists
from infra.emulators.servicebus.tls import NoOpenssl
from infra.emulators.serving.program import log_to_stderr, run_until_stopped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.emulators.servicebus", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=5672, help="AMQP and HTTP, with and without TLS; 0 for any free port (%(default)s)")
    add("--tls-port", type=int, help="a second port that speaks the same; SDKs expect TLS on 5671")
    add("--admin-port", type=int, help="a third port that speaks the same")
    add("--control-port", type=int, help="faults, cuts, state and time as JSON over HTTP")
    add("--key", action="append", metavar="NAME=KEY", help=f"a shared access key ({KEY_NAME}={KEY}); may be repeated")
    add("--no-auth", action="store_true", help="let everybody in, whatever the token")
    add("--no-tls", action="store_true", help="make no certificate and refuse TLS")
    add("--cert", type=Path, help="certificate to use instead of one made by openssl")
    add("--key-file", type=Path, help="the certificate's private key")
    add("--tls-folder", type=Path, help="where to keep the made certificate; a temporary folder otherwise")
    add("--queue", action="append", default=[], metavar="NAME[,Field=value...]", help=_QUEUE_HELP)
    add("--config", type=Path, help="queues from a Config.json as Microsoft's emulator reads it")
    add("--auto-create", action="store_true", help="make a queue when a client attaches to a missing one")
    add("--strict", action="store_true", help="hold queues to the service's limits, such as locks of 5 s and more")
    add("--manual-clock", action="store_true", help="let time stand still but for POST /clock/advance")
    add("--journal", type=Path, help="keep messages in this file, so that kill -9 loses none")
    add("--idle-seconds", type=float, default=240.0, help="what clients are told before an idle connection is closed")
    add("--verbose", action="store_true", help="log connections that end badly")
    return parser


_QUEUE_HELP = "make this queue, with fields as in a QueueDescription (orders,LockDuration=PT5S,MaxDeliveryCount=3)"


def _queue(text: str) -> tuple[str, QueueDescription]:
    name, *settings = text.split(",")
    return name, _description(dict(setting.partition("=")[::2] for setting in settings))


def _description(settings: dict[str, str]) -> QueueDescription:
    fields: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in READERS:
            raise RefusedDescription(f"no queue has the field '{name}'; there are {', '.join(READERS)}")
        field, read = READERS[name]
        fields[field] = read(text)
    return QueueDescription(**fields)


def _config(path: Path) -> dict[str, QueueDescription]:
    """Queues of a Config.json; what it says of topics is refused."""
    queues = {}
    for namespace in json.loads(path.read_text())["UserConfig"]["Namespaces"]:
        if namespace.get("Topics"):
            raise RefusedDescription("the configuration has topics; this emulator has queues alone")
        for queue in namespace.get("Queues") or []:
            settings = {name: str(value) for name, value in (queue.get("Properties") or {}).items()}
            if any(settings.pop(name, "") for name in ("ForwardTo", "ForwardDeadLetteredMessagesTo")):
                raise RefusedDescription("the configuration forwards messages; this emulator doesn't")
            queues[queue["Name"]] = _description(settings)
    return queues


def _options(given: argparse.Namespace) -> Options:
    keys = dict(pair.partition("=")[::2] for pair in given.key or [f"{KEY_NAME}={KEY}"])
    queues = _config(given.config) if given.config else {}
    return Options(
        host=given.host,
        port=given.port,
        tls_port=given.tls_port,
        admin_port=given.admin_port,
        control_port=given.control_port,
        keys={} if given.no_auth else keys,
        tls=not given.no_tls,
        certificate=given.cert,
        private_key=given.key_file,
        journal=given.journal,
        queues={**queues, **dict(map(_queue, given.queue))},
        auto_create=given.auto_create,
        strict=given.strict,
        manual_clock=given.manual_clock,
        idle_seconds=given.idle_seconds,
    )


def _lines(running: RunningBus, options: Options) -> list[str]:
    lines = [f"Connection string: {connection_string(options, running.ports['main'])}"]
    if running.certificate is not None:
        lines.append(f"Certificate to trust for TLS: {running.certificate}")
    queues = [entry.queue.name for entry in running.service.namespace.entries()]
    return [*lines, f"Queues: {', '.join(queues) or 'none yet'}"]


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    log_to_stderr(verbose=given.verbose)
    try:
        options = _options(given)
        with tempfile.TemporaryDirectory(prefix="servicebus-emulator-") as folder:
            serving = serve(options, given.tls_folder or Path(folder))
            asyncio.run(run_until_stopped(serving, lambda running: _lines(running, options)))
    except (RefusedDescription, InvalidName, QueueExists, NoOpenssl, OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
