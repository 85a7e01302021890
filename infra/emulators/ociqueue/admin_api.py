"""Making, changing, finding and deleting queues, each by a work request, as the service does it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from infra.emulators.ociqueue.http import HttpResponse, json_response
from infra.emulators.ociqueue.message_api import moment, whole
from infra.emulators.ociqueue.queues import Description, Queue, WorkRequest
from infra.emulators.ociqueue.refusals import Refusal, invalid
from infra.emulators.ociqueue.service import Call

__all__ = [
    "create_queue",
    "delete_queue",
    "get_queue",
    "get_request",
    "list_queues",
    "list_requests",
    "purge_queue",
    "request_trail",
    "update_queue",
]

PAGE_MAX = 1000
FIELDS = {
    "displayName": "display_name",
    "compartmentId": "compartment_id",
    "retentionInSeconds": "retention_seconds",
    "visibilityInSeconds": "visibility_seconds",
    "timeoutInSeconds": "timeout_seconds",
    "channelConsumptionLimit": "channel_consumption_limit",
    "deadLetterQueueDeliveryCount": "delivery_count",
}
UNCHANGEABLE = {"compartmentId", "retentionInSeconds"}
TAGS = ("freeformTags", "definedTags")


async def create_queue(call: Call) -> HttpResponse:
    given = call.request.json()
    for name in ("displayName", "compartmentId"):
        if not given.get(name):
            raise invalid(f"{name} is missing")
    if given.get("capabilities"):
        raise invalid("this emulator has no capabilities")
    wanted = {FIELDS[name]: value for name, value in given.items() if name in FIELDS and value is not None}
    tags = {name: given[name] for name in TAGS if given.get(name)}
    made = Description(**wanted, tags=tags)
    token = call.request.headers.get("opc-retry-token")
    return _accepted(call.service.queues.create(call.now_ms(), made, token))


async def update_queue(call: Call, queue: str) -> HttpResponse:
    now_ms = call.now_ms()
    present = call.service.queues.active(now_ms, queue)
    _check_match(call, present)
    given = call.request.json()
    for name in UNCHANGEABLE & given.keys():
        raise invalid(f"{name} can't be changed")
    wanted = {FIELDS[name]: value for name, value in given.items() if name in FIELDS and value is not None}
    tags = {**present.description.tags, **{name: given[name] for name in TAGS if name in given}}
    return _accepted(call.service.queues.update(now_ms, queue, replace(present.description, **wanted, tags=tags)))


async def delete_queue(call: Call, queue: str) -> HttpResponse:
    now_ms = call.now_ms()
    _check_match(call, call.service.queues.active(now_ms, queue))
    return _accepted(call.service.queues.delete(now_ms, queue))


async def purge_queue(call: Call, queue: str) -> HttpResponse:
    given = call.request.json()
    now_ms = call.now_ms()
    return _accepted(call.service.queues.purge(now_ms, queue, str(given.get("purgeType")), given.get("channelIds")))


def _accepted(work: WorkRequest) -> HttpResponse:
    return HttpResponse(202, headers={"opc-work-request-id": work.ocid})


def _check_match(call: Call, queue: Queue) -> None:
    wanted = call.request.headers.get("if-match")
    if wanted not in {None, "*", str(queue.version)}:
        raise Refusal(412, "NoEtagMatch", "the queue was changed meanwhile")


async def get_queue(call: Call, queue: str) -> HttpResponse:
    found = call.service.queues.find(queue)
    return json_response(_plain(call, found), headers={"etag": str(found.version)})


async def list_queues(call: Call) -> HttpResponse:
    asked, now_ms = call.request.query, call.now_ms()
    if "compartmentId" not in asked and "id" not in asked:
        raise invalid("compartmentId or id is missing")
    found = [
        queue
        for queue in call.service.queues.listed(now_ms)
        if asked.get("compartmentId") in {None, queue.description.compartment_id}
        and asked.get("displayName") in {None, queue.description.display_name}
        and asked.get("id") in {None, queue.ocid}
        and asked.get("lifecycleState") in {None, queue.state(now_ms)}
    ]
    if asked.get("sortBy") == "displayName":
        found.sort(key=lambda queue: queue.description.display_name)
    if asked.get("sortOrder") == "DESC":
        found.reverse()
    return _page(call, [_plain(call, queue) for queue in found])


def _page(call: Call, items: list[dict[str, Any]]) -> HttpResponse:
    start = whole(call.request.query, "page", 0, 0, len(items))
    end = start + whole(call.request.query, "limit", PAGE_MAX, 1, PAGE_MAX)
    headers = {"opc-next-page": str(end)} if end < len(items) else {}
    return json_response({"items": items[start:end]}, headers=headers)


def _plain(call: Call, queue: Queue) -> dict[str, Any]:
    described = queue.description
    return {
        "id": queue.ocid,
        **{name: getattr(described, field) for name, field in FIELDS.items()},
        "lifecycleState": queue.state(call.now_ms()),
        "lifecycleDetails": None,
        "messagesEndpoint": f"http://{call.request.headers.get('host', '')}",
        "customEncryptionKeyId": None,
        "capabilities": [],
        "freeformTags": {},
        "definedTags": {},
        "systemTags": {},
        **described.tags,
        "timeCreated": moment(queue.created_ms),
        "timeUpdated": moment(queue.updated_ms),
    }


# Work requests.


async def get_request(call: Call, request_id: str) -> HttpResponse:
    return json_response(_work(call, call.service.queues.request(request_id)))


async def list_requests(call: Call) -> HttpResponse:
    wanted = call.request.query.get("compartmentId")
    works = [_work(call, work) for work in call.service.queues.requests()]
    return _page(call, [work for work in works if wanted in {None, work["compartmentId"]}])


async def request_trail(call: Call, request_id: str) -> HttpResponse:
    """No work fails here, and none is logged."""
    call.service.queues.request(request_id)
    return json_response({"items": []})


def _work(call: Call, work: WorkRequest) -> dict[str, Any]:
    done = work.is_done(call.now_ms())
    resource = {
        "entityType": "queue",
        "actionType": work.action if done else "IN_PROGRESS",
        "identifier": work.queue.ocid,
        "entityUri": f"/queues/{work.queue.ocid}",
    }
    return {
        "id": work.ocid,
        "operationType": work.operation,
        "status": "SUCCEEDED" if done else "IN_PROGRESS",
        "compartmentId": work.queue.description.compartment_id,
        "resources": [resource],
        "percentComplete": 100 if done else 0,
        "timeAccepted": moment(work.accepted_ms),
        "timeStarted": moment(work.accepted_ms),
        "timeFinished": moment(work.finish_ms) if done else None,
    }
