"""`python -m infra.emulators.ociqueue`: run the emulator until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.emulators.ociqueue.emulator import COMPARTMENT, Options, serve
from infra.emulators.ociqueue.limits import Limits
from infra.emulators.ociqueue.queues import Description
from infra.emulators.ociqueue.refusals import Refusal
from infra.emulators.ociqueue.service import Service
from infra.emulators.ociqueue.signatures import PublicKey, public_key
from infra.emulators.serving.hosting import Running
from infra.emulators.serving.program import log_to_stderr, run_until_stopped

QUEUE_FIELDS = {
    "retention": "retention_seconds",
    "visibility": "visibility_seconds",
    "timeout": "timeout_seconds",
    "deliveries": "delivery_count",
}


def _parser() -> argparse.ArgumentParser:
    limits = Limits()
    parser = argparse.ArgumentParser(prog="python -m infra.emulators.ociqueue", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8095, help="both APIs over HTTP; 0 for any free port (%(default)s)")
    add("--control-port", type=int, help="faults, cuts, state and time as JSON over HTTP")
    add("--compartment", default=COMPARTMENT, help="where --queue makes queues (%(default)s)")
    add("--queue", action="append", default=[], metavar="NAME[,field=value...]", help=_QUEUE_HELP)
    add("--key", action="append", default=[], metavar="KEY_ID=PEM_FILE", help="verify signatures by this public key")
    add("--no-auth", action="store_true", help="let everybody in, signed or not")
    add("--work-seconds", type=float, default=0.0, help="how long making or deleting a queue takes (%(default)s)")
    add("--journal", type=Path, help="keep messages in this file, so that kill -9 loses none")
    add("--manual-clock", action="store_true", help="let time stand still but for POST /clock/advance")
    add("--message-bytes", type=int, default=limits.message_bytes, help="the largest message (%(default)s)")
    add("--queue-bytes", type=int, default=limits.queue_bytes, help="what a queue holds (%(default)s)")
    add("--queues", type=int, help="how many queues there may be; the service grants 10")
    add("--verbose", action="store_true", help="log connections that end badly")
    return parser


_QUEUE_HELP = f"make this queue; fields are {', '.join(QUEUE_FIELDS)}, in seconds (orders,visibility=5,deliveries=3)"


def _queue(text: str, compartment: str) -> Description:
    name, *settings = text.split(",")
    given: dict[str, Any] = {}
    for setting in settings:
        field, _, value = setting.partition("=")
        if field not in QUEUE_FIELDS:
            raise ValueError(f"no queue has the field '{field}'; there are {', '.join(QUEUE_FIELDS)}")
        given[QUEUE_FIELDS[field]] = int(value)
    return Description(display_name=name, compartment_id=compartment, **given)


def _key(text: str) -> tuple[str, PublicKey]:
    key_id, _, path = text.partition("=")
    return key_id, public_key(Path(path).read_text())


def _options(given: argparse.Namespace) -> Options:
    limits = Limits(message_bytes=given.message_bytes, queue_bytes=given.queue_bytes, queues=given.queues)
    return Options(
        host=given.host,
        port=given.port,
        control_port=given.control_port,
        keys=dict(map(_key, given.key)),
        authenticates=not given.no_auth,
        journal=given.journal,
        queues=tuple(_queue(text, given.compartment) for text in given.queue),
        limits=limits,
        manual_clock=given.manual_clock,
        work_seconds=given.work_seconds,
    )


def _lines(running: Running[Service], host: str) -> list[str]:
    service = running.service
    queues = [
        f"{queue.description.display_name} {queue.ocid}" for queue in service.queues.listed(service.clock.now_ms())
    ]
    return [f"Endpoint: http://{host}:{running.ports['main']}", f"Queues: {', '.join(queues) or 'none yet'}"]


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    log_to_stderr(verbose=given.verbose)
    try:
        options = _options(given)
        asyncio.run(run_until_stopped(serve(options), lambda running: _lines(running, options.host)))
    except (Refusal, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
