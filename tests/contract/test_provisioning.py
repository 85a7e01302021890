"""`broker bus plan` and `apply`, against servers of the test's own."""

from __future__ import annotations

import kombu
import pytest
import redis
from typer.testing import CliRunner

from broker.bus.driver import BusUnavailable
from broker.bus.provisioning import QueueState, apply_bus, plan_bus
from broker.bus.publisher import Publisher
from broker.cli.app import app
from infra.emulators.servicebus import KEY, KEY_NAME, Emulator, Options, QueueDescription

CATALOG = """
[[lane]]
name = "my-gpu"
provider = "azure-gpu"
region = "eastus"
accelerator = "a100-80gb"
accelerator_count = 1
market = "spot"
jobs_per_second = 2.0
price.instance_hour_usd = "3.673"
price.source = "a price sheet"
price.as_of = "2026-06-18"
bus_url = "{url}"

[lane.engine]
driver = "echo"
models = ["m"]
"""


def states(plan):
    return {line.name: line.state for line in plan.lines}


@pytest.fixture
def empty_vhost(private_rabbit):
    private_rabbit.control("add_vhost", "plan")
    private_rabbit.control("set_permissions", "-p", "plan", "guest", ".*", ".*", ".*")
    yield f"{private_rabbit.url.rstrip('/')}/plan"
    private_rabbit.control("delete_vhost", "plan")


def test_a_plan_changes_nothing_and_applying_makes_what_is_missing_once(empty_vhost):
    wanted = {empty_vhost: ["jobs", "lane.a.shards"]}
    names = ["jobs-dead", "jobs", "lane.a.shards-dead", "lane.a.shards"]
    for _ in range(2):
        plan = plan_bus(wanted)
        assert states(plan) == dict.fromkeys(names, QueueState.MISSING)
        assert not plan.is_complete
    assert states(apply_bus(wanted)) == dict.fromkeys(names, QueueState.CREATED)
    for again in (apply_bus(wanted), plan_bus(wanted)):
        assert states(again) == dict.fromkeys(names, QueueState.PRESENT)
        assert again.is_complete
    publisher = Publisher(empty_vhost)
    publisher.publish_events("jobs", [b"1"])  # ours is the form that publishers declare
    publisher.close()


def test_a_deleted_virtual_host_is_restored_in_full(private_rabbit, empty_vhost):
    wanted = {empty_vhost: ["jobs"]}
    apply_bus(wanted)
    private_rabbit.control("delete_vhost", "plan")
    with pytest.raises(BusUnavailable, match="can't be used") as caught:
        plan_bus(wanted)
    assert "guest:guest" not in str(caught.value)
    private_rabbit.control("add_vhost", "plan")
    private_rabbit.control("set_permissions", "-p", "plan", "guest", ".*", ".*", ".*")
    assert set(states(apply_bus(wanted)).values()) == {QueueState.CREATED}


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("queue_type=classic", "x-queue-type is classic, and 'quorum' is wanted: either set queue_type=classic in"),
        ("max_messages=7", "x-max-length is 7, and '100000' is wanted: either set max_messages=7 in the bus's URL"),
    ],
)
def test_a_queue_of_another_form_is_left_and_the_way_out_named(empty_vhost, option, difference):
    apply_bus({f"{empty_vhost}?{option}": ["jobs"]})
    lines = {line.name: line for line in apply_bus({empty_vhost: ["jobs"]}).lines}
    assert lines["jobs"].state is QueueState.DIFFERENT
    assert lines["jobs"].note.startswith(difference)
    assert "rabbitmqctl delete_queue jobs --if-empty" in lines["jobs"].note
    publisher = Publisher(empty_vhost)
    with pytest.raises(BusUnavailable, match="inequivalent arg"):  # never silence
        publisher.publish_events("jobs", [b"1"])
    publisher.close()


def test_a_queue_that_someone_else_made_is_named_too(empty_vhost):
    with kombu.Connection(empty_vhost) as connection:
        kombu.Queue("jobs", durable=True, channel=connection).queue_declare()
    (_, line) = plan_bus({empty_vhost: ["jobs"]}).lines
    assert (line.name, line.state) == ("jobs", QueueState.DIFFERENT)
    assert " is none, and " in line.note


