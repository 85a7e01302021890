"""Messages through Oracle's client: put, get, update, delete, counts, channels, dead letters, limits."""

from __future__ import annotations

import threading
import time

import oci
import pytest
from oci.exceptions import ServiceError

from infra.emulators.ociqueue import Emulator, Limits, Options

models = oci.queue.models


def contents(messages):
    return [message.content for message in messages]


def delete_all(client, ocid, *receipts):
    entries = [models.DeleteMessagesDetailsEntry(receipt=receipt) for receipt in receipts]
    return client.delete_messages(ocid, models.DeleteMessagesDetails(entries=entries)).data


def update_all(client, ocid, seconds, *receipts):
    entries = [
        models.UpdateMessagesDetailsEntry(receipt=receipt, visibility_in_seconds=seconds) for receipt in receipts
    ]
    return client.update_messages(ocid, models.UpdateMessagesDetails(entries=entries)).data


def counts(client, ocid, **options):
    stats = client.get_stats(ocid, **options).data
    return (
        (stats.queue.visible_messages, stats.queue.in_flight_messages, stats.queue.size_in_bytes),
        (stats.dlq.visible_messages, stats.dlq.in_flight_messages, stats.dlq.size_in_bytes),
    )


def test_a_message_goes_through_its_life(client, queue, put, get):
    ocid = queue()
    (made,) = put(client, ocid, "grüße 東京 \x00", custom_properties={"shard": "s-1"})
    assert counts(client, ocid) == ((1, 0, 16), (0, 0, 0))
    (message,) = get(client, ocid)
    assert (message.id, message.content, message.delivery_count) == (made.id, "grüße 東京 \x00", 1)
    assert message.metadata.custom_properties == {"shard": "s-1"}
    assert message.created_at < message.visible_after < message.expire_after
    assert counts(client, ocid) == ((0, 1, 16), (0, 0, 0))
    assert client.delete_message(ocid, message.receipt).status == 204
    assert counts(client, ocid) == ((0, 0, 0), (0, 0, 0))


def test_a_batch_keeps_its_order(client, queue, put, get):
    ocid = queue()
    ids = [made.id for made in put(client, ocid, *map(str, range(20)))]
    assert ids == sorted(set(ids))
    assert contents(get(client, ocid, limit=3)) == ["0", "1", "2"]
    assert contents(get(client, ocid)) == [str(number) for number in range(3, 20)]


def test_a_lease_ends_and_the_deliveries_are_counted(still, put, get):
    ocid = still.emulator.create_queue("q", visibility_seconds=10)
    put(still.queue, ocid, "m")
    (first,) = still.queue.get_messages(ocid, timeout_in_seconds=0).data.messages  # the queue's own visibility
    still.emulator.advance(9.9)
    assert get(still.queue, ocid) == []
    still.emulator.advance(0.1)
    (second,) = get(still.queue, ocid)
    assert (first.id, first.delivery_count, second.delivery_count) == (second.id, 1, 2)
    with pytest.raises(ServiceError) as caught:
        still.queue.delete_message(ocid, first.receipt)
    assert (caught.value.status, caught.value.code) == (404, "NotAuthorizedOrNotFound")
    still.queue.delete_message(ocid, second.receipt)


def test_a_lease_is_made_longer_shorter_and_given_back(still, put, get):
    ocid = still.emulator.create_queue("q")
    put(still.queue, ocid, "m")
    (message,) = get(still.queue, ocid, visibility=10)
    details = models.UpdateMessageDetails(visibility_in_seconds=100)
    updated = still.queue.update_message(ocid, message.receipt, details).data
    assert updated.id == message.id
    assert (updated.visible_after - message.visible_after).total_seconds() == 90
    still.emulator.advance(50)
    assert get(still.queue, ocid) == []
    update_all(still.queue, ocid, 5, message.receipt)
    still.emulator.advance(5)
    (again,) = get(still.queue, ocid)
    update_all(still.queue, ocid, 0, again.receipt)
    assert get(still.queue, ocid)[0].delivery_count == 3


def test_each_entry_of_a_batch_has_an_answer_of_its_own(client, queue, put, get):
    ocid = queue()
    put(client, ocid, "1", "2")
    receipts = [message.receipt for message in get(client, ocid)]
    updated = update_all(client, ocid, 60, receipts[0], "unknown", receipts[1])
    assert (updated.client_failures, updated.server_failures) == (1, 0)
    assert [entry.error_code for entry in updated.entries] == [None, 404, None]
    deleted = delete_all(client, ocid, "unknown", *receipts)
    assert [entry.error_code for entry in deleted.entries] == [404, None, None]
    assert counts(client, ocid)[0] == (0, 0, 0)


