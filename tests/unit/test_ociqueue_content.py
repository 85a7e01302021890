"""Bytes travel on OCI Queue as text and come back as they were."""

from __future__ import annotations

import pytest

from broker.bus.drivers.ociqueue.content import as_bytes, as_text


@pytest.mark.parametrize("text", ["grüße", ".grüße", "abc", ". ", ".\x00"])
def test_text_that_is_not_ours_arrives_as_its_bytes(text):
    assert as_bytes(text) == text.encode()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 95_999, 96_000, 96_001, 104_000])
def test_bytes_come_back_from_their_text(size):
    data = bytes(number * 7 % 256 for number in range(size))
    text = as_text(data)
    assert as_bytes(text) == data
    assert len(text) <= 131_072 - 1_000  # what remains is for a dead letter's reason
