"""`python -m tests.services COMMAND ...`: the command, with PostgreSQL, RabbitMQ and Redis for its tests.

A server that answers where the tests look for it is used as it is. Where none does, or it won't have us, one of our
own is started from the installed program, for as long as the command runs, and named to the tests. Exits with the
command's code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

from tests.services.private_postgres import PrivatePostgres
from tests.services.private_rabbit import PrivateRabbit
from tests.services.private_redis import PrivateRedis
from tests.services.probing import SHARED, Absent

OUR_OWN = {"postgres": PrivatePostgres, "rabbitmq": PrivateRabbit, "redis": PrivateRedis}


def main(command: list[str]) -> int:
    if not command:
        sys.stderr.write(f"name a command\n{__doc__}")
        return 2
    environment = dict(os.environ)
    with ExitStack() as servers:
        for kind, shared in SHARED.items():
            try:
                shared.url()
            except Absent as absent:
                if shared.variable in environment:
                    sys.stderr.write(f"{absent}\n")
                    return 1
                environment[shared.variable] = servers.enter_context(OUR_OWN[kind]()).url
                sys.stderr.write(f"== started {shared.name} for the tests\n")
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
