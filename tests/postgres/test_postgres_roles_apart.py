"""Several processes of one role: one leads, each has a stream of its own, and they wake each other."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import select, text

from broker.database.drivers.postgres.leadership import Leadership, lock_stream
from broker.database.drivers.postgres.wakeups import PostgresWakeups
from broker.database.fencing import alone
from broker.database.plans import current_plan, write_plan
from broker.database.tables import plan
from broker.domain.errors import BrokerError
from broker.domain.ids import new_id
from broker.wakeups import Topic, Wakeups
from tests.unit.builders import NOW_US


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def leaders(postgres_url, proxied_url):
    """One behind the proxy, one not."""
    pair = Leadership(proxied_url, "dispatcher"), Leadership(postgres_url, "dispatcher")
    yield pair
    for one in pair:
        one.close()


def test_one_leads_and_the_next_takes_over(leaders):
    first, second = leaders
    assert first.is_leader()
    assert not second.is_leader()
    assert first.is_leader()
    first.close()
    assert until(second.is_leader)
    assert not first.is_leader()


def test_roles_have_leaders_of_their_own(postgres_url, leaders):
    other = Leadership(postgres_url, "planner")
    assert leaders[0].is_leader()
    assert other.is_leader()
    other.close()


def test_sqlite_is_always_led():
    assert Leadership(None, "dispatcher").is_leader()


def test_who_lost_its_connection_no_longer_leads(leaders, proxy):
    first, second = leaders
    assert first.is_leader()
    proxy.refuse()
    assert until(lambda: not first.is_leader(), 2)
    assert until(second.is_leader)
    proxy.heal()
    time.sleep(1.1)
    assert not first.is_leader()


def test_who_hears_nothing_any_more_stops_leading_without_waiting(leaders, proxy, monkeypatch):
    monkeypatch.setattr("broker.database.drivers.postgres.sessions._BEAT_SECONDS", 0.2)
    monkeypatch.setattr("broker.database.drivers.postgres.sessions._SILENCE_SECONDS_MAX", 0.5)
    monkeypatch.setattr("broker.database.drivers.postgres.connections.CONNECT_SECONDS", 1)
    first, _ = leaders
    for _ in range(20):
        assert first.is_leader()
        time.sleep(0.05)
    proxy.black_hole()
    slowest, began = 0.0, time.monotonic()
    while first._session.is_alive():
        asked = time.monotonic()
        assert asked - began < 3
        time.sleep(0.01)
        slowest = max(slowest, time.monotonic() - asked)
    assert slowest < 0.3


def test_to_ask_who_leads_is_cheap(leaders):
    first, _ = leaders
    assert first.is_leader()
    began = time.perf_counter()
    for _ in range(10_000):
        assert first.is_leader()
    assert time.perf_counter() - began < 2  # measured: 4 us each


def test_alone_two_planners_never_make_one_generation_twice(database):
    """Without the fence both read the same newest generation, and one of them fails."""

    def plan_once(connection):
        alone(connection, "planner")
        generation, _ = current_plan(connection)
        time.sleep(0.01)
        write_plan(connection, generation + 1, {}, b"d" * 32, NOW_US)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: database.write(plan_once), range(12)))
    found = database.read(lambda connection: connection.execute(select(plan.c.generation)).scalars().all())
    assert sorted(found) == list(range(1, 13))


def test_each_writer_has_a_slot_of_its_own_and_a_free_one_is_taken_again(database):
    slots = [lock_stream(database, "recorder") for _ in range(3)]
    assert [slot.name for slot in slots] == ["recorder-0", "recorder-1", "recorder-2"]
    assert [slot.hold() for slot in slots] == ["recorder-0", "recorder-1", "recorder-2"]
    slots[1].close()
    again = lock_stream(database, "recorder")
    assert again.name in {"recorder-1", "recorder-3"}  # the server may take a moment to let go
    other = lock_stream(database, "closer")
    assert other.name == "closer-0"
    for slot in (*slots, again, other):
        slot.close()


def test_a_slot_is_taken_again_after_its_session_was_lost(database, postgres_url):
    slot = lock_stream(database, "recorder")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'slot recorder%'"
        )
    assert until(lambda: held(slot) == "recorder-0")
    other = lock_stream(database, "recorder")
    assert other.name == "recorder-1"
    slot.close()
    other.close()


def held(slot):
    """None while the database can't be asked."""
    try:
        return slot.hold()
    except BrokerError:
        return None


