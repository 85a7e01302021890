"""What is no URL of a broker is one sentence, at once: a worker would else ask it for ever."""

from __future__ import annotations

import os

import pytest

from broker import Client
from broker.domain.errors import UsageError
from tests.flow.forkserver import run

SAID = "is not the URL of a broker, such as http://127.0.0.1:8470"


@pytest.mark.parametrize("url", ["nonsense", "http://[::1", "http://127.0.0.1:x", "127.0.0.1:8470"])
def test_a_client_says_so(url):
    with pytest.raises(UsageError, match=SAID):
        Client(url, "token").lanes()


@pytest.mark.parametrize("url", ["nonsense", "http://[::1", "http://127.0.0.1:x", "ftp://127.0.0.1"])
def test_a_worker_says_so(url, tmp_path):
    done = run(["worker", "--lane", "google-tpu-v5e", "--url", url], cwd=tmp_path, env=os.environ)
    assert (done.returncode, done.stderr) == (2, f"error: {url!r} {SAID}\n")
