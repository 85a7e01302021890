"""Builds and schemas of different times: who works on what, and who keeps a contract from being run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.rules.schema_fit import Build, SchemaState, judge, older_sessions, session_name

UNIQUE = "0123456789abcdef0123"


def files(*phases):
    """A history's file names: True is of the contract phase; the first never is."""
    return [f"{n:04}_{'contract_' if contract else ''}step.py" for n, contract in enumerate((False, *phases), 1)]


histories = st.lists(st.booleans(), max_size=8).map(lambda phases: files(*phases))


def test_a_build_needs_what_comes_before_the_contracts_that_end_its_history():
    assert Build.of_files(files(False, True, True)) == Build(("0001", "0002", "0003", "0004"), "0002")
    assert Build.of_files(files(True, False)) == Build(("0001", "0002", "0003"), "0003")
    assert Build.of_files(["__init__.py", "0001_contracts_of_work.py", "0002_contract_old.py"]).needed == "0001"


@given(histories, st.integers(0, 8))
def test_a_build_works_on_its_own_schema_from_what_it_needs_on(names, at):
    build = Build.of_files(names)
    revision = build.revisions[at % len(build.revisions)]
    expected = SchemaState.CURRENT if revision >= build.needed else SchemaState.OLDER
    assert judge(build, revision, "0001") is expected


@given(histories, st.integers(1, 20), st.integers(0, 30))
def test_of_a_later_schema_the_floor_alone_decides(names, further, floor):
    build = Build.of_files(names)
    later = f"{len(names) + further:04}"
    expected = SchemaState.AHEAD if floor <= int(build.needed) else SchemaState.NEWER
    assert judge(build, later, f"{floor:04}") is expected


@given(histories, st.text(max_size=6).filter(lambda text: not text.isdecimal()))
def test_what_is_no_number_is_none_of_ours(names, odd):
    build = Build.of_files(names)
    assert judge(build, odd, "0001") is SchemaState.FOREIGN
    assert judge(build, "9999", odd) is SchemaState.NEWER


def test_sessions_say_which_build_they_are_of():
    sessions = [
        (1, session_name("broker all roles", "0010", UNIQUE)),
        (2, session_name("broker " + "x" * 80, "0012", UNIQUE)),
        (3, f"broker recorder+relay {UNIQUE}"),  # as builds of before 0010 call themselves
        (4, f"broker {UNIQUE}"),
        (5, "psql"),
        (6, "leader recorder"),
        (7, ""),
        (8, f"someone's broker 0001 {UNIQUE}"),
    ]
    assert all(len(name) <= 63 for _, name in sessions)
    assert older_sessions(sessions, "0010") == ["session 3 (broker recorder+relay)", "session 4 (broker)"]
    assert older_sessions(sessions, "0012") == [
        "session 1 (broker all roles 0010)",
        "session 3 (broker recorder+relay)",
        "session 4 (broker)",
    ]
    assert older_sessions(sessions[1:2], "0012") == []