def test_instead_of_a_slot_that_another_took_meanwhile_there_is_another(database, proxied_url, proxy):
    slot = lock_stream(database, "recorder")
    slot._session._url = proxied_url
    proxy.refuse()
    slot._session.close()
    assert held(slot) is None
    others = []
    assert until(lambda: others.append(lock_stream(database, "recorder")) or others[-1].name == "recorder-0", 3)
    proxy.heal()
    assert until(lambda: held(slot))
    assert slot.name not in {other.name for other in others}
    slot.close()
    for other in others:
        other.close()


def test_without_a_server_there_is_no_slot(database, monkeypatch):
    monkeypatch.setattr(database, "url", "postgresql://postgres@127.0.0.1:1/none")
    with pytest.raises(BrokerError, match="for another recorder"):
        lock_stream(database, "recorder")


# ------------------------------------------------------------------------------------------------------- wake-ups


@pytest.fixture
def pair(postgres_url, proxied_url, proxy):
    """Two processes' wake-ups: one behind the proxy, one not."""
    made = []
    for url in (proxied_url, postgres_url):
        wakeups = Wakeups()
        notifier = PostgresWakeups(url, wakeups)
        notifier.start()
        made.append((wakeups, notifier))
    assert all(notifier.wait_until_listening(5) for _, notifier in made)
    for wakeups, _ in made:
        for topic in Topic:
            wakeups.wait(topic, 0)
    yield made
    proxy.heal()
    for _, notifier in made:
        notifier.stop()


def woken(wakeups, topic, seconds=5.0):
    """Whether the wait ended before its time."""
    began = time.monotonic()
    wakeups.wait(topic, seconds)
    return time.monotonic() - began < seconds * 0.9


def test_a_wake_up_reaches_the_other_process_at_once_and_ones_own(pair):
    (here, _), (there, _) = pair
    began = time.monotonic()
    here.notify(Topic.RELAY)
    assert woken(here, Topic.RELAY)
    assert woken(there, Topic.RELAY)
    assert time.monotonic() - began < 1
    assert not woken(there, Topic.PLANNER, 0.05)
    assert not woken(here, Topic.RELAY, 0.05)  # its own message doesn't come back


def test_many_endings_are_told_in_few_messages(pair, postgres_url):
    (here, _), (there, _) = pair
    job_ids = [new_id() for _ in range(2_000)]
    told = threading.Semaphore(0)
    for job_id in job_ids:
        there.endings.watch(job_id, told.release)
    with psycopg.connect(postgres_url, autocommit=True) as look:
        look.execute("LISTEN broker_wakeups")
        for start in range(0, 2_000, 10):
            here.endings.announce(job_ids[start : start + 10])
        assert all(told.acquire(timeout=5) for _ in job_ids)
        assert 7 <= len(list(look.notifies(timeout=0.2))) <= 100  # of 200 that were asked for


def test_after_a_loss_everyone_looks_once_and_wake_ups_go_on(pair, proxy):
    (here, notifier), (there, _) = pair
    looked = threading.Event()
    here.endings.watch(new_id(), looked.set)
    proxy.cut()
    assert looked.wait(5)
    assert woken(here, Topic.CLOSER)
    assert notifier.wait_until_listening(5)
    here.notify(Topic.READER)
    assert woken(there, Topic.READER)
    there.notify(Topic.PLANNER)
    assert until(lambda: woken(here, Topic.PLANNER, 0.5), 5)


def test_what_is_not_understood_is_passed_over(pair, postgres_url):
    (here, _), (there, _) = pair
    with psycopg.connect(postgres_url, autocommit=True) as stranger:
        for payload in ("", "x", "gQ==", "k8QBAJEFkA=="):
            stranger.execute("SELECT pg_notify('broker_wakeups', %s)", [payload])
    here.notify(Topic.RELAY)
    assert woken(there, Topic.RELAY)


def test_a_notifier_stops_in_time(postgres_url):
    notifier = PostgresWakeups(postgres_url, Wakeups())
    notifier.start()
    notifier.wait_until_listening(5)
    began = time.monotonic()
    notifier.stop()
    assert time.monotonic() - began < 2.5
    assert not any(thread.name.startswith("wakeups-") for thread in threading.enumerate())


def test_pages_of_marks_stay_small(database):
    """A mark moves in place: no index entry more, and no page more, for any number of commits."""
    database.write(lambda connection: connection.execute(text("TRUNCATE commit_mark")), idempotent=True)
    for _ in range(300):
        database.write(lambda connection: connection.execute(text("SELECT 1")).scalar())
    size = "SELECT pg_relation_size('commit_mark') + pg_relation_size('pk_commit_mark')"
    assert database.read(lambda connection: connection.execute(text(size)).scalar()) <= 8 * 8192
