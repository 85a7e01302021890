"""The served form under test: services, roles and workers of its own, each a process that comes back when it dies."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec
import psycopg

from broker.api.server import load_or_create_token
from broker.bootstrap.roles import Role
from broker.domain.errors import BrokerError
from broker.sdk.http import Client
from tests.flow.forkserver import run
from tests.flow.program import ROOT, lane
from tests.harness.balancer import Balancer
from tests.harness.buses import BUSES
from tests.harness.small_disk import SmallDisk
from tests.harness.supervised import Supervised
from tests.proxy import FaultProxy
from tests.services.private_postgres import PrivatePostgres
from tests.services.process import free_port

__all__ = ["ALL_IN_ONE", "IN_PAIRS", "ONE_EACH", "RECORDER_APART", "LaneTerms", "Layout", "Stand", "StandTerms"]

Layout = Sequence[Sequence[Role]]

ALL_IN_ONE: Layout = (tuple(Role),)
_REST = tuple(role for role in Role if role is not Role.API)
IN_PAIRS: Layout = ((Role.API,), (Role.API,), _REST, _REST)
"""Two doors, and two processes of all else, one of which stands by."""
ONE_EACH: Layout = tuple((role,) for role in (*Role, Role.API, Role.DISPATCHER, Role.RECORDER, Role.RESCUER))
"""One process for each role, and a second one of those whose absence is felt soonest."""

_BROKER = "broker.cli"

RECORDER_APART: Layout = ((Role.API,), tuple(role for role in _REST if role is not Role.RECORDER), (Role.RECORDER,))

_POSTGRES_SETTINGS = {"max_connections": "300"}
"""Sixteen processes of one role each have more than the hundred that are allowed by default."""

_START_SECONDS = 60.0
_WORKERS_SECONDS = 60.0


class LaneTerms(msgspec.Struct, frozen=True, kw_only=True):
    """A lane of echo engines, each call `delay_seconds` long, and how many worker processes serve it.

    And longer by `delay_seconds_per_word`. With `delay_can_change`, until `Stand.set_delay` says otherwise.
    """

    name: str
    provider: str = "google-tpu"
    price: str = "1.20"
    workers: int = 1
    slots: int = 2
    concurrency: int = 16
    delay_seconds: float = 0.1
    delay_seconds_per_word: float = 0.0
    delay_can_change: bool = False
    shard_jobs_max: int = 32
    jobs_per_second: float = 100.0
    shard_seconds: float = 5.0


class StandTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`bus` is one of `BUSES`. `serve` is the module and words that run as `broker serve` of a role, in its place.

    `database_disk_megabytes`: where it is above 0, the database has a disk of that size to itself, `Stand.disk`.
    `variables` are added to the environment of all roles and workers. `shares` are the catalog's limits on providers.
    """

    lanes: Sequence[LaneTerms]
    layout: Layout = IN_PAIRS
    bus: str = "amqp"
    database_proxied: bool = False
    bus_proxied: bool = False
    door_proxied: bool = False
    serve: Mapping[Role, Sequence[str]] = {}
    database_disk_megabytes: int = 0
    variables: Mapping[str, str] = {}
    drain_seconds: float = 8.0
    shares: Mapping[str, float] = {}


