"""`petlpack stats`: figures that add up, and damage told apart; tests/analyze has what they are."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.command_line import run, run_json


def test_stats_tell_the_bytes_of_damaged_tasks_apart(pack: Path) -> None:
    (pack / "tasks" / "adapter.petl.safetensors").write_bytes(b"x" * 1234)
    text = run("stats", pack).stdout
    assert re.search(r"^1 unreadable task +1\.2 kB +1,234$", text, re.MULTILINE)
    assert re.search(r"^pack.json and other files +37 B +37$", text, re.MULTILINE)
    assert "parts that no readable task uses" in text
    assert "(gc)" not in text
    (pack / "tasks" / "adapter.petl.safetensors").unlink()
    text = run("stats", pack).stdout
    assert "parts that no task uses (gc)" in text
    assert "damaged" not in text


def test_stats_add_up_and_fold_many_tasks(pack: Path) -> None:
    octets = (pack / "tasks" / "sst2.petl.safetensors").read_bytes()
    for i in range(30):
        (pack / "tasks" / f"copy-{i}.petl.safetensors").write_bytes(octets)
    answer = run_json("stats", pack)[1]
    on_disk = sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())
    told = sum(row["bytes"]["total"] for row in answer["tasks"]) + sum(row["bytes"] for row in answer["shared"])
    assert answer["disk_bytes"] == on_disk == told + answer["other_bytes"]
    text = run("stats", pack).stdout
    assert f"{on_disk:,}" in text
    assert "13 more (--all)" in text
    assert "From 2 tasks on, the pack is smaller than dense models, the base counted once.\n" in text
    assert "more (--all)" not in run("stats", pack, "--all").stdout


def test_json_says_of_which_tasks_the_bounds_are_missing(place: Path) -> None:
    code, answer = run_json("stats", place / "p", "--by", "section", "--bounds")
    assert code == 5
    assert {name: error["code"] for name, error in answer["failed"].items()} == {
        "rte": "base-missing",
        "sst2": "base-missing",
    }
    code, answer = run_json("stats", place / "p", "--by", "section", "--bounds", "--base", place / "base")
    assert (code, answer["failed"]) == (0, {})
