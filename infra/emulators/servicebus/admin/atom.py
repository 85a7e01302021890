"""The namespace's administration: Atom entries over HTTP, as the SDKs' administration clients speak it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import ParseError, fromstring

from infra.emulators.servicebus.admin import entries
from infra.emulators.servicebus.admin.http import HttpRequest, HttpResponse
from infra.emulators.servicebus.queues.description import QueueDescription, RefusedDescription
from infra.emulators.servicebus.queues.namespace import Entry, InvalidName, QueueExists
from infra.emulators.servicebus.service import Service
from infra.emulators.servicebus.tokens import RefusedToken, check_token

__all__ = ["answer_admin"]

FEED = "application/atom+xml;type=feed;charset=utf-8"
NAMESPACE = "servicebus-emulator"
PAGE_MAX = 100


class _HttpError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def answer_admin(service: Service, request: HttpRequest) -> HttpResponse:
    """Do what was asked; errors are the service's own kind of XML."""
    try:
        _authorize(service, request)
        return _route(service, request)
    except _HttpError as error:
        return failure(error.status, str(error))


def failure(status: int, detail: str) -> HttpResponse:
    return HttpResponse(status, entries.error(status, detail), "application/xml; charset=utf-8")


def _authorize(service: Service, request: HttpRequest) -> None:
    if not service.keys:
        return
    token = request.headers.get("authorization")
    if not token:
        raise _HttpError(401, "MissingToken: The authorization header is missing.")
    try:
        grant = check_token(token, service.keys, None, service.clock.now_ms())
    except RefusedToken as error:
        raise _HttpError(401, str(error)) from error
    path = request.path.strip("/").lower()
    if not grant.covers(path):
        raise _HttpError(401, f"InvalidAudience: the token is for '{grant.path}', not for '{path}'")


def _route(service: Service, request: HttpRequest) -> HttpResponse:
    name = request.path.strip("/")
    lowered = name.lower()
    base = f"https://{request.headers.get('host', NAMESPACE)}"
    if lowered == "$namespaceinfo" and request.method == "GET":
        return HttpResponse(200, entries.namespace(NAMESPACE, base, service.created_ms))
    if lowered.startswith("$resources/"):
        return _list(service, request, lowered.removeprefix("$resources/"), base)
    if not name or "/subscriptions" in lowered or lowered.startswith("$"):
        raise _HttpError(404, f"'{request.path}' is not found; this emulator has queues alone")
    match request.method:
        case "GET":
            entry = service.namespace.entry(name)
            if entry is None:
                # So does the service: an empty feed, which its clients turn into an error of their own.
                return HttpResponse(200, entries.feed("Publicly Listed Services", base, name, []), FEED)
            return HttpResponse(200, _entry(service, entry, base))
        case "PUT":
            return _put(service, request, name, base)
        case "DELETE":
            if not service.delete(name):
                raise _HttpError(404, f"The messaging entity '{name}' could not be found.")
            return HttpResponse(200)
    raise _HttpError(405, f"{request.method} is not possible here")


def _list(service: Service, request: HttpRequest, kind: str, base: str) -> HttpResponse:
    try:
        skip, top = int(request.query.get("$skip", "0")), int(request.query.get("$top", str(PAGE_MAX)))
    except ValueError as error:
        raise _HttpError(400, "$skip and $top must be numbers") from error
    everything = service.namespace.entries() if kind == "queues" else []
    page = everything[skip : skip + max(min(top, PAGE_MAX), 0)]
    texts = [_entry(service, entry, base) for entry in page]
    after = skip + len(page)
    more = f"{base}/$Resources/{kind}?$skip={after}&$top={top}" if page and after < len(everything) else None
    return HttpResponse(200, entries.feed(kind, base, f"$Resources/{kind}", texts, more), FEED)


def _entry(service: Service, entry: Entry, base: str) -> bytes:
    return entries.queue(entry, entry.queue.counts(service.clock.now_ms()), base)


def _put(service: Service, request: HttpRequest, name: str, base: str) -> HttpResponse:
    namespace, now_ms = service.namespace, service.clock.now_ms()
    present = namespace.entry(name)
    update = request.headers.get("if-match") is not None
    if update and present is None:
        raise _HttpError(404, f"The messaging entity '{name}' could not be found.")
    before = present.queue.description if update and present is not None else QueueDescription()
    try:
        description = replace(before, **_fields(request.body))
        if update:
            return HttpResponse(200, _entry(service, namespace.update(now_ms, name, description), base))
        entry = namespace.create(now_ms, name, description)
    except QueueExists as error:
        raise _HttpError(409, f"SubCode=40900. Conflict. The entity '{error}' exists already.") from error
    except (RefusedDescription, InvalidName) as error:
        raise _HttpError(400, f"SubCode=40000. Bad Request. {error}") from error
    return HttpResponse(201, _entry(service, entry, base))


def _fields(body: bytes) -> dict[str, Any]:
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise _HttpError(400, "a document type is not welcome")
    try:
        root = fromstring(body)  # noqa: S314 (a document that declares entities was refused just now)
    except ParseError as error:
        raise _HttpError(400, f"the body is no XML: {error}") from error
    described = next((each for each in root.iter() if _local(each.tag) == "QueueDescription"), None)
    if described is None:
        kinds = [_local(each.tag) for each in root.iter() if _local(each.tag).endswith("Description")]
        raise _HttpError(400, f"a QueueDescription was expected, not {kinds[0] if kinds else 'nothing of the kind'}")
    found: dict[str, Any] = {}
    for element in described:
        tag, text = _local(element.tag), (element.text or "").strip()
        if tag in {"ForwardTo", "ForwardDeadLetteredMessagesTo"} and text:
            raise _HttpError(400, f"{tag}: this emulator forwards nothing")
        with contextlib.suppress(KeyError):
            field, read = entries.READERS[tag]
            try:
                found[field] = read(text)
            except ValueError as error:
                raise _HttpError(400, f"SubCode=40000. Bad Request. {tag}: '{text}' makes no sense there") from error
    return found


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
