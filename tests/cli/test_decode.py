"""`petlpack decode`: the run as it was, and what is lost for another library."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.command_line import METHOD_TASKS, run, run_json


@pytest.mark.parametrize("task", METHOD_TASKS)
def test_decode_writes_for_other_libraries_and_says_what_is_lost(task: str, methods: Path, tmp_path: Path) -> None:
    given: list[str | Path] = ["decode", methods / "p", task]
    base: list[str | Path] = ["--base", methods / "t5"]
    code, whole = run_json(*given, tmp_path / "run", *base)
    assert (code, whole["to"], len(whole["notes"])) == (0, "run", int(task.startswith("mask")))
    code, answer = run_json(*given, tmp_path / "tensors", "--to", "safetensors")  # the rule needs no base
    assert (code, answer["to"]) == (0, "safetensors")
    assert [row["file"] for row in answer["files"]] == ["model.safetensors"]
    code, answer = run_json(*given, tmp_path / "hub", "--to", "adapterhub", *base)
    assert (code, answer["to"]) == (0, "adapterhub")
    assert {"adapter_config.json", "pytorch_adapter.bin"} <= {row["file"] for row in answer["files"]}
    loud, quiet = (
        run(*given, tmp_path / name, "--to", "adapterhub", *base, *q) for name, q in (("l", []), ("q", ["-q"]))
    )
    assert loud.stderr.count("Warning: ") == len(answer["notes"])
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert "bit for bit" not in loud.stdout
    assert bool(answer["notes"]) == task.startswith("hyper")


def test_decode_gives_the_run_back(place: Path, pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    code, answer = run_json("decode", pack, "sst2", out, "--base", place / "base", "--jobs", "1")
    assert code == 0
    assert {row["file"]: row["bytes"] for row in answer["files"]} == {
        path.name: path.stat().st_size for path in out.iterdir()
    }
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (place / "sst2" / file).read_bytes()
    assert answer["decoded_sha256"] == run_json("show", pack, "sst2")[1]["decoded_sha256"]


def test_decode_says_that_it_wrote_code_and_can_leave_it_out(place: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(place / "sst2", tmp_path / "coded"))
    (source / "modeling_x.py").write_text("pass\n", encoding="utf-8")
    given: list[str | Path] = ["--pack", tmp_path / "q", "--base", place / "base"]
    assert run("encode", source, *given).exit_code == 0
    given = ["decode", tmp_path / "q", "coded"]
    loud = run(*given, tmp_path / "loud", "--base", place / "base")
    assert loud.stderr.startswith("Warning: wrote code or pickles of the run, which loading may execute: modeling_x.py")
    code, answer = run_json(*given, tmp_path / "out", "--base", place / "base", "--no-code")
    assert (code, answer["notes"]) == (0, ["left out code and pickles, which loading may need: modeling_x.py"])
    assert [row["file"] for row in answer["files"]] == ["config.json", "model.safetensors"]
