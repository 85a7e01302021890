"""Queues and work requests through Oracle's administration client."""

from __future__ import annotations

import itertools

import oci
import pytest
from oci.exceptions import ServiceError

from infra.emulators.ociqueue import COMPARTMENT, Emulator, Limits, Options

models = oci.queue.models
_numbers = itertools.count()


@pytest.fixture
def compartment():
    return f"ocid1.compartment.oc1..test{next(_numbers)}"


def create(admin, compartment, name, **settings):
    details = models.CreateQueueDetails(display_name=name, compartment_id=compartment, **settings)
    response = admin.create_queue(details)
    assert response.status == 202
    work = admin.get_work_request(response.headers["opc-work-request-id"]).data
    (resource,) = work.resources
    assert (work.operation_type, resource.entity_type) == ("CREATE_QUEUE", "queue")
    return resource.identifier


def names(listed):
    return [queue.display_name for queue in listed.data.items]


def test_a_queue_is_made_as_asked_with_the_services_defaults(admin, compartment, emulator):
    plain = admin.get_queue(create(admin, compartment, "plain")).data
    assert (plain.retention_in_seconds, plain.visibility_in_seconds, plain.timeout_in_seconds) == (86_400, 30, 30)
    assert (plain.dead_letter_queue_delivery_count, plain.channel_consumption_limit) == (0, 100)
    assert (plain.lifecycle_state, plain.messages_endpoint) == ("ACTIVE", emulator.endpoint)
    asked = {"retention_in_seconds": 60, "visibility_in_seconds": 5, "dead_letter_queue_delivery_count": 3}
    tags = {"freeform_tags": {"owner": "me"}}
    other = admin.get_queue(create(admin, compartment, "other", **asked, **tags)).data
    assert {name: getattr(other, name) for name in asked} == asked
    assert other.freeform_tags == {"owner": "me"}


def test_queues_are_listed_by_compartment_name_state_and_page(admin, compartment):
    ids = [create(admin, compartment, name) for name in ("b", "a", "a")]
    assert names(admin.list_queues(compartment_id=compartment)) == ["b", "a", "a"]
    assert names(admin.list_queues(compartment_id=compartment, sort_by="displayName")) == ["a", "a", "b"]
    assert [each.id for each in admin.list_queues(compartment_id=compartment, display_name="a").data.items] == ids[1:]
    assert names(admin.list_queues(id=ids[0])) == ["b"]
    assert names(admin.list_queues(compartment_id=compartment, lifecycle_state="CREATING")) == []
    assert names(admin.list_queues(compartment_id=f"{compartment}x")) == []
    first = admin.list_queues(compartment_id=compartment, limit=2)
    assert names(first) == ["b", "a"]
    assert names(admin.list_queues(compartment_id=compartment, limit=2, page=first.next_page)) == ["a"]
    everything = oci.pagination.list_call_get_all_results(admin.list_queues, compartment_id=compartment, limit=1)
    assert len(everything.data) == 3


def test_a_queue_is_changed_and_deleted(admin, compartment, client, put):
    ocid = create(admin, compartment, "before", retention_in_seconds=60)
    etag = admin.get_queue(ocid).headers["etag"]
    details = models.UpdateQueueDetails(display_name="after", visibility_in_seconds=7)
    admin.update_queue(ocid, details, if_match=etag)
    changed = admin.get_queue(ocid).data
    assert (changed.display_name, changed.visibility_in_seconds, changed.retention_in_seconds) == ("after", 7, 60)
    with pytest.raises(ServiceError, match="NoEtagMatch"):
        admin.delete_queue(ocid, if_match=etag)
    put(client, ocid, "m")
    admin.delete_queue(ocid)
    assert admin.get_queue(ocid).data.lifecycle_state == "DELETED"
    assert names(admin.list_queues(compartment_id=compartment)) == []
    for call in (lambda: put(client, ocid, "m"), lambda: client.get_stats(ocid), lambda: admin.delete_queue(ocid)):
        with pytest.raises(ServiceError, match="NotAuthorizedOrNotFound"):
            call()


