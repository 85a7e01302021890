"""The door is wired like any role: its address is taken first, and without one no web framework is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from broker.api.server import listen
from broker.bootstrap.data_folder import DATABASE_FILE
from broker.bootstrap.door import DoorTerms
from broker.bootstrap.embedded import Embedded
from broker.bootstrap.roles import Role
from broker.bootstrap.served import Served, ServedTerms
from broker.domain.errors import BrokerError
from broker.sdk.http import Client
from tests.flow.program import Program, request
from tests.unit.builders import a_lane

FRAMEWORK = {"litestar", "uvicorn", "uvloop"}


@pytest.fixture
def taken():
    socket = listen("127.0.0.1", 0)
    socket.listen()
    yield socket.getsockname()[1]
    socket.close()


def test_an_empty_host_is_refused_and_is_not_every_address():
    with pytest.raises(BrokerError, match=r"^can't listen on no address: name one with --host, "):
        listen("", 0)


def test_served_a_taken_port_is_said_before_the_database_is_asked(tmp_path, taken):
    nowhere = "postgresql://postgres@127.0.0.1:1/none"
    terms = ServedTerms(database_url=nowhere, data=tmp_path, roles=[Role.API], door=DoorTerms(port=taken))
    lane = a_lane(bus_url="redis://127.0.0.1:1/0")
    began = time.monotonic()
    with pytest.raises(BrokerError, match=r"^can't listen on 127.0.0.1:\d+: address already in use; "):
        Served(terms, [lane])
    assert time.monotonic() - began < 5


def test_embedded_a_taken_port_is_said_before_there_is_a_database_and_leaves_the_folder_to_others(tmp_path, taken):
    for _ in range(2):
        with pytest.raises(BrokerError, match=r"^can't listen on"):
            Embedded(tmp_path, [a_lane()], door=DoorTerms(port=taken))
    assert not (tmp_path / DATABASE_FILE).exists()
    Embedded(tmp_path, [a_lane()]).stop()


def test_embedded_with_a_door_listens_once_started_and_one_beside_it_without_does_not(tmp_path):
    lane = a_lane()
    with Embedded(tmp_path / "a", [lane], door=DoorTerms(port=0)) as one, Embedded(tmp_path / "b", [lane]) as two:
        one.start()
        two.start()
        assert one.url.startswith("http://127.0.0.1:")
        assert (two.url, (tmp_path / "b" / "url").exists()) == ("", False)
        with Client.of_folder(tmp_path / "a") as client:
            assert [each.name for each in client.lanes()] == [lane.name]
        assert one.failure is two.failure is None


def test_batch_run_loads_no_web_framework(tmp_path):
    program = Program(tmp_path)
    program.give([request(1)])
    code = (
        "import sys\n"
        "from broker.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end\n"
        "import json\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *program.command()], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran
    loaded = set(json.loads(ran.stdout.splitlines()[-1]))
    assert "sqlalchemy" in loaded
    assert not loaded & FRAMEWORK
