from __future__ import annotations

import pytest
from kombu.exceptions import ContentDisallowed, EncodeError
from kombu.serialization import dumps, loads, prepare_accept_content

from broker.bus.serializer import (
    CONTENT_TYPE,
    SERIALIZER,
    dump_envelope,
    load_envelope,
    register_serializer,
    unwrap,
)

ENVELOPE = b"\x00\xff\xfe not text"
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@pytest.fixture(autouse=True)
def _registered():
    register_serializer()


@pytest.mark.parametrize("body", [ENVELOPE, ((ENVELOPE,), {}, EMBED), [[ENVELOPE], {}, {}]])
def test_a_task_and_a_plain_message_are_the_same_bytes(body):
    assert dumps(body, serializer=SERIALIZER) == (CONTENT_TYPE, "binary", ENVELOPE)


def test_an_envelope_comes_back_as_celery_wants_it():
    args, kwargs, embed = loads(ENVELOPE, CONTENT_TYPE, "binary", accept={CONTENT_TYPE})
    assert (args, kwargs, embed) == ([ENVELOPE], {}, EMBED)
    assert unwrap((args, kwargs, embed)) == ENVELOPE


@pytest.mark.parametrize(
    "body",
    [
        "text",
        {"a": 1},
        None,
        b"",
        bytearray(b"x"),
        ((), {}, EMBED),
        ((ENVELOPE, ENVELOPE), {}, EMBED),
        (("text",), {}, EMBED),
        ((ENVELOPE,), {"a": 1}, EMBED),
        ((ENVELOPE,), {}, {"callbacks": ["x"]}),
        ((ENVELOPE,), {}, None),
    ],
)
def test_nothing_else_is_dumped(body):
    with pytest.raises(EncodeError):
        dumps(body, serializer=SERIALIZER)
    with pytest.raises(TypeError):
        dump_envelope(body)


def test_text_is_not_loaded():
    with pytest.raises(TypeError):
        load_envelope("text")


@pytest.mark.parametrize("loaded", [b"abc", "abc", [1, 2, 3], ([b"a", b"b"], {}, {}), (["a"], {}, {}), None])
def test_only_an_envelope_is_unwrapped(loaded):
    with pytest.raises(TypeError):
        unwrap(loaded)


@pytest.mark.parametrize(
    ("serializer", "content_type"), [("json", "application/json"), ("pickle", "application/x-python-serialize")]
)
def test_json_and_pickle_are_refused(serializer, content_type):
    _, encoding, data = dumps({"a": 1}, serializer=serializer)
    with pytest.raises(ContentDisallowed):
        loads(data, content_type, encoding, accept=prepare_accept_content([SERIALIZER]))
