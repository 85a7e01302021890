from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.rules.merkle import EMPTY_ROOT, inclusion_path, leaf_hash, merkle_root

# The inputs and roots of the test vectors that Certificate Transparency's implementations share.
DATA = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(data) for data in DATA]


def _node(left, right):
    return sha256(b"\x01" + left + right).digest()


def root_from_path(leaf, index, leaves_count, path):
    """The root that `path` proves for `leaf` at `index` of `leaves_count`; None where the path has the wrong length.

    Consumes the whole path: a proof with nodes to spare proves nothing (RFC 9162 section 2.1.3.2).
    """
    found, last = leaf, leaves_count - 1
    if not 0 <= index <= last:
        return None
    remaining = list(path)
    while last > 0:
        if index % 2 or index < last:
            if not remaining:
                return None
            sibling = remaining.pop(0)
            found = _node(sibling, found) if index % 2 else _node(found, sibling)
        index //= 2
        last //= 2
    return None if remaining else found


@pytest.mark.parametrize("count", range(9))
def test_roots_are_those_of_rfc_6962(count):
    assert merkle_root(LEAVES[:count]).hex() == ROOTS[count]


def test_a_leaf_is_no_node():
    assert leaf_hash(b"a") == sha256(b"\0a").digest() != sha256(b"a").digest()
    two = [leaf_hash(b"a"), leaf_hash(b"b")]
    assert leaf_hash(b"".join(two)) != merkle_root(two)
    assert merkle_root([]) == EMPTY_ROOT


def _by_definition(leaves):
    """RFC 6962's own recursive words."""
    if len(leaves) == 1:
        return leaves[0]
    left = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + _by_definition(leaves[:left]) + _by_definition(leaves[left:])).digest()


@given(st.integers(1, 130))
def test_the_root_is_the_definitions(count):
    leaves = [leaf_hash(b"%d" % number) for number in range(count)]
    assert merkle_root(leaves) == _by_definition(leaves)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 16, 17])
def test_every_path_proves_its_leaf_at_its_place_and_nothing_else(count):
    leaves = [leaf_hash(b"%d" % number) for number in range(count)]
    root = merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        path = inclusion_path(leaves, index)
        assert root_from_path(leaf, index, count, path) == root
        assert root_from_path(leaf_hash(b"x"), index, count, path) != root
        assert root_from_path(leaf, index, count, [*path, leaf]) is None
        if path:
            assert root_from_path(leaf, index, count, path[:-1]) is None
        elsewhere = [other for other in range(count) if other != index]
        assert all(root_from_path(leaf, other, count, path) != root for other in elsewhere)
    assert root_from_path(leaves[0], count, count, []) is None
    assert root_from_path(leaves[0], -1, count, []) is None


@given(st.integers(2, 20), st.data())
def test_any_changed_bit_of_a_path_breaks_it(count, data):
    leaves = [leaf_hash(b"%d" % number) for number in range(count)]
    index = data.draw(st.integers(0, count - 1))
    path = inclusion_path(leaves, index)
    place, bit = data.draw(st.integers(0, len(path) - 1)), data.draw(st.integers(0, 255))
    path[place] = (int.from_bytes(path[place], "big") ^ 1 << bit).to_bytes(32, "big")
    assert root_from_path(leaves[index], index, count, path) != merkle_root(leaves)
