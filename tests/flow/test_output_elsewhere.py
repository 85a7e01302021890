"""`--output` of a file that was run before: checked when the command starts, not when its jobs are done."""

from __future__ import annotations

import pytest

from tests.flow.program import Program, custom_ids, lane, request


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "under way"])
def test_another_output_that_cannot_be_written_is_refused_at_the_start_and_changes_nothing(tmp_path, finished):
    program = Program(tmp_path)
    program.give(request(number) for number in range(3))
    if finished:
        program.finish()
    else:  # it is known, and its engine never began
        absent = {"model_path": str(tmp_path / "none.gguf")}
        program.catalog.write_text(lane("one", "azure-gpu", driver="llama_cpp", options=absent))
        assert program.run().code == 1
        program.three_lanes()
    calls = program.calls()
    taken = tmp_path / "taken"
    taken.write_text("a file")
    (tmp_path / "folder.jsonl").mkdir()
    for output, why in ((taken / "out.jsonl", "File exists"), (tmp_path / "folder.jsonl", "it is a folder")):
        ran = program.run("--output", str(output))
        assert (ran.code, ran.sentence) == (2, f"can't write {output}: {why}")
        assert program.calls() == calls
    program.finish()
    assert custom_ids(program.output) == ["job-0", "job-1", "job-2"]
    program.finish("--output", str(tmp_path / "elsewhere" / "out.jsonl"))
    assert custom_ids(tmp_path / "elsewhere" / "out.jsonl") == ["job-0", "job-1", "job-2"]
