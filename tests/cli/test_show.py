"""`petlpack show`: what a task is made of, and which part of it is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import petlpack
from tests.support.command_line import ESC, damage, rewrite, run, run_json
from tests.support.small_runs import make_base, make_pair, write_run


@pytest.mark.parametrize("holds", ["template", "base table", "config.json", "19 tensors"])
def test_a_missing_shared_part_of_any_kind_is_4_for_show(holds: str, methods: Path, tmp_path: Path) -> None:
    pack = Path(shutil.copytree(methods / "p", tmp_path / "p"))
    parts = run_json("show", pack, "hyper.a")[1]["shared"]
    assert len(parts) == 4
    (sha256,) = (part["sha256"] for part in parts if part["holds"] == [holds])
    (pack / "shared" / f"{sha256}.petl.safetensors").unlink()
    result = run("show", pack, "hyper.a")
    assert result.exit_code == 4
    assert result.stderr.startswith(f"Error: shared part {sha256} is missing from pack ")
    assert run_json("show", pack, "hyper.a")[1]["error"]["type"] == "DamageError"
    code, answer = run_json("verify", pack, "--base", methods / "t5")
    assert (code, answer["damaged"]) == (4, 2)
    assert {one["name"] for one in answer["checked"] if not one["ok"]} == {"hyper.a", "hyper.b"}


@pytest.mark.parametrize("kept", [True, False])
def test_a_missing_shared_part_is_4_for_show(kept: bool, pack: Path) -> None:
    parts = run_json("show", pack, "sst2")[1]["shared"]
    assert [part["holds"] for part in parts] == [["template"], ["base table"], ["config.json"]]
    sha256 = next(part["sha256"] for part in parts if part["holds"] == (["config.json"] if kept else ["template"]))
    (pack / "shared" / f"{sha256}.petl.safetensors").unlink()
    result = run("show", pack, "sst2")
    assert result.exit_code == 4
    assert result.stderr.startswith(f"Error: shared part {sha256} is missing from pack ")
    assert run_json("show", pack, "sst2")[1]["error"]["type"] == "DamageError"


def test_a_damaged_task_is_4_for_show_and_decode(place: Path, pack: Path, tmp_path: Path) -> None:
    (pack / "tasks" / "sst2.petl.safetensors").write_bytes(b"not much")
    assert run("show", pack, "sst2").exit_code == 4
    damage(pack, "rte")
    assert run("decode", pack, "rte", tmp_path / "out", "--base", place / "base").exit_code == 4
    assert not (tmp_path / "out").exists()


def test_what_has_no_rule_shows_none(place: Path) -> None:
    facts = run_json("show", place / "p", "sst2")[1]
    assert facts["rule"] is None
    assert facts["facts"]["layout"] == "transformers"
    assert "Rebuilt as" not in run("show", place / "p", "sst2").stdout


def test_show_counts_what_is_unchanged(place: Path, tmp_path: Path) -> None:
    tuned = make_pair(3)[0]
    base = make_base()
    unchanged = "embeddings.word_embeddings.weight"
    write_run(tmp_path / "frozen", {**tuned, f"bert.{unchanged}": base[unchanged]}, {"_name_or_path": "a/base"})
    run("encode", tmp_path / "frozen", "--base", place / "base", "--pack", tmp_path / "q")
    answer = run_json("show", tmp_path / "q", "frozen")[1]
    assert answer["tensors"] == {"count": 13, "unchanged": 1, "aliases": 0, "stored": 12}
    sha256 = answer["base"].pop("sha256")
    path = str(place / "base")
    assert answer["base"] == {"name": "base", "tensors": 11, "path": path, "needed": True}
    assert sha256 == petlpack.open(tmp_path / "q")["frozen"].template.base_table
    assert answer["payload_bytes"] == sum(row["bytes"] for row in answer["sections"]) < answer["bytes"]
    assert answer["files"] == [{"file": "config.json", "bytes": (tmp_path / "frozen" / "config.json").stat().st_size}]
    text = run("show", tmp_path / "q", "frozen").stdout
    assert "1 unchanged from the base" in text
    assert f"11 tensors of it; 'base' ({path} when it was encoded), sha256 {sha256}" in " ".join(text.split())
    assert not run_json("show", place / "p", "adapter")[1]["base"]["needed"]


def test_names_in_json_are_as_they_are_and_on_a_terminal_escaped(pack: Path) -> None:
    facts = petlpack.open(pack)["sst2"].manifest.facts
    rewrite(pack, "sst2", facts={**facts, "method": f"lo{ESC}ra", "layout": "a\nb", "score": [f"acc{ESC}", "0.5"]})
    _, answer = run_json("show", pack, "sst2")
    assert (answer["method"], answer["layout"]) == (answer["facts"]["method"], answer["facts"]["layout"])
    assert answer["method"] == f"lo{ESC}ra"
    commands: list[list[str | Path]] = [["list", pack, "--long"], ["stats", pack]]
    for command in commands:
        _, answer = run_json(*command)
        assert f"lo{ESC}ra" in [row["method"] for row in answer["tasks"]]
    assert next(row["score"]["metric"] for row in answer["tasks"] if row["score"]) == f"acc{ESC}"
    commands += [["show", pack, "sst2"], ["stats", pack, "--task", "sst2"]]
    commands += [["stats", pack, "--by", "method", "--csv"], ["stats", pack, "--by", "method", "--md"]]
    for command in commands:
        assert "\x1b" not in run(*command).output
