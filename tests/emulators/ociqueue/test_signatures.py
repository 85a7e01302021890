"""Requests are let in by their signature: its form always, the key where it is known."""

from __future__ import annotations

import pytest
import requests
from oci.exceptions import ServiceError
from oci.signer import Signer

from infra.emulators.ociqueue import COMPARTMENT, Emulator, Options, public_key


@pytest.fixture(scope="module")
def strict(key):
    with Emulator(Options(keys={key.id: public_key(key.public)})) as running:
        yield running


@pytest.fixture(scope="module")
def signed(key):
    """What the SDK sends, as a request that can be spoilt before it goes."""
    config = key.config
    signer = Signer(config["tenancy"], config["user"], config["fingerprint"], None, None, config["key_content"])

    def send(emulator, method="GET", body=None, spoil=lambda request: None):
        url = f"{emulator.endpoint}/20210201/queues"
        query = {"compartmentId": COMPARTMENT} if method == "GET" else None
        with requests.Session() as session:
            request = session.prepare_request(requests.Request(method, url, params=query, json=body, auth=signer))
            spoil(request)
            return session.send(request)

    return send


def test_a_known_key_is_let_in(strict, clients):
    assert clients(strict.endpoint).admin.list_queues(compartment_id=COMPARTMENT).data.items == []


def test_an_unknown_key_is_not(clients, key):
    known = public_key(key.public)
    for keys in ({f"{key.id}x": known}, {key.id: known._replace(modulus=known.modulus - 2)}):
        with Emulator(Options(keys=keys)) as other, pytest.raises(ServiceError) as caught:
            clients(other.endpoint).admin.list_queues(compartment_id=COMPARTMENT)
        assert (caught.value.status, caught.value.code) == (401, "NotAuthenticated")


def without(header, *words):
    def spoil(request):
        text = request.headers[header]
        for word in words:
            assert word in text
            text = text.replace(word, "")
        request.headers[header] = text

    return spoil


def drop(header):
    return lambda request: request.headers.pop(header)


def change(header, value):
    return lambda request: request.headers.update({header: value})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("authorization"), "must be a Signature"),
        (without("authorization", "Signature "), "must be a Signature"),
        (without("authorization", "rsa-"), "must be rsa-sha256"),
        (without("authorization", "(request-target)", "host"), "must cover (request-target), host"),
        (drop("date"), "can't be read"),
        (change("date", "Mon, 01 Jan 2024 00:00:00 GMT"), "seconds off"),
        (lambda request: setattr(request, "url", request.url + "2"), "no key that is known here"),
    ],
)
def test_what_is_not_signed_well(strict, signed, spoil, words):
    answer = signed(strict, spoil=spoil)
    assert (answer.status_code, answer.json()["code"]) == (401, "NotAuthenticated")
    assert words in answer.json()["message"]


def test_a_body_is_covered(strict, signed):
    body = {"displayName": "q", "compartmentId": COMPARTMENT}
    assert signed(strict, "POST", body).status_code == 202
    answer = signed(strict, "POST", body, lambda request: setattr(request, "body", request.body.replace(b"q", b"p")))
    assert "not the digest of the body" in answer.json()["message"]
    answer = signed(strict, "POST", body, without("authorization", "x-content-sha256"))
    assert "must cover x-content-sha256" in answer.json()["message"]


def test_everybody_may_be_let_in(signed):
    with Emulator(Options(authenticates=False)) as open_to_all:
        assert signed(open_to_all, spoil=drop("authorization")).status_code == 200


@pytest.mark.parametrize("pem", ["", "-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n"])
def test_a_key_that_is_none(pem):
    with pytest.raises(ValueError, match="public key"):
        public_key(pem)