class Stand:
    """Up between entering and leaving; nothing of it is left behind. With `keep` its folder is, for who asks why."""

    def __init__(self, terms: StandTerms, *, keep: bool = False) -> None:
        self.terms = terms
        self.folder = Path(tempfile.mkdtemp(prefix="served-"))
        self.data = self.folder / "data"
        self.call_log = self.folder / "calls"
        self.roles: list[Supervised] = []
        self.workers: list[Supervised] = []
        self.proxies: dict[str, FaultProxy] = {}
        self.disk: SmallDisk | None = None
        self.bus_kind = BUSES[terms.bus]
        self._keep = keep
        self._catalog = self.folder / "lanes.toml"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._enter()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for one in (*self.workers, *self.roles):
            one.retire(0.0)
        self._stack.close()
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    # What may be done to it.

    def workers_of(self, lane_name: str) -> list[Supervised]:
        return [one for one in self.workers if one.name.startswith(f"worker-{lane_name}-")]

    def everything(self) -> list[Supervised]:
        return [*self.roles, *self.workers]

    def client(self) -> Client:
        token = (self.data / "token").read_text().strip()
        return Client(f"http://127.0.0.1:{self._door_port}", token)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows, past every proxy."""
        with psycopg.connect(self.postgres.url) as connection:
            return connection.execute(statement, parameters or None).fetchall()

    def one(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        return int(self.query(statement, parameters)[0][0] or 0)

    def calls(self) -> list[str]:
        """The job of each call that any engine was given, in hexadecimal."""
        return self.call_log.read_text().split() if self.call_log.exists() else []

    def broker(self, *words: str) -> str:
        """What a command says, run beside the services."""
        names = {"BUS_PORT": str(self.bus.port), "BROKER_CATALOG": str(self._catalog)}
        done = run(words, cwd=self.folder, env=self._clean_environment() | names)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def set_delay(self, lane_name: str, seconds: float) -> None:
        """From now on each call of this lane's engines takes so long."""
        draft = self._delay_file(lane_name).with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(self._delay_file(lane_name))

    def _delay_file(self, lane_name: str) -> Path:
        return self.folder / f"{lane_name}.delay"

    def worker_process(self, pid: int) -> str:
        """What the worker ids of this process begin with."""
        return f"{os.uname().nodename[:64]}-{pid}-"

    def wait_for_workers(self, count: int | None = None, seconds: float = _WORKERS_SECONDS) -> None:
        """Until so many have said that they are there, all if none is named."""
        wanted = len(self.workers) if count is None else count
        deadline = time.monotonic() + seconds
        while True:
            pids = {f"-{one.pid}-" for one in self.workers if one.pid is not None}
            names = [name for (name,) in self.query("SELECT worker_id FROM worker WHERE left_us IS NULL")]
            here = sum(any(pid in name for pid in pids) for name in names)
            if here >= wanted:
                return
            if time.monotonic() > deadline:
                tails = "\n".join(one.tail() for one in self.workers)
                raise AssertionError(f"{here} of {wanted} workers came up within {seconds:g} s:\n{tails}")
            time.sleep(0.1)

    # How it comes up.

    def _enter(self) -> None:
        self.postgres = self._new_postgres()
        self.bus = self.bus_kind.new()
        self._stack.callback(self.postgres.remove)
        self._stack.callback(self.bus.remove)
        self._write_catalog()
        with ThreadPoolExecutor() as at_once:
            bus = at_once.submit(self.bus.start)
            self.postgres.start()
            self.broker("db", "upgrade", "--database-url", self.postgres.url)
            first, *others = [one.name for one in self.terms.lanes]
            self._make_key(first)  # alone, for it makes the broker's own key
            for done in [at_once.submit(self._make_key, name) for name in others]:
                done.result()
            bus.result()
        if self.bus_kind.needs_apply:
            self.broker("bus", "apply")
        served_url = self.postgres.url
        if self.terms.database_proxied:
            served_url = self._proxy("database", self.postgres.port).url_of(served_url)
        bus_port = self.bus.port
        if self.terms.bus_proxied:
            bus_port = self._proxy("bus", self.bus.port).port
        self._environment = self._clean_environment() | {"BUS_PORT": str(bus_port), **self.terms.variables}
        ports: list[int] = []
        load_or_create_token(self.data)  # before two doors would make one each
        for number, roles in enumerate(self.terms.layout):
            if Role.API in roles:
                ports.append(free_port())
            self.roles.append(self._role(number, roles, served_url, ports[-1:]))
        self._door_port = self._stack.enter_context(Balancer(ports)).port
        self._wait_for_door()
        for one in self.terms.lanes:
            self.workers += [self._worker(one.name, number) for number in range(one.workers)]
        for worker in self.workers:
            worker.start()
        self.wait_for_workers()

    def _make_key(self, lane_name: str) -> None:
        self.broker("keys", "lane", "create", lane_name, "--to", str(self.folder), *self._database(self.postgres.url))

    def _new_postgres(self) -> PrivatePostgres:
        if not self.terms.database_disk_megabytes:
            return PrivatePostgres(_POSTGRES_SETTINGS)
        self.disk = self._stack.enter_context(SmallDisk(self.terms.database_disk_megabytes))
        with self.disk.holding_temporary_files():
            return PrivatePostgres({**_POSTGRES_SETTINGS, "max_wal_size": "64MB", "min_wal_size": "32MB"})

    def _write_catalog(self) -> None:
        bus_url = self.bus_kind.catalog_url(self.bus)
        texts = ["[shares]", *(f'"{name}" = {share}' for name, share in self.terms.shares.items())]
        for one in self.terms.lanes:
            fields = {
                "slots": one.slots,
                "jobs_per_second": one.jobs_per_second,
                "shard_jobs_max": one.shard_jobs_max,
                "shard_seconds": one.shard_seconds,
                "bus_url": bus_url,
                "price": one.price,
            }
            options = {
                "delay_seconds": one.delay_seconds,
                "delay_seconds_per_word": one.delay_seconds_per_word,
                "call_log": str(self.call_log),
            }
            if one.delay_can_change:
                self.set_delay(one.name, one.delay_seconds)
                options["delay_file"] = str(self._delay_file(one.name))
            texts.append(lane(one.name, one.provider, options=options, concurrency=one.concurrency, **fields))
        self._catalog.write_text("\n".join(texts))

    def _role(self, number: int, roles: Sequence[Role], database_url: str, ports: Sequence[int]) -> Supervised:
        program = next((self.terms.serve[role] for role in roles if role in self.terms.serve), (_BROKER, "serve"))
        words = [*program, *roles, *self._database(database_url)]
        drain = ["--drain-seconds", str(self.terms.drain_seconds), "--log-level", "info"]
        port = ["--port", str(ports[-1])] if Role.API in roles else []
        short = roles[0] if len(roles) == 1 else f"{len(roles)}-roles"
        role = Supervised(f"serve-{number}-{short}", [*words, *drain, *port], self._environment, self.folder)
        role.start()
        return role

    def _worker(self, lane_name: str, number: int) -> Supervised:
        port = self._door_port
        if self.terms.door_proxied:
            port = (self.proxies.get("door") or self._proxy("door", port)).port
        keys = ["--key", str(self.folder / f"lane-{lane_name}.key"), "--trusted", str(self.folder / "broker.pub")]
        command = [_BROKER, "worker", "--lane", lane_name, "--catalog", str(self._catalog), *keys]
        terms = ["--url", f"http://127.0.0.1:{port}", "--drain-seconds", str(self.terms.drain_seconds)]
        return Supervised(f"worker-{lane_name}-{number}", [*command, *terms], self._environment, self.folder)

    def _proxy(self, name: str, port: int) -> FaultProxy:
        self.proxies[name] = self._stack.enter_context(FaultProxy("127.0.0.1", port))
        return self.proxies[name]

    def _database(self, url: str) -> Iterator[str]:
        yield from ("--database-url", url, "--data", str(self.data), "--catalog", str(self._catalog))

    def _clean_environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        return ours | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def _wait_for_door(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                with self.client() as client:
                    client.lanes()
                break
            except (BrokerError, OSError):
                tails = "\n".join(one.tail() for one in self.roles)
                assert time.monotonic() < deadline, f"the door did not open within {_START_SECONDS:g} s:\n{tails}"
                time.sleep(0.1)
