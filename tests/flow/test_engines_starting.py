"""An engine that isn't ready is a lane that starts: the other lanes serve, and it comes up by itself."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tests.flow.program import Program, custom_ids, kill_group, lane, lines_of, request, wait_until
from tests.harness.small_engine import SmallEngine
from tests.services.process import free_port


@pytest.fixture
def program(tmp_path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def engines():
    """Cheap and dear, both open."""
    made = [SmallEngine().open(), SmallEngine().open()]
    yield made
    for engine in made:
        engine.close()


def two_lanes(program, cheap_url, dear_url, **options):
    program.catalog.write_text(
        "".join(
            lane(name, provider, price=price, driver="openai_http", options={
                "base_url": url, "health_path": "/health", "use_proxy": False, **options
            })
            for name, provider, price, url in (
                ("cheap", "azure-gpu", "1.00", cheap_url), ("dear", "google-tpu", "3.00", dear_url)
            )
        )
    )  # fmt: skip


def test_a_server_that_is_out_holds_up_no_other(program, engines):
    _, dear = engines
    gone = f"http://127.0.0.1:{free_port()}"
    two_lanes(program, gone, dear.url)
    program.give(request(number) for number in range(12))
    ran = program.finish()
    assert f"Lane cheap is starting: the engine at {gone} can't be reached: Connection refused" in ran.said
    assert custom_ids(program.output) == [f"job-{number}" for number in range(12)]
    assert dear.served == 12
    assert {row["lane"] for row in program.ledger("lane")} == {"dear"}  # nothing was tried where nobody is
    assert ran.seconds < 20
    program.verify()


@pytest.mark.parametrize("health", [503, 404])
def test_a_run_waits_for_the_one_server_that_loads_its_model(program, engines, health):
    cheap, dear = engines
    cheap.health = dear.health = health
    two_lanes(program, cheap.url, dear.url)
    program.give(request(number) for number in range(8))
    threading.Timer(2.5, lambda: setattr(cheap, "health", 200)).start()
    ran = program.finish()
    assert f"isn't ready: its health check answers HTTP {health}" in ran.said
    assert "Lane cheap is ready." in ran.said
    assert len(lines_of(program.output)) == 8
    assert (cheap.calls, dear.calls) == (8, 0)
    assert cheap.looks >= 3  # it was asked again
    program.verify()


@pytest.mark.parametrize("health", [200, 503])
def test_what_no_waiting_mends_is_one_sentence_at_the_start(program, engines, health):
    engines[1].health = health
    two_lanes(program, engines[0].url, engines[1].url, api_key_variable="NO_SUCH_KEY")
    program.give([request(1)])
    ran = program.run()
    assert ran.code == 1
    assert "the environment variable NO_SUCH_KEY must hold its API key" in ran.sentence
    assert ran.seconds < 10


def test_up_comes_up_beside_an_engine_that_starts_and_says_when_it_is_ready(program, engines):
    cheap, dear = engines
    cheap.health = 503
    two_lanes(program, cheap.url, dear.url)
    said = []
    process = program.start("up", "--data", str(program.data), "--catalog", str(program.catalog), "--port", "0")
    threading.Thread(target=lambda: said.extend(process.stdout), daemon=True).start()
    try:
        wait_until(lambda: "Ready. Ctrl-C stops it.\n" in said, process, "it is ready")
        assert [line for line in said if line.startswith("Lane cheap is starting: ")]
        program.give(request(number) for number in range(4))
        words = ("batch", "create", str(program.prompts), "--data", str(program.data))
        done = program.broker(*words, "--wait", "--output", str(program.output))
        assert (done.code, dear.served, cheap.calls) == (0, 4, 0), done
        cheap.health = 200
        wait_until(lambda: "Lane cheap is ready.\n" in said, process, "cheap is ready")
        again = ("--lanes", "cheap", "--wait", "--output", "again.jsonl")
        done = program.broker(*words, *again)
        assert (done.code, cheap.served) == (0, 4), done
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        kill_group(process)


def test_up_stops_at_once_while_its_only_engine_is_away(program):
    silent = SmallEngine(health=503).open()
    try:
        two_lanes(program, silent.url, silent.url)
        process = program.start("up", "--data", str(program.data), "--catalog", str(program.catalog), "--port", "0")
        wait_until(lambda: silent.looks >= 3, process, "it was asked twice")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
    finally:
        kill_group(process)
        silent.close()
