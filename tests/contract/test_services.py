"""What the services give to the tests that ask for them, and what happens where there are none."""

from __future__ import annotations

import pytest

from tests.conftest import usable


def test_postgres_gives_each_module_an_empty_database_of_its_own(postgres_url, postgres_server_url):
    import psycopg

    assert postgres_url != postgres_server_url
    with psycopg.connect(postgres_url) as connection:
        query = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(query).fetchone() == (0,)


def test_rabbitmq_confirms_what_it_takes(rabbitmq_url):
    import kombu

    with kombu.Connection(rabbitmq_url, transport_options={"confirm_publish": True}) as connection:
        queue = connection.SimpleBuffer("broker-test-services")
        queue.put({"n": 1})
        message = queue.get(timeout=5)
        assert message.payload == {"n": 1}
        message.ack()
        queue.close()


def test_redis_answers(redis_url):
    assert redis_url.startswith("redis://")


@pytest.mark.parametrize(("required", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_an_absent_service_fails_only_where_it_is_required(monkeypatch, required, outcome):
    monkeypatch.setenv("BROKER_REQUIRE_SERVICES", required)
    monkeypatch.setenv("BROKER_TEST_POSTGRES_URL", "postgresql://127.0.0.1:1/nowhere")
    with pytest.raises(outcome, match=r"no PostgreSQL at 127\.0\.0\.1 \(set BROKER_TEST_POSTGRES_URL"):
        usable("postgres")
