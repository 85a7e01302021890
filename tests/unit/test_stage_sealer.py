"""Seals: what is published of the ledger can't be taken back, on either database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import DatabaseError

from broker.database.keys import remember_key
from broker.domain.errors import BrokerError
from broker.ledger.canonical import FIRST_PREVIOUS_HASH, BatchRecord, batch_hash, row_leaf
from broker.ledger.checkpoints import sign_checkpoint, verify_note
from broker.ledger.tables import (
    attempt,
    job_outcome,
    ledger_batch,
    ledger_checkpoint,
    ledger_seal_leaf,
    ledger_stream,
)
from broker.ledger.verifying import verify
from broker.rules.growing_tree import GrowingTree
from broker.rules.merkle import leaf_hash, merkle_root
from tests.unit.builders import NOW_US, SECOND_US, a_signer
from tests.unit.sealed_ledger import KEYS, ROWS, SIGNER, Ledger, a_sealed_ledger


@given(st.integers(0, 70))
def test_a_growing_tree_has_the_root_of_all_its_leaves(count):
    leaves = [leaf_hash(b"%d" % number) for number in range(count)]
    tree = GrowingTree()
    for leaf in leaves:
        tree.add(leaf)
    assert (tree.size, tree.root) == (count, merkle_root(leaves))


@pytest.fixture
def ledger(database, tmp_path):
    return a_sealed_ledger(database, tmp_path)


# -------------------------------------------------------------------------------------------------------- sealing


def test_what_is_sealed_is_verified_and_counted(ledger):
    found = ledger.verify()
    assert (found.faults, found.batches, found.rows) == ([], 8, 32)
    seals = found.seals
    assert (seals.batches, seals.checkpoints, seals.published) == (7, 2, 2)
    assert seals.sealed_us == NOW_US + 20 * SECOND_US
    assert [row.tree_size for row in ledger.rows(ledger_checkpoint)] == [4, 7]


def test_nothing_new_is_no_new_checkpoint(ledger):
    for _ in range(3):
        ledger.seal()
    assert [row.tree_size for row in ledger.rows(ledger_checkpoint)] == [4, 7, 8]
    assert len(list(ledger.file.notes())) == 3


def test_an_empty_ledger_has_no_checkpoint(database, tmp_path):
    empty = Ledger(database, tmp_path)
    empty.seal()
    assert (empty.rows(ledger_checkpoint), empty.path.exists()) == ([], False)
    assert empty.verify().seals.sealed_us is None


def test_another_goes_on_where_one_stopped(ledger):
    ledger.sealer = ledger.another()
    ledger.seal()
    first = ledger.sealer
    ledger.sealer = ledger.another()
    ledger.write(1)
    ledger.seal()
    ledger.sealer = first  # which must notice that another has sealed
    ledger.write(1)
    ledger.seal()
    assert (ledger.faults(), ledger.verify().seals.batches) == ([], 10)


def test_many_batches_are_sealed_in_parts(ledger, monkeypatch):
    monkeypatch.setattr("broker.ledger.sealing.BATCHES_PER_CHECKPOINT", 4)
    monkeypatch.setattr("broker.stages.sealer.BATCHES_PER_CHECKPOINT", 4)
    ledger.write(9)
    ledger.seal()
    assert [row.tree_size for row in ledger.rows(ledger_checkpoint)] == [4, 7, 11, 15, 17]
    assert ledger.faults() == []


def test_what_a_crash_left_unpublished_is_published_next(ledger, monkeypatch):
    def die(_checkpoint):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ledger.file, "publish", die)
        with pytest.raises(OSError, match="no space"):
            ledger.seal()
    assert len(list(ledger.file.notes())) == 2
    ledger.seal()
    assert len(list(ledger.file.notes())) == 3
    assert ledger.faults() == []


def test_a_torn_line_is_written_anew(ledger):
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-20])
    assert len(list(ledger.file.notes())) == 1
    ledger.seal()
    assert ledger.path.read_bytes().startswith(whole)
    assert len(list(ledger.file.notes())) == 3
    assert ledger.faults() == []


def test_the_database_itself_refuses_to_change_seals(ledger):
    for table in (ledger_seal_leaf, ledger_checkpoint):
        for statement in (update(table).values(tree_size=1) if table is ledger_checkpoint else delete(table),):
            with pytest.raises(DatabaseError):
                ledger.database.write(lambda connection, statement=statement: connection.execute(statement))


def test_a_note_is_what_the_standard_says():
    checkpoint = sign_checkpoint(SIGNER, 12, b"r" * 32, NOW_US)
    lines = checkpoint.note.split("\n")
    assert lines[:5] == [
        "inference-broker.ledger",
        "12",
        "cnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=",
        f"time {NOW_US}",
        "",
    ]
    assert lines[5].startswith("\N{EM DASH} inference-broker.ledger ")
    assert (lines[6], len(lines)) == ("", 7)
    assert verify_note(checkpoint.note, KEYS) == checkpoint
    other, _ = a_signer()
    for note in (checkpoint.note.replace("12", "13"), checkpoint.note.replace("time 1", "time 2")):
        with pytest.raises(ValueError, match="does not match"):
            verify_note(note, KEYS)
    with pytest.raises(ValueError, match="of no key"):
        verify_note(checkpoint.note, [other.public_bytes])
    for note in ("", "x", checkpoint.note.split("\n\n")[0] + "\n\n", checkpoint.note.replace("ledger\n", "other\n")):
        with pytest.raises(ValueError, match=r"."):
            verify_note(note, KEYS)


def test_the_keys_that_the_database_knows_are_good_where_none_are_named(ledger):
    found = ledger.database.read(verify)
    assert len(found.faults) == 2
    assert all("its signature is of no key" in fault for fault in found.faults)
    raw = SIGNER.public_bytes
    keep = {"key_id": "k", "role": "broker", "owner": "broker", "public_key": raw, "now_us": NOW_US}
    ledger.database.write(lambda connection: remember_key(connection, **keep))
    assert ledger.database.read(verify).faults == []


# ------------------------------------------------------------------------------------------------------ tampering


def _edit(ledger):
    """With the leaf made to fit."""
    row = next(one for one in ledger.rows(attempt) if one.seq == 1)
    values = [99 if name == "cost_nano_usd" else value for name, value in row._mapping.items()][:-1]
    here = (attempt.c.seq == 1, attempt.c.stream_id == row.stream_id)
    yield update(attempt).where(*here).values(cost_nano_usd=99, leaf=row_leaf("attempt", values))


def _delete(ledger):
    yield delete(job_outcome).where(job_outcome.c.stream_id == ledger.stream(), job_outcome.c.ledger_batch == 1)


def _insert(ledger):
    row = next(one for one in ledger.rows(attempt) if one.seq == 1)
    yield insert(attempt).values(dict(row._mapping) | {"recorded_us": row.recorded_us + 1})


def _reorder(ledger):
    mine = attempt.c.stream_id == ledger.stream()
    for before, after in ((4, 1_000), (5, 4), (1_000, 5)):
        yield update(attempt).where(mine, attempt.c.seq == before).values(seq=after)


def _drop_batch(ledger):
    number = 1
    stream = ledger.stream()
    for table in ROWS:
        yield delete(table).where(table.c.stream_id == stream, table.c.ledger_batch == number)
    yield delete(ledger_batch).where(ledger_batch.c.stream_id == stream, ledger_batch.c.batch_number == number)


def _cut_tail(ledger):
    yield from ledger.cut("rescuer-0", 1)


def _drop_stream(ledger):
    yield from ledger.cut("rescuer-0", 0)
    yield delete(ledger_stream).where(ledger_stream.c.slot == "rescuer-0")


def _hide_stream(ledger):
    yield delete(ledger_stream).where(ledger_stream.c.slot == "rescuer-0")


def _drop_seal(ledger):
    yield delete(ledger_seal_leaf).where(ledger_seal_leaf.c.tree_index == 2)


TAMPERED = [
    (_edit, "its rows are not those that it was sealed with"),
    (_delete, "batch 1: it was written with 4 rows, and now has 3"),
    (_insert, "and now has 5"),
    (_reorder, "row 4 of attempt is not what was written"),
    (_drop_batch, "batch 1: it was sealed, and is gone"),
    (_cut_tail, "stream rescuer-0, batch 1: it was sealed, and is gone"),
    (_drop_stream, "batch 0: it was sealed, and is gone"),
    (_hide_stream, "its stream"),
    (_drop_seal, "seal 2 is missing"),
]


@pytest.mark.parametrize(("how", "said"), TAMPERED, ids=[how.__name__ for how, _ in TAMPERED])
def test_tampering_is_found_from_the_database_alone(ledger, how, said):
    ledger.tamper(*how(ledger))
    assert any(said in fault for fault in ledger.faults(published=False)), ledger.faults(published=False)


def test_a_tail_cut_off_with_its_seals_is_found_by_what_was_published(ledger):
    ledger.tamper(*ledger.cut("rescuer-0", 1), *ledger.cut("recorder-0", 3), *ledger.unseal(4))
    assert ledger.faults(published=False) == []
    faults = ledger.faults()
    assert "a checkpoint says that 7 batches were sealed, and 4 are here: the end was cut off" in faults
    assert "1 published checkpoints are not in the database" in faults


def _rewritten(ledger, number):
    """A batch and all after it made anew, chain, seals and all, by someone without the key."""
    stream = ledger.stream()
    batches = sorted(
        (one for one in ledger.rows(ledger_batch) if one.stream_id == stream), key=lambda b: b.batch_number
    )
    leaves = {row.seq: row for table in (attempt, job_outcome) for row in ledger.rows(table) if row.stream_id == stream}
    previous = FIRST_PREVIOUS_HASH
    hashes = {}
    for record in batches:
        seqs = range(record.first_seq, record.first_seq + record.rows_count)
        found, cost = [], 0
        for seq in seqs:
            row = leaves[seq]
            values = dict(row._mapping)
            leaf = values.pop("leaf")
            if record.batch_number == number and seq == record.first_seq:
                values["cost_nano_usd"] = 1
                leaf = row_leaf("attempt", list(values.values()))
                here = (attempt.c.seq == seq, attempt.c.stream_id == stream)
                yield update(attempt).where(*here).values(cost_nano_usd=1, leaf=leaf)
            cost += values.get("cost_nano_usd", 0)
            found.append(leaf)
        root = merkle_root(found)
        changed = {"sum_cost_nano_usd": cost, "merkle_root": root, "previous_hash": previous, "slot": "recorder-0"}
        fields = {**record._mapping, **changed}
        made = batch_hash(BatchRecord(**{name: fields[name] for name in BatchRecord.__struct_fields__}))
        here = (ledger_batch.c.stream_id == stream, ledger_batch.c.batch_number == record.batch_number)
        fields = {"sum_cost_nano_usd": cost, "merkle_root": root, "previous_hash": previous, "batch_hash": made}
        yield update(ledger_batch).where(*here).values(fields)
        hashes[record.batch_number] = previous = made
    for number_, made in hashes.items():
        here = (ledger_seal_leaf.c.stream_id == stream, ledger_seal_leaf.c.batch_number == number_)
        yield update(ledger_seal_leaf).where(*here).values(batch_hash=made)


def test_a_history_made_anew_without_the_key_is_found(ledger):
    ledger.tamper(*_rewritten(ledger, 1))
    assert ledger.faults(published=False) == [
        "the first 4 sealed batches are not those that a checkpoint is of",
        "the first 7 sealed batches are not those that a checkpoint is of",
    ]


def test_a_forked_history_signed_with_the_key_is_found_by_what_was_published(ledger):
    """The worst case: whoever made the history anew has the broker's key too, but not the published file."""
    ledger.tamper(*_rewritten(ledger, 1), delete(ledger_checkpoint))
    tree = GrowingTree()
    for row in sorted(ledger.rows(ledger_seal_leaf), key=lambda one: one.tree_index):
        tree.add(leaf_hash(bytes(row.batch_hash)))
    forged = sign_checkpoint(SIGNER, tree.size, tree.root, NOW_US)
    fields = {"tree_size": tree.size, "root": tree.root, "sealed_us": NOW_US, "note": forged.note}
    ledger.tamper(insert(ledger_checkpoint).values(fields))
    assert ledger.faults(published=False) == []
    assert "two checkpoints of 7 batches contradict each other" in ledger.faults()