def test_a_peek_delivers_and_counts_but_hides_nothing(client, queue, put, get):
    ocid = queue()
    put(client, ocid, "1", "2")
    for count in (1, 2):
        peeked = get(client, ocid, visibility=0)
        assert [(message.content, message.delivery_count) for message in peeked] == [("1", count), ("2", count)]
    assert delete_all(client, ocid, peeked[0].receipt).client_failures == 1


def test_a_long_poll_returns_with_the_first_message(client, queue, put, get):
    ocid = queue()
    threading.Timer(0.2, put, (client, ocid, "late")).start()
    began = time.monotonic()
    assert contents(get(client, ocid, timeout=10)) == ["late"]
    assert 0.15 < time.monotonic() - began < 3


def test_a_long_poll_returns_when_a_lease_ends_or_time_is_up(client, queue, put, get):
    ocid = queue()
    put(client, ocid, "held")
    get(client, ocid, visibility=1)
    began = time.monotonic()
    assert contents(get(client, ocid, timeout=10)) == ["held"]
    assert get(client, ocid, timeout=1) == []
    assert 1.5 < time.monotonic() - began < 5


def test_a_long_poll_hears_of_the_clock_and_of_the_end_of_its_queue(still, put, get):
    ocid = still.emulator.create_queue("q")
    put(still.queue, ocid, "held")
    get(still.queue, ocid, visibility=20)
    threading.Timer(0.2, still.emulator.advance, (20,)).start()
    assert contents(get(still.queue, ocid, timeout=30)) == ["held"]
    threading.Timer(0.2, still.emulator.delete_queue, (ocid,)).start()
    with pytest.raises(ServiceError, match="NotAuthorizedOrNotFound"):
        get(still.queue, ocid, timeout=30)


def test_a_client_that_hangs_up_takes_no_message_with_it(clients, emulator, client, queue, put, get):
    ocid = queue()
    impatient = clients(emulator.endpoint, timeout=(5, 0.3)).queue
    with pytest.raises(oci.exceptions.RequestException):
        get(impatient, ocid, timeout=10)
    time.sleep(0.1)
    put(client, ocid, "m")
    assert contents(get(client, ocid)) == ["m"]


def test_what_is_too_old_is_gone(still, put, get):
    ocid = still.emulator.create_queue("q", retention_seconds=100)
    put(still.queue, ocid, "held", "waits")
    get(still.queue, ocid, limit=1, visibility=1_000)
    still.emulator.advance(60)
    put(still.queue, ocid, "younger")
    still.emulator.advance(40)
    assert contents(get(still.queue, ocid)) == ["younger"]
    assert counts(still.queue, ocid)[0] == (0, 1, 7)


def test_what_came_too_often_is_a_dead_letter(still, put, get):
    ocid = still.emulator.create_queue("q", delivery_count=2)
    put(still.queue, ocid, "poison")
    for _ in range(2):
        assert contents(get(still.queue, ocid, visibility=10)) == ["poison"]
        still.emulator.advance(10)
    assert counts(still.queue, ocid) == ((0, 0, 0), (1, 0, 6))
    assert get(still.queue, ocid) == []
    (dead,) = get(still.queue, f"{ocid}-dlq")
    assert (dead.content, dead.delivery_count) == ("poison", 1)
    still.queue.delete_message(f"{ocid}-dlq", dead.receipt)
    with pytest.raises(ServiceError, match="dead letter"):
        put(still.queue, f"{ocid}-dlq", "x")


def test_channels_are_read_one_at_a_time(client, queue, put, get):
    ocid = queue()
    put(client, ocid, "a1", "a2", channel_id="a")
    put(client, ocid, "b1", channel_id="b")
    put(client, ocid, "none")
    assert client.list_channels(ocid).data.items == ["a", "b"]
    assert counts(client, ocid, channel_id="a")[0] == (2, 0, 4)
    assert contents(get(client, ocid, channel_filter="b")) == ["b1"]
    assert get(client, ocid, channel_filter="c") == []
    seen = [tuple(contents(get(client, ocid))) for _ in range(2)]
    assert sorted(seen) == [("a1", "a2"), ("none",)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "limit is 0; it must be between 1 and 20"),
        ({"limit": 21}, "limit is 21"),
        ({"visibility": 43_201}, "visibilityInSeconds is 43201; it must be between 0 and 43200"),
        ({"timeout": 31}, "timeoutInSeconds is 31; it must be between 0 and 30"),
        ({"consumer_group_id": "g"}, "no consumer groups"),
    ],
)
def test_what_a_get_may_not_ask(client, queue, get, options, words):
    with pytest.raises(ServiceError) as caught:
        get(client, queue(), **options)
    assert (caught.value.status, caught.value.code) == (400, "InvalidParameter")
    assert words in caught.value.message


