"""`petlpack list`: names in order, and what is not known said to be so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import petlpack
from tests.support.command_line import LONG, rewrite, run, run_json


@pytest.mark.parametrize("nbytes", [2**63 - 1, 2**62, -5, "1", True, "many", None], ids=lambda nbytes: str(nbytes)[:20])
def test_a_fact_that_makes_no_sense_is_not_known(nbytes: object, pack: Path) -> None:
    rewrite(pack, "sst2", facts={**petlpack.open(pack)["sst2"].manifest.facts, "run_bytes": nbytes})
    result = run("list", pack, "--long")
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"^sst2 +full fine-tune +ulp +\? +[0-9.]+ k?B +-$", result.stdout, re.MULTILINE)
    known = {row["name"]: row["run_bytes"] for row in run_json("list", pack, "--long")[1]["tasks"]}
    assert known["sst2"] is None
    assert known["rte"] > 0


def test_a_newer_pack_is_7(pack: Path) -> None:
    (pack / "pack.json").write_text('{"format": "petlpack", "version": 2}', encoding="utf-8")
    result = run("list", pack)
    assert result.exit_code == 7
    assert "upgrade" in result.stderr


def test_list_is_by_name_or_the_biggest_first(pack: Path) -> None:
    names = [row["name"] for row in run_json("list", pack)[1]["tasks"]]
    assert names == sorted(names) == run("list", pack, "-q").stdout.split()
    sizes = [row["bytes"] for row in run_json("list", pack, "--sort", "bytes")[1]["tasks"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes == [row["bytes"] for row in run_json("list", pack, "--sort", "bytes", "--long")[1]["tasks"]]


def test_list_of_a_thousand_is_whole_and_in_order(pack: Path) -> None:
    octets = (pack / "tasks" / "sst2.petl.safetensors").read_bytes()
    names = sorted([f"task-{i:04}" for i in range(1000)] + ["sst2", "rte", "adapter", LONG, "x" * 25, "y" * 24])
    for name in names:
        (pack / "tasks" / f"{name}.petl.safetensors").write_bytes(octets)
    lines = run("list", pack).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:-2]] == names
    assert {line.rstrip()[-2:] for line in lines[2:-2]} == {"kB"}
    assert lines[-1].startswith("1,006 tasks")
    assert run("list", pack, "-q").stdout.split() == names