def test_published_checkpoints_that_others_made_are_found(ledger):
    stranger, _ = a_signer()
    ledger.file.publish(sign_checkpoint(stranger, 8, b"r" * 32, NOW_US))
    with ledger.path.open("ab") as file:
        file.write(b"noise\n")
    assert ledger.faults() == [
        "published checkpoint 3: its signature is of no key of the broker, or does not match",
        "published checkpoint 4: it is no checkpoint of a ledger",
    ]


@pytest.mark.parametrize("column", ["root", "sealed_us", "note"])
def test_an_edited_checkpoint_is_found(ledger, column):
    value = {"root": b"x" * 32, "sealed_us": 7, "note": "note"}[column]
    ledger.tamper(update(ledger_checkpoint).where(ledger_checkpoint.c.tree_size == 4).values({column: value}))
    assert any("the checkpoint of 4 batches" in fault for fault in ledger.faults())


def test_what_contradicts_a_published_checkpoint_is_not_signed(ledger):
    ledger.tamper(*ledger.cut("rescuer-0", 1), *ledger.cut("recorder-0", 3), *ledger.unseal(4))
    with pytest.raises(BrokerError, match="the ledger has 4 sealed batches, and a published checkpoint says 7"):
        ledger.seal()  # the one that sealed it, with the database set back under it
    ledger.write(5)
    with pytest.raises(BrokerError, match="cut off, or it is an old backup"):
        ledger.another().step()
    assert len(ledger.rows(ledger_checkpoint)) == 1


def test_a_forked_ledger_is_not_signed(ledger):
    ledger.tamper(*_rewritten(ledger, 1))
    with pytest.raises(BrokerError, match="the first 7 sealed batches are not those"):
        ledger.another().step()


def test_a_stream_that_does_not_continue_is_left_unsealed(ledger):
    last = (ledger_batch.c.stream_id == ledger.stream(), ledger_batch.c.batch_number == 5)
    ledger.tamper(update(ledger_batch).where(*last).values(previous_hash=b"x" * 32))
    ledger.write(1, slot="rescuer-0")
    ledger.seal()
    assert ledger.verify().seals.batches == 8
