"""`petlpack survey`: problems in JSON are errors like all others, each with its code."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from tests.support.command_line import ERROR, run, run_json


def test_neither_a_run_nor_a_pack_is_an_error_beside_the_account(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    code, answer = run_json("survey", tmp_path / "notes")
    assert (code, answer["files"], answer["error"]["type"], answer["error"]["code"]) == (1, 1, "RunError", "run")
    assert answer["error"]["message"] == f"no pack or run in '{tmp_path / 'notes'}'"
    result = run("survey", tmp_path / "notes")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: no pack or run in '{tmp_path / 'notes'}'\nHint: a run has ")


@pytest.mark.parametrize("size", [4, 100])
def test_what_cannot_be_read_has_a_code_and_a_hint(size: int, place: Path, tmp_path: Path) -> None:
    for name in ("run", "loose"):
        (tmp_path / name).mkdir()
    whole = (place / "sst2" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").write_bytes(whole[:size])
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "loose" / "gone.safetensors").symlink_to("nowhere")
    code, answer = run_json("survey", tmp_path, place / "rte")
    assert code == 3
    problems = {row["path"]: row["problem"] for row in answer["runs"]}
    assert problems.pop(str(place / "rte")) is None
    for error in (*problems.values(), *answer["unreadable"].values()):
        jsonschema.validate(error, ERROR)
    assert problems[str(tmp_path / "run")]["type"] == "RunError"
    assert answer["unreadable"][str(tmp_path / "loose" / "gone.safetensors")]["code"] == "os"
    assert answer["error"] is None