def test_redis_needs_no_queues_but_must_keep_what_it_has(private_redis):
    client = redis.Redis.from_url(private_redis.url)
    assert plan_bus({private_redis.url: ["jobs"]}).is_complete
    client.config_set("maxmemory-policy", "allkeys-lru")
    plan = plan_bus({private_redis.url: ["jobs"]})
    client.config_set("maxmemory-policy", "noeviction")
    assert not plan.is_complete
    assert "allkeys-lru may drop whole queues" in plan.lines[0].note


def test_other_buses_need_nothing():
    plan = plan_bus({"lanemem://embedded": ["jobs"]})
    assert states(plan) == {"jobs": QueueState.NOT_NEEDED}
    assert plan.is_complete


def test_a_bus_that_is_down_is_one_sentence_without_its_password():
    with pytest.raises(BusUnavailable, match=r"amqp://me:\*\*@127\.0\.0\.1:1//? can't be used") as caught:
        plan_bus({"amqp://me:secret@127.0.0.1:1//": ["jobs"]})
    assert "secret" not in str(caught.value)


def test_the_commands_say_what_is_missing_and_make_it(empty_vhost, tmp_path):
    catalog = tmp_path / "lanes.toml"
    catalog.write_text(CATALOG.format(url=empty_vhost))
    run = CliRunner().invoke
    planned = run(app, ["bus", "plan", "--catalog", str(catalog)])
    assert planned.exit_code == 1
    assert "lane.my-gpu.events" in planned.output
    assert "4 missing: `broker bus apply` makes them." in planned.output
    applied = run(app, ["bus", "apply", "--catalog", str(catalog)])
    assert applied.exit_code == 0
    assert "+ lane.my-gpu.events: quorum, at most" in applied.output.partition("created")[0]  # first what is to be done
    done = run(app, ["bus", "plan", "--catalog", str(catalog)])
    assert done.exit_code == 0
    assert "Nothing is left to do." in done.output


def test_the_commands_know_the_queue_of_producers(empty_vhost, tmp_path, monkeypatch):
    catalog = tmp_path / "lanes.toml"
    catalog.write_text(CATALOG.format(url=empty_vhost))
    monkeypatch.setenv("BROKER_JOBS_BUS_URL", empty_vhost)
    planned = CliRunner().invoke(app, ["bus", "plan", "--catalog", str(catalog)])
    assert "7 missing: `broker bus apply` makes them." in planned.output


@pytest.fixture(scope="module")
def service_bus():
    with Emulator(Options(tls=False)) as running:
        yield running, f"laneasb://{KEY_NAME}:{KEY}@127.0.0.1:{running.port}/?emulator=true&lease_seconds=45"


def test_service_bus_queues_are_planned_made_and_left(service_bus):
    _, url = service_bus
    wanted = {url: ["one", "two"]}
    assert states(plan_bus(wanted)) == dict.fromkeys(["one", "two"], QueueState.MISSING)
    made = apply_bus(wanted)
    assert states(made) == dict.fromkeys(["one", "two"], QueueState.CREATED)
    assert made.lines[0].note == "the lock 45 s, MaxDeliveryCount 2,000, dead lettering of expired messages on"
    assert KEY not in made.lines[0].bus
    for again in (apply_bus(wanted), plan_bus(wanted)):
        assert states(again) == dict.fromkeys(["one", "two"], QueueState.PRESENT)


def test_a_service_bus_queue_of_another_form_is_changed_where_it_can_be(service_bus):
    server, url = service_bus
    server.create_queue("short", QueueDescription(lock_duration_ms=5_000, max_delivery_count=3))
    wanted = {url: ["short"]}
    planned = plan_bus(wanted)
    assert states(planned) == {"short": QueueState.DIFFERENT}
    assert "the lock is 5 s, and 45 s is wanted; MaxDeliveryCount is 3" in planned.lines[0].note
    assert "changed" in apply_bus(wanted).lines[0].note
    assert states(plan_bus(wanted)) == {"short": QueueState.PRESENT}


def test_a_namespace_that_is_away_and_a_key_that_may_not_are_one_sentence(service_bus):
    server, _ = service_bus
    with pytest.raises(BusUnavailable):
        plan_bus({f"laneasb://{KEY_NAME}:{KEY}@127.0.0.1:1/?emulator=true": ["one"]})
    with pytest.raises(BusUnavailable, match="can't be administered"):
        plan_bus({f"laneasb://{KEY_NAME}:wrong@127.0.0.1:{server.port}/?emulator=true": ["one"]})