def test_what_a_put_may_not_hold(client, queue, put, get):
    ocid = queue()
    for texts, status, words in (
        ((), 400, "1 to 20"),
        (("x",) * 21, 400, "1 to 20"),
        (("small", "x" * 131_073), 400, "131073 bytes; 131072 are taken"),
        (("x" * 100_000,) * 6, 413, "524288 are taken"),
    ):
        with pytest.raises(ServiceError, match=words) as caught:
            put(client, ocid, *texts)
        assert caught.value.status == status
    assert counts(client, ocid)[0] == (0, 0, 0)  # all or none
    put(client, ocid, "x" * 131_072)


def test_an_answer_is_not_larger_than_it_may(client, queue, put, get):
    ocid = queue()
    for _ in range(20):
        put(client, ocid, "x" * 120_000)
    assert len(get(client, ocid)) == 17  # of 2 MiB
    assert len(get(client, ocid)) == 3


def test_a_missing_queue_and_what_the_emulator_does_not_know(client, get, emulator):
    with pytest.raises(ServiceError) as caught:
        get(client, "ocid1.queue.oc1.emulator.nowhere")
    assert (caught.value.status, caught.value.code) == (404, "NotAuthorizedOrNotFound")
    for method, path, status in (("PATCH", "/queues/x/messages", 405), ("GET", "/consumerGroups", 404)):
        response = client.base_client.session.request(
            method, f"{emulator.endpoint}/20210201{path}", auth=client.base_client.signer
        )
        assert response.status_code == status
        assert {"code", "message"} == response.json().keys()


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("messages", {"messages": "x"}, "1 to 20"),
        ("messages", {"messages": ["x"]}, "needs a content"),
        ("messages", {"messages": [{"content": 1}]}, "needs a content"),
        ("messages", {"messages": [{"content": "\ud800"}]}, "surrogate"),
        ("messages", {"messages": [{"content": "x", "metadata": "x"}]}, "metadata must be an object"),
        ("messages", {"messages": [{"content": "x", "metadata": {"customProperties": {"a": 1}}}]}, "strings by name"),
        ("messages/actions/deleteMessages", {"entries": {}}, "1 to 20"),
        ("messages/actions/updateMessages", [], "must be a JSON object"),
        ("actions/purge", {"purgeType": "SOME"}, "NORMAL, DLQ or BOTH"),
        ("actions/purge", {"purgeType": "DLQ", "channelIds": 3}, "channelIds must be a list"),
    ],
)
def test_odd_fields_are_refused(client, queue, emulator, path, body, words):
    url = f"{emulator.endpoint}/20210201/queues/{queue()}/{path}"
    answer = client.base_client.session.post(url, json=body, auth=client.base_client.signer)
    assert answer.status_code == 400
    assert words in answer.json()["message"]


def test_odd_entries_fail_alone(client, queue, emulator):
    url = f"{emulator.endpoint}/20210201/queues/{queue()}/messages/actions/updateMessages"
    entries = ["x", {}, {"receipt": "r", "visibilityInSeconds": "soon"}, {"receipt": "r", "visibilityInSeconds": 1}]
    answer = client.base_client.session.post(url, json={"entries": entries}, auth=client.base_client.signer).json()
    assert [entry["errorCode"] for entry in answer["entries"]] == [400, 400, 400, 404]


def test_a_batch_that_does_not_fit_the_queue_is_refused_whole(clients, put):
    with Emulator(Options(limits=Limits(queue_bytes=10))) as small:
        ocid = small.create_queue("small")
        client = clients(small.endpoint).queue
        put(client, ocid, "1234")
        with pytest.raises(ServiceError, match="LimitExceeded"):
            put(client, ocid, "1234", "1234")
        assert counts(client, ocid)[0] == (1, 0, 4)
        put(client, ocid, "123456")
