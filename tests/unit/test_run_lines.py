"""What a run without a terminal says, and how seldom; two lanes."""

from __future__ import annotations

from broker.cli.run_lines import RunLines
from broker.domain.errors import ErrorCode
from broker.health import Rest

GONE = Rest(ErrorCode.ENGINE_UNREACHABLE, 1.0, 2.0)
WRONG = Rest(ErrorCode.ENGINE_MISCONFIGURED, 70.0, 4.0)


def test_a_line_at_the_start_one_at_once_for_each_lane_that_rests_and_one_every_half_minute():
    lines = RunLines()
    said = [
        (now, line)
        for now, resting, on_trial in [
            (0.0, {}, ()),
            (0.2, {"b": GONE}, ()),
            (0.4, {"b": GONE, "a": WRONG}, ()),
            (2.0, {"a": WRONG}, ("b",)),  # b is tried, and fails again
            (2.2, {"a": WRONG, "b": GONE}, ()),
            (9.0, {"a": WRONG}, ("b",)),
            (9.2, {"a": WRONG}, ()),  # b is back
            (9.9, {"a": WRONG, "b": GONE}, ()),  # it comes and goes: the next line in its turn says so
            (10.5, {"a": WRONG}, ()),
            (30.0, {"a": WRONG}, ()),
            (31.0, {"b": GONE}, ()),
            (59.9, {"b": GONE}, ()),
            (60.0, {"b": GONE}, ()),
        ]
        for line in lines.look(now, f"at {now:g}", resting, on_trial)
    ]
    gone = "b (engine_unreachable for 1 s, next try in 2 s)"
    wrong = "a (engine_misconfigured for 70 s, next try in 4 s)"
    assert said == [
        (0.0, "at 0"),
        (0.2, f"Resting: {gone}"),
        (0.4, f"Resting: {wrong}"),
        (9.2, "Back at work: b"),
        (30.0, f"at 30; resting: {wrong}"),
        (31.0, f"Resting: {gone}"),
        (31.0, "Back at work: a"),
        (60.0, f"at 60; resting: {gone}"),
    ]


def test_another_reason_is_told_at_once_unless_the_lane_was_told_of_just_now():
    lines = RunLines()
    assert lines.look(0.0, "begun", {"a": WRONG}, ()) == [
        "begun; resting: a (engine_misconfigured for 70 s, next try in 4 s)"
    ]
    assert lines.look(29.0, "on", {"a": GONE}, ()) == []
    assert "engine_unreachable" in lines.look(31.0, "on", {"a": GONE}, ())[0]
    assert lines.look(45.0, "on", {"a": WRONG, "b": GONE}, ()) == [
        "Resting: b (engine_unreachable for 1 s, next try in 2 s)"
    ]
