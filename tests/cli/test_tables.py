"""Tables, whichever command prints them: names and numbers in their columns, and rows that cannot be read."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

import petlpack
from petlpack_cli.output.sizes import bar, ratio, size
from tests.support.command_line import LONG, rewrite, run, run_json
from tests.support.sampling import Sample


@pytest.mark.parametrize("command", ["stats", "list"])
def test_tables_go_on_past_damage_with_4(command: str, pack: Path) -> None:
    (pack / "tasks" / "sst2.petl.safetensors").write_bytes(b"not much")
    given: list[str | Path] = [command, pack, *(["--long"] if command == "list" else [])]
    result = run(*given)
    assert result.exit_code == 4
    assert "rte" in result.stdout
    assert result.stderr.startswith("Error: sst2: ")
    code, answer = run_json(*given)
    assert code == 4
    assert "sst2" in json.dumps(answer)


@pytest.mark.parametrize(("command", "code"), [(["stats"], 7), (["list", "--long"], 7)])
def test_tables_go_on_past_a_codec_of_a_newer_version(command: list[str], code: int, pack: Path) -> None:
    rewrite(pack, "sst2", codec="novel")
    result = run(*command, pack)
    assert result.exit_code == code
    assert re.search(r"^rte +", result.stdout, re.MULTILINE)
    assert result.stderr.startswith("Error: sst2: unknown codec 'novel'")
    assert ("cannot be read" in result.stdout) == (command[0] == "list")
    code_again, answer = run_json(*command, pack)
    assert code_again == code
    assert "unknown codec 'novel'" in json.dumps(answer)


NONSENSE = [5, "x", [], [{}], None, {"a": [1]}, True, -1, 2**63 - 1, "1e308", "1e999", "0.5"]


@pytest.mark.parametrize(
    "fact",
    [
        "figures",
        "options",
        "layout",
        "method",
        "task",
        "exact",
        "density",
        "error",
        "run_bytes",
        "whole",
        "score",
        "note",
    ],
)
@pytest.mark.exhaustive(4)
@pytest.mark.parametrize("task", ["mask.a", "merge", "sst2"])
def test_no_fact_is_trusted(fact: str, task: str, place: Path, methods: Path, tmp_path: Path, sample: Sample) -> None:
    origin = place if task == "sst2" else methods
    pack = Path(shutil.copytree(origin / "p", tmp_path / "p"))
    run_dir = origin / task.partition(".")[0]
    known = petlpack.open(pack)[task].manifest.facts
    inner = [{"trained": value, "kept": value, "base": value} for value in NONSENSE] if fact == "figures" else []
    if fact == "options":
        inner = [dict.fromkeys(("combine", "activation", "keep_experts", "bake"), value) for value in NONSENSE]
    for value in sample([*NONSENSE, *inner]):
        rewrite(pack, task, facts={**known, fact: value})
        commands: list[list[str | Path]] = [
            ["show", pack, task],
            ["stats", pack],
            ["list", pack, "--long"],
            ["verify", pack, task, "--base", place / "base", "--against", run_dir],
            ["decode", pack, task, tmp_path / "out", "--base", place / "base", "--to", "safetensors"],
        ]
        for given in commands:
            for form in ([], ["--json"]):
                result = run(*given, *form)
                shutil.rmtree(tmp_path / "out", ignore_errors=True)
                told = f"{fact} {value!r:.40}: {given[0]}: {result.output}"
                assert "internal error" not in result.output, told
                if given[0] != "verify":  # which reads the run again by what the facts say
                    assert result.exit_code == 0, told


def test_long_names_are_folded_not_lost(place: Path, tmp_path: Path) -> None:
    run("encode", place / "sst2", "--task", LONG, "--base", place / "base", "--pack", tmp_path)
    for command in (["list"], ["list", "--long"], ["stats"]):
        result = run(*command, tmp_path, env={"COLUMNS": "80"})
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert LONG in "".join(line.split("  ")[0].strip() for line in lines)
        assert LONG in run(*command, tmp_path).stdout  # whole in a pipe


BAR = "".join(bar(part, 8, 1) for part in range(9))


@pytest.mark.parametrize("width", [10, 40, 60, 79, 80, 81, 82, 120])
@pytest.mark.parametrize("command", [["list"], ["list", "--long"], ["stats"], ["encode"]])
def test_numbers_stand_beside_the_name_of_their_task(
    command: list[str], width: int, place: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["q", "distilbert-sst2-seed42", "llama-lora-r16-alpaca-1", "distilbert-mnli-seed7", "x" * 24, "y" * 25]
    arguments: list[str | Path] = [*command, pack]
    if command == ["encode"]:
        (encoded,) = petlpack.encode(place / "sst2", tmp_path / "q", place / "base")
        renamed = lambda run, *_, **__: [dataclasses.replace(encoded, name=run.name)]  # noqa: E731
        monkeypatch.setattr("petlpack.encoding.runs.encode", renamed)
        arguments = [*command, *names]
    octets = (pack / "tasks" / "sst2.petl.safetensors").read_bytes()
    for name in names:
        (pack / "tasks" / f"{name}.petl.safetensors").write_bytes(octets)
    lines = run(*arguments, env={"COLUMNS": str(width)}).stdout.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("\u2500")]
    shown: list[str] = []
    for line in lines[rules[0] + 1 : rules[1]]:
        line = line.rstrip(f"{BAR} ")
        name, *cells = re.split(r" {2,}", line)
        if cells:
            shown.append(name)
            assert not any("\u2026" in cell for cell in cells if re.match("[0-9.]", cell))
            assert re.search(r" \d+(\.\d)? k?B$|[0-9.]+x$|-$", line)
        else:
            shown[-1] += name
    assert {*names} <= {*shown} <= {*names, "sst2", "rte", "adapter"}
    if width >= 80:
        assert max(map(len, lines[: rules[1]])) <= width


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (438_000_000, "438.0 MB"),
        (14 * 10**9, "14.0 GB"),
        (5 * 10**19, "50000.0 PB"),
    ],
)
def test_sizes_are_decimal(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("before", "after", "text"), [(100, 50, "2.00x"), (100, 8, "12.5x"), (9000, 7, "1,286x"), (0, 5, "-"), (5, 0, "-")]
)
def test_ratios_have_three_digits(before: int, after: int, text: str) -> None:
    assert ratio(before, after) == text
