"""The control port: faults, cuts, state and time, as JSON over HTTP. For tests; open on loopback alone."""

from __future__ import annotations

from typing import Any

from infra.emulators.ociqueue.faults import Fault
from infra.emulators.ociqueue.http import HttpRequest, HttpResponse, json_response
from infra.emulators.ociqueue.refusals import Refusal
from infra.emulators.ociqueue.service import Service
from infra.emulators.serving.control import Command, Json, answer_command, shared_commands

__all__ = ["answer_control", "state"]


def answer_control(service: Service, request: HttpRequest) -> HttpResponse:
    """One command; what isn't understood is answered 400 with the reason."""
    path = request.path.strip("/")
    answer = answer_command(_COMMANDS, service, request.method, path, request.json, refusals=(Refusal,))
    return json_response(*answer)


def state(service: Service) -> dict[str, Any]:
    """How many of what is where, by display name."""
    now_ms = service.clock.now_ms()
    queues = {
        queue.description.display_name: {
            **queue.messages.counts(now_ms)._asdict(),
            "dead": queue.dead.counts(now_ms).visible,
            "id": queue.ocid,
        }
        for queue in service.queues.listed(now_ms)
    }
    connections = len(service.connections)
    return {"queues": queues, "connections": connections, "requests": service.requests, "now_ms": now_ms}


def _drop(service: Service, _: dict[str, Any]) -> Json:
    return {"count": service.drop_connections()}


_COMMANDS: dict[tuple[str, str], Command[Service]] = {
    ("GET", "state"): lambda service, _: state(service),
    ("POST", "connections/drop"): _drop,
    **shared_commands(Fault),
}
