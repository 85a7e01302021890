"""Secrets on disk: made once, however many processes make them at the same time."""

from __future__ import annotations

import threading

from broker.api.server import load_or_create_token
from broker.keys import load_or_create_signer


def _at_once(make, times=16):
    made, ready = [], threading.Barrier(times)

    def run():
        ready.wait()
        made.append(make())

    threads = [threading.Thread(target=run) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


def test_all_who_make_a_key_at_once_have_the_same_one(tmp_path):
    ids = {signer.key_id for signer, _ in _at_once(lambda: load_or_create_signer(tmp_path, "broker"))}
    assert len(ids) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["broker.key"]
    assert (tmp_path / "broker.key").stat().st_mode & 0o777 == 0o600


def test_all_who_make_a_token_at_once_have_the_same_one(tmp_path):
    assert len(set(_at_once(lambda: load_or_create_token(tmp_path)))) == 1
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