def test_a_purge_takes_what_it_names(admin, compartment, client, put, get):
    ocid = create(admin, compartment, "q")
    put(client, ocid, "held", "waits")
    get(client, ocid, limit=1)
    put(client, ocid, "a", channel_id="a")
    admin.purge_queue(ocid, models.PurgeQueueDetails(purge_type="NORMAL", channel_ids=["a"]))
    assert client.get_stats(ocid).data.queue.visible_messages == 1
    work = admin.purge_queue(ocid, models.PurgeQueueDetails(purge_type="BOTH")).headers["opc-work-request-id"]
    assert admin.get_work_request(work).data.operation_type == "PURGE_QUEUE"
    stats = client.get_stats(ocid).data.queue
    assert (stats.visible_messages, stats.in_flight_messages, stats.size_in_bytes) == (0, 0, 0)


def test_work_takes_its_time(clients):
    with Emulator(Options(manual_clock=True, work_seconds=60)) as slow:
        connected = clients(slow.endpoint)
        admin = connected.admin
        response = admin.create_queue(models.CreateQueueDetails(display_name="q", compartment_id=COMPARTMENT))
        work = admin.get_work_request(response.headers["opc-work-request-id"]).data
        ocid = work.resources[0].identifier
        assert (work.status, work.percent_complete) == ("IN_PROGRESS", 0)
        assert admin.get_queue(ocid).data.lifecycle_state == "CREATING"
        with pytest.raises(ServiceError, match="IncorrectState"):
            connected.queue.get_stats(ocid)
        slow.advance(60)
        assert admin.get_work_request(work.id).data.status == "SUCCEEDED"
        assert connected.queue.get_stats(ocid).data.queue.visible_messages == 0
        admin.delete_queue(ocid)
        assert admin.get_queue(ocid).data.lifecycle_state == "DELETING"
        slow.advance(60)
        assert admin.get_queue(ocid).data.lifecycle_state == "DELETED"
        listed = admin.list_work_requests(compartment_id=COMPARTMENT).data.items
        assert [each.operation_type for each in listed] == ["CREATE_QUEUE", "DELETE_QUEUE"]
        assert admin.list_work_request_errors(work.id).data.items == []
        assert admin.list_work_request_logs(work.id).data.items == []


def test_the_same_retry_token_makes_one_queue(admin, compartment):
    details = models.CreateQueueDetails(display_name="once", compartment_id=compartment)
    works = {admin.create_queue(details, opc_retry_token="t").headers["opc-work-request-id"] for _ in range(2)}
    assert len(works) == 1
    assert names(admin.list_queues(compartment_id=compartment)) == ["once"]


def test_the_sdk_waits_for_work_with_its_own_composite_client(admin, compartment):
    composite = oci.queue.QueueAdminClientCompositeOperations(admin)
    details = models.CreateQueueDetails(display_name="composite", compartment_id=compartment)
    made = composite.create_queue_and_wait_for_state(details, wait_for_states=["SUCCEEDED"])
    assert made.data.status == "SUCCEEDED"


def test_a_region_grants_only_so_many(clients):
    with Emulator(Options(limits=Limits(queues=1))) as small:
        admin = clients(small.endpoint).admin
        create(admin, COMPARTMENT, "one")
        with pytest.raises(ServiceError, match="LimitExceeded"):
            create(admin, COMPARTMENT, "two")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"visibility_in_seconds": 0}, "visibility_seconds is 0; it must be between 1 and 43200"),
        ({"retention_in_seconds": 5}, "retention_seconds is 5; it must be between 10 and 604800"),
        ({"timeout_in_seconds": 31}, "timeout_seconds is 31"),
        ({"dead_letter_queue_delivery_count": 21}, "delivery_count is 21; it must be between 0 and 20"),
        ({"capabilities": [models.LargeMessagesCapabilityDetails()]}, "no capabilities"),
        ({"display_name": "x" * 256}, "between 1 and 255 characters"),
    ],
)
def test_what_a_queue_may_not_be(admin, compartment, settings, words):
    details = models.CreateQueueDetails(**{"display_name": "q", "compartment_id": compartment, **settings})
    with pytest.raises(ServiceError) as caught:
        admin.create_queue(details)
    assert (caught.value.status, caught.value.code) == (400, "InvalidParameter")
    assert words in caught.value.message


def test_what_can_not_be_asked(admin, compartment):
    ocid = create(admin, compartment, "q")
    for call, words in (
        (admin.list_queues, "compartmentId or id is missing"),
        (lambda: admin.purge_queue(ocid, models.PurgeQueueDetails()), "NORMAL, DLQ or BOTH"),
        (lambda: admin.get_work_request("nowhere"), "work request nowhere"),
        (lambda: admin.get_queue("nowhere"), "queue nowhere"),
    ):
        with pytest.raises(ServiceError) as caught:
            call()
        assert words in caught.value.message
