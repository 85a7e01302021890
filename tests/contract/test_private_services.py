"""What the private servers promise: they keep their data over a kill, freeze, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import kombu
import psycopg
import pytest
import redis

from tests.services.private_postgres import PrivatePostgres
from tests.services.private_rabbit import PrivateRabbit
from tests.services.private_redis import PrivateRedis
from tests.services.process import find_program


def test_redis_keeps_what_it_confirmed_over_a_kill_and_freezes():
    with PrivateRedis() as server:
        client = redis.Redis.from_url(server.url, socket_timeout=0.3)
        client.set("kept", "1")
        server.kill()
        assert not server.answers()
        server.start()
        assert client.get("kept") == b"1"
        server.pause()
        with pytest.raises(redis.exceptions.TimeoutError):
            client.get("kept")
        server.resume()
        assert client.get("kept") == b"1"
    assert not server.folder.exists()
    assert not server.answers()


def test_postgres_keeps_what_it_committed_over_every_kind_of_end():
    with PrivatePostgres() as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (n int)")
        for number, end in enumerate((server.kill, server.stop_immediately, server.stop)):
            with psycopg.connect(server.url) as connection:
                connection.execute("INSERT INTO kept VALUES (%s)", [number])
            end()
            assert not server.answers()
            server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (3,)
    assert not server.folder.exists()


@pytest.mark.slow
def test_rabbit_keeps_durable_messages_over_a_kill_and_loses_all_with_its_virtual_host():
    with PrivateRabbit() as server:
        assert "kept" not in server.control("list_queues", "name")
        with kombu.Connection(server.url, transport_options={"confirm_publish": True}) as connection:
            connection.SimpleQueue("kept").put("1")
        server.kill()
        assert not server.answers()
        server.start()
        with kombu.Connection(server.url) as connection:
            assert connection.SimpleQueue("kept").get(timeout=5).payload == "1"
        server.recreate_vhost()
        assert "kept" not in server.control("list_queues", "name")
    assert not server.folder.exists()


@pytest.mark.parametrize(("required", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_program_fails_only_where_services_are_required(monkeypatch, required, outcome):
    monkeypatch.setenv("BROKER_REQUIRE_SERVICES", required)
    with pytest.raises(outcome, match="no Redis to start: redis-nowhere is not installed"):
        find_program("Redis", ["redis-nowhere"])


def test_a_server_ends_with_the_test_that_is_killed():
    code = "from tests.services.private_redis import *; s = PrivateRedis(); s.start(); print(s.port, s.folder); input()"
    command = [sys.executable, "-uc", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as test:
        port, folder = test.stdout.readline().split()
        redis.Redis(port=int(port)).ping()
        test.kill()
    deadline = time.monotonic() + 10
    while Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(redis.exceptions.ConnectionError):
        redis.Redis(port=int(port)).ping()
