"""The control port: faults, cuts, state and time, as JSON over HTTP. For tests; open on loopback alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from infra.emulators.servicebus.admin.http import HttpRequest, HttpResponse
from infra.emulators.servicebus.faults import Fault
from infra.emulators.servicebus.queues.description import QueueDescription, QueueStatus
from infra.emulators.servicebus.service import Service
from infra.emulators.serving.control import Command, Json, answer_command, shared_commands

__all__ = ["answer_control", "state"]

FORCED = "amqp:connection:forced"
DETACHED = "amqp:link:detach-forced"


def answer_control(service: Service, request: HttpRequest) -> HttpResponse:
    """One command; what isn't understood is answered 400 with the reason."""
    path = request.path.strip("/")
    commands = _COMMANDS
    if request.method == "PUT" and path.startswith("queues/"):
        name = path.removeprefix("queues/")
        commands = {("PUT", path): lambda service, body: _create(service, name, body)}
    others = ", PUT /queues/NAME"
    answer = answer_command(commands, service, request.method, path, lambda: _read(request.body), others=others)
    return HttpResponse(answer.status, json.dumps(answer.value).encode(), "application/json")


def _read(body: bytes) -> Json:
    return json.loads(body) if body else {}


def state(service: Service) -> dict[str, Any]:
    """How many of what is where."""
    now_ms = service.clock.now_ms()
    queues = {entry.queue.name: entry.queue.counts(now_ms)._asdict() for entry in service.namespace.entries()}
    return {"queues": queues, "connections": len(service.peers), "now_ms": now_ms}


def _create(service: Service, name: str, body: dict[str, Any]) -> dict[str, Any]:
    if "status" in body:
        body = {**body, "status": QueueStatus(body["status"])}
    now_ms = service.clock.now_ms()
    present = service.namespace.entry(name)
    if present is None:
        entry = service.namespace.create(now_ms, name, QueueDescription(**body))
    else:
        entry = service.namespace.update(now_ms, name, replace(present.queue.description, **body))
    described = asdict(entry.queue.description)
    return {**described, "status": entry.queue.description.status.value}


def _drop(service: Service, _: dict[str, Any]) -> Json:
    peers = list(service.peers)
    for peer in peers:
        peer.abort()
    return {"count": len(peers)}


def _close(service: Service, body: dict[str, Any]) -> Json:
    peers = list(service.peers)
    for peer in peers:
        peer.close(body.get("condition", FORCED), body.get("description", "The connection was closed on order."))
    return {"count": len(peers)}


def _detach(service: Service, body: dict[str, Any]) -> Json:
    condition, text = body.get("condition", DETACHED), body.get("description", "The link was detached on order.")
    return {"count": sum(peer.detach_links(body.get("entity", "*"), condition, text) for peer in list(service.peers))}


_COMMANDS: dict[tuple[str, str], Command[Service]] = {
    ("GET", "state"): lambda service, _: state(service),
    ("POST", "connections/drop"): _drop,
    ("POST", "connections/close"): _close,
    ("POST", "links/detach"): _detach,
    **shared_commands(Fault),
}
