"""Microsoft's Node client, `@azure/service-bus`, against the emulator as a program."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.emulators.servicebus.test_process import program
from tests.services.process import find_program

HERE = Path(__file__).parent / "node"
ROOT = Path(__file__).parents[3]
STORIES = {
    "story.js": "administration send settle schedule dead large subscribe",
    "stranger.js": "properties amqp peek batches locks maximum schedule iterator renewal errors listing",
}


@pytest.fixture(scope="session")
def node_modules():
    """The client as the lock file pins it, kept under build/ from run to run."""
    find_program("Node.js", ["node"])
    npm = find_program("Node.js", ["npm"])
    lock = (HERE / "package-lock.json").read_bytes()
    folder = ROOT / "build" / "node" / hashlib.sha256(lock).hexdigest()[:16]
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0 and os.environ.get("BROKER_REQUIRE_SERVICES") != "1":
            pytest.skip(f"`npm ci` could not install the client: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr
        (folder / "complete").touch()
    return folder / "node_modules"


@pytest.mark.parametrize("script", STORIES)
def test_microsofts_node_client(node_modules, tmp_path, script):
    with program("--tls-folder", tmp_path) as (_, said):
        shutil.copy(HERE / script, tmp_path)
        (tmp_path / "node_modules").symlink_to(node_modules)
        trust = {**os.environ, "NODE_EXTRA_CA_CERTS": str(tmp_path / "cert.pem")}
        command = ["node", str(tmp_path / script), said["Connection string"]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=trust, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == STORIES[script].split()
