"""A running emulator and Oracle's clients for it, unmodified."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import oci
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.emulators.ociqueue import Emulator, Options

_numbers = itertools.count()


@pytest.fixture(scope="session")
def key():
    """A user's key: what the SDK's configuration needs, the key id and the public half as PEM."""
    private = rsa.generate_private_key(65_537, 2_048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    config = {
        "tenancy": "ocid1.tenancy.oc1..t",
        "user": "ocid1.user.oc1..u",
        "fingerprint": ":".join(["ab"] * 16),
        "key_content": pem.decode(),
        "region": "us-ashburn-1",
    }
    key_id = "/".join(config[name] for name in ("tenancy", "user", "fingerprint"))
    return SimpleNamespace(config=config, id=key_id, public=public.decode())


@pytest.fixture(scope="session")
def clients(key):
    """Both clients for an endpoint, without the SDK's retries."""

    def connect(endpoint, **options):
        options = {
            "service_endpoint": endpoint,
            "retry_strategy": oci.retry.NoneRetryStrategy(),
            "circuit_breaker_strategy": oci.circuit_breaker.NoCircuitBreakerStrategy(),
            "timeout": (5, 10),
            **options,
        }
        return SimpleNamespace(
            queue=oci.queue.QueueClient(key.config, **options), admin=oci.queue.QueueAdminClient(key.config, **options)
        )

    return connect


@pytest.fixture(scope="session")
def emulator():
    with Emulator() as running:
        yield running


@pytest.fixture(scope="session")
def client(emulator, clients):
    return clients(emulator.endpoint).queue


@pytest.fixture(scope="session")
def admin(emulator, clients):
    return clients(emulator.endpoint).admin


@pytest.fixture
def queue(emulator):
    """The OCID of a queue of the test's own; call it with what the queue should be like."""
    made = []

    def make(**settings):
        made.append(emulator.create_queue(f"queue-{next(_numbers)}", **settings))
        return made[-1]

    yield make
    emulator.clear_faults()
    for ocid in made:
        emulator.delete_queue(ocid)


@pytest.fixture
def still(clients):
    """An emulator whose time stands still, and its clients."""
    with Emulator(Options(manual_clock=True)) as running:
        yield SimpleNamespace(emulator=running, **vars(clients(running.endpoint)))


@pytest.fixture(scope="session")
def put():
    def put_texts(client, ocid, *texts, **metadata):
        models = oci.queue.models
        about = models.MessageMetadata(**metadata) if metadata else None
        entries = [models.PutMessagesDetailsEntry(content=text, metadata=about) for text in texts]
        return client.put_messages(ocid, models.PutMessagesDetails(messages=entries)).data.messages

    return put_texts


@pytest.fixture(scope="session")
def get():
    def get_messages(client, ocid, limit=20, timeout=0, visibility=30, **options):
        options = {"timeout_in_seconds": timeout, "visibility_in_seconds": visibility, **options}
        return client.get_messages(ocid, limit=limit, **options).data.messages

    return get_messages
