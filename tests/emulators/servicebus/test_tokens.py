"""Tokens: what is verified, and what is only looked at."""

from __future__ import annotations

import base64
import datetime as dt
import json
import time

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus._base_handler import _generate_sas_token

from infra.emulators.servicebus import Emulator, Options, QueueDescription
from infra.emulators.servicebus.tokens import Grant, RefusedToken, check_token, path_of

KEYS = {"name": "key"}
NOW_MS = 1_000_000_000_000


def sas(uri="sb://host/orders", key="key", name="name"):
    return _generate_sas_token(uri, name, key, dt.timedelta(hours=1)).token


def jwt(**claims):
    parts = [{"alg": "RS256", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "signature"])


def now_ms():
    return time.time_ns() // 1_000_000


def test_a_signature_by_microsofts_client_is_verified():
    grant = check_token(sas(), KEYS, "amqps://host/Orders/$management", now_ms())
    assert grant.path == "orders/$management"
    assert grant.until_ms > now_ms()


@pytest.mark.parametrize(
    ("token", "word"),
    [
        (sas(key="other"), "InvalidSignature"),
        (sas(name="stranger"), "InvalidSignature"),
        (sas(uri="sb://host/elsewhere"), "InvalidAudience"),
        (sas(uri="sb://host/order"), "InvalidAudience"),
        ("SharedAccessSignature sr=x", "MalformedToken"),
        ("a.b.c", "MalformedToken"),
        ("", "MalformedToken"),
        (jwt(aud="x"), "MalformedToken"),
        (jwt(exp=1), "ExpiredToken"),
    ],
)
def test_what_is_refused(token, word):
    with pytest.raises(RefusedToken, match=word):
        check_token(token, KEYS, "sb://host/orders", now_ms())


def test_a_token_ends():
    with pytest.raises(RefusedToken, match="ExpiredToken"):
        check_token(sas(), KEYS, None, now_ms() + 3_700_000)


def test_a_jwt_with_an_expiry_opens_everything():
    assert check_token(jwt(exp=4_000_000_000), KEYS, "sb://h/q", NOW_MS) == Grant("q", 4_000_000_000_000)


def test_grants_cover_what_lies_below():
    assert Grant("", 0).covers("any/thing")
    assert Grant("a", 0).covers("a/b")
    assert not Grant("a", 0).covers("ab")
    assert path_of("sb://HOST:5672/A%20b/") == "a b"


def test_links_end_with_their_token():
    options = Options(manual_clock=True, tls=False, queues={"q": QueueDescription()})
    with (
        Emulator(options) as emulator,
        ServiceBusClient.from_connection_string(emulator.connection_string, retry_backoff_factor=0.1) as client,
        client.get_queue_sender("q") as sender,
    ):
        sender.send_messages(ServiceBusMessage("x"))
        emulator.advance(2 * 3_600)
        with pytest.raises(Exception, match="amqp:client-error"):
            sender.send_messages(ServiceBusMessage("y"), timeout=3)  # the SDK shows a token that is too old by now
