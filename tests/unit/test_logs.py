"""What a log keeps of what went wrong: when, what kind it was, and words that can't be anybody's prompt."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from broker.domain.errors import BrokerError, UsageError, named

SAYING = """
import logging, pathlib, sys, structlog
from broker.logs import log_to_file
log_to_file(pathlib.Path(sys.argv[1]), "info")
structlog.get_logger("ours").warning("lane_not_reached", lane="tpu")
logging.getLogger("kombu").warning("the connection is gone: %s", "amqp")
try:
    raise ValueError("odd")
except ValueError:
    logging.getLogger("celery").exception("it broke")
"""


def test_every_line_has_its_time_whoever_wrote_it(tmp_path):
    path = tmp_path / "broker.log"
    subprocess.run([sys.executable, "-c", SAYING, str(path)], check=True, timeout=60)
    ours, kombu, celery = map(json.loads, path.read_text().splitlines())
    assert (ours["lane"], kombu["event"], celery["level"]) == ("tpu", "the connection is gone: amqp", "error")
    assert ours["timestamp"] <= kombu["timestamp"] <= celery["timestamp"]
    assert all(line["timestamp"].endswith("Z") for line in (ours, kombu, celery))
    assert "ValueError: odd" in celery["exception"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokerError("the bus at amqp://… is full"), "BrokerError: the bus at amqp://… is full"),
        (UsageError("no such lane"), "UsageError: no such lane"),
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: Connection refused"),
        (OSError("whatever it held"), "OSError"),
        (ValueError("tell me a secret"), "ValueError"),
        (msgspec.ValidationError("got `tell me a secret`"), "ValidationError"),
    ],
)
def test_an_errors_words_are_kept_where_they_are_ours_or_the_systems(error, said):
    assert named(error) == said
