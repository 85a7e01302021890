from __future__ import annotations

import errno
import os
import queue
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from broker.bootstrap.data_folder import DATABASE_FILE
from broker.database.connection import bulk_insert
from broker.database.drivers.sqlite import log_syncing
from broker.database.drivers.sqlite.database import SqliteDatabase, lock_folder, open_read_only
from broker.database.failures import is_disk_full
from broker.database.migrating import upgrade
from broker.database.tables import ready, tenant
from broker.domain.errors import BrokerError, UsageError
from broker.keys import load_or_create_signer, public_bytes
from tests.unit.builders import a_span


def _add(name):
    return lambda connection: connection.execute(insert(tenant).values(tenant_id=name, created_us=1)) and name


def _names(connection):
    return set(connection.execute(select(tenant.c.tenant_id)).scalars())


def _gather(database, works):
    """Hold the writer until all of these wait, so that they share one commit; what became of each."""
    gate, waiting = threading.Event(), threading.Event()

    def hold(_connection):
        waiting.set()
        gate.wait(5)

    found = {}

    def write(place, work):
        try:
            found[place] = database.write(work)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is what the test looks at)
            found[place] = error

    holder = threading.Thread(target=database.write, args=[hold])
    holder.start()
    assert waiting.wait(5)
    threads = [threading.Thread(target=write, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    while database._pending.qsize() < len(works):
        threading.Event().wait(0.001)
    gate.set()
    for thread in [holder, *threads]:
        thread.join(5)
    return [found[place] for place in range(len(works))]


def _fail(_connection):
    raise ValueError("no")


def test_one_failing_unit_of_work_takes_nothing_with_it(database):
    def add_then_fail(connection):
        _add("half")(connection)
        raise KeyError("half-way")

    one, failed, doubled, two = _gather(database, [_add("one"), add_then_fail, _add("one"), _add("two")])
    assert {one, two, type(failed), type(doubled)} >= {"two", KeyError}
    assert {type(one), type(doubled)} == {str, IntegrityError}  # whichever of the two was first
    assert database.read(_names) == {"one", "two"}


def test_a_unit_of_work_alone_is_all_or_nothing(database):
    def add_then_fail(connection):
        _add("half")(connection)
        _fail(connection)

    with pytest.raises(ValueError, match="no"):
        database.write(add_then_fail)
    assert database.read(_names) == set()
    assert database.write(_add("next")) == "next"
    assert database.read(_names) == {"next"}


def test_what_gathers_shares_few_commits_and_each_caller_gets_its_own_value(database):
    commits = []
    works = [lambda connection, number=number: (_add(f"t{number}")(connection), number)[1] for number in range(50)]
    original = database.engine.dialect.do_commit
    database.engine.dialect.do_commit = lambda connection: (commits.append(1), original(connection))
    assert _gather(database, works) == list(range(50))
    assert len(commits) == 2  # the one that held them, and theirs
    assert len(database.read(_names)) == 50


def test_a_commit_that_fails_is_its_own_callers_matter_and_the_next_ones_go_on(database):
    def break_commit(connection):
        connection.execute(text("PRAGMA defer_foreign_keys=ON"))
        of_no_group = a_span(group_id=b"?" * 16)
        bulk_insert(connection, ready, [msgspec.structs.astuple(of_no_group)])

    found = _gather(database, [_add("one"), break_commit])
    assert {type(one) for one in found} == {str, IntegrityError}
    with pytest.raises(IntegrityError):
        database.write(break_commit)
    assert database.write(_add("next")) == "next"
    assert database.read(_names) == {"one", "next"}


def test_a_full_disk_is_known_as_one_and_passes(database):
    def fill(connection):
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count={pages}"))
        connection.execute(insert(tenant), [{"tenant_id": f"{n:064}", "created_us": 1} for n in range(2_000)])

    with pytest.raises(OperationalError) as caught:
        database.write(fill)
    assert is_disk_full(caught.value)
    assert not is_disk_full(ValueError("disk is full"))
    assert database.read(_names) == set()
    database.write(lambda connection: connection.execute(text("PRAGMA max_page_count=1000000")))
    assert database.write(_add("next")) == "next"


def test_readers_see_a_snapshot_do_not_wait_and_can_not_write(database):
    def read_while_written(connection):
        before = _names(connection)
        database.write(_add("meanwhile"))
        return before | _names(connection)

    assert database.read(read_while_written) == set()
    assert database.read(_names) == {"meanwhile"}
    with pytest.raises(OperationalError, match="readonly"):
        database.read(_add("x"))


def test_after_close_nothing_is_written_and_what_was_begun_is_kept(database, data):
    database.write(_add("kept"))
    database.close()
    with pytest.raises(BrokerError, match="the database is closed"):
        database.write(_add("x"))
    database.close()  # harmless
    engine = open_read_only(data / DATABASE_FILE)
    with engine.begin() as connection:
        assert _names(connection) == {"kept"}
        with pytest.raises(OperationalError, match="readonly"):
            _add("x")(connection)
    engine.dispose()


def test_a_durable_write_returns_when_a_flush_that_began_after_its_commit_has_ended(database, monkeypatch):
    begun, let_go, flushed = queue.SimpleQueue(), threading.Semaphore(0), []

    def flush(descriptor):
        begun.put(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        let_go.acquire()
        os.fdatasync(descriptor)
        flushed.append(descriptor)

    monkeypatch.setattr(log_syncing, "_flush_to_disk", flush)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(database.write, _add("first"))
        assert begun.get(timeout=5).endswith(f"{DATABASE_FILE}-wal")
        later = [pool.submit(database.write, _add(name)) for name in ("second", "third")]
        # The writer goes on, and what need not be on disk waits for no flush.
        assert database.write(_add("passing"), durable=False) == "passing"
        while database.read(_names) != {"first", "second", "third", "passing"}:
            threading.Event().wait(0.001)
        assert not any(one.done() for one in (first, *later))
        assert not flushed
        let_go.release()
        assert first.result(5) == "first"
        begun.get(timeout=5)
        assert len(flushed) == 1
        assert not any(one.done() for one in later)
        let_go.release(2)
        assert {one.result(5) for one in later} == {"second", "third"}


def test_once_the_disk_has_failed_nothing_more_is_promised(database, monkeypatch):
    def fail(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(log_syncing, "_flush_to_disk", fail)
    with pytest.raises(BrokerError, match=r"the disk failed under .*-wal: Input/output error; what was last written"):
        database.write(_add("x"))
    monkeypatch.undo()
    with pytest.raises(BrokerError, match="the disk failed"):
        database.write(_add("y"))


def test_without_a_log_to_flush_each_commit_waits_for_the_disk_itself(tmp_path):
    database = SqliteDatabase(tmp_path / "x.db")
    upgrade(database.engine)
    assert database.write(lambda connection: connection.execute(text("PRAGMA synchronous")).scalar_one()) == 2
    assert database.write(_add("x")) == "x"
    database.close()


def test_commits_outlive_a_power_cut_and_keys_are_checked(database):
    pragmas = ("synchronous", "foreign_keys", "recursive_triggers", "journal_mode")

    def look(connection):
        return {name: connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in pragmas}

    assert database.write(look) == {
        "synchronous": 1,  # the log is put on disk by us, see above; SQLite does so before it takes anything out of it
        "foreign_keys": 1,
        "recursive_triggers": 1,
        "journal_mode": "wal",
    }


@pytest.mark.parametrize("name", ["a-file", "a-file/data"])
def test_a_data_folder_that_can_not_be_had_is_one_sentence(tmp_path, name):
    (tmp_path / "a-file").touch()
    with pytest.raises(UsageError, match=f"can't write in the data folder {tmp_path / name}: "):
        lock_folder(tmp_path / name)


def test_a_folder_has_one_broker(tmp_path):
    first = lock_folder(tmp_path / "data")
    with pytest.raises(BrokerError, match=f"in use by another broker \\(process {os.getpid()}\\)") as caught:
        lock_folder(tmp_path / "data")
    assert "--data" in str(caught.value)
    os.close(first)
    os.close(lock_folder(tmp_path / "data"))


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    folder = tmp_path / "keys"
    before = os.umask(0)
    try:
        signer, private = load_or_create_signer(folder, "broker")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {"broker.key": 0o600}
    again, private_again = load_or_create_signer(folder, "broker")
    other, _ = load_or_create_signer(folder, "lane-a")
    assert (again.key_id, public_bytes(private_again)) == (signer.key_id, public_bytes(private))
    assert other.key_id != signer.key_id


@pytest.mark.parametrize("content", ["", "zz", "00" * 31, "00" * 33])
def test_a_damaged_key_is_named_and_kept(tmp_path, content):
    path = tmp_path / "broker.key"
    path.write_text(content)
    with pytest.raises(BrokerError, match="is not a signing key") as caught:
        load_or_create_signer(tmp_path, "broker")
    assert str(path) in str(caught.value)
    assert path.read_text() == content


def test_a_new_data_folder_is_its_owners_alone(tmp_path):
    os.close(lock_folder(tmp_path / "data"))
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
