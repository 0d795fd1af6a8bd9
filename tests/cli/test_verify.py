"""`petlpack verify`: which part is damaged, how deep it looked, and what another base is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.command_line import damage, run, run_json


@pytest.mark.parametrize("given", [[], ["sst2"]])
def test_damage_is_4_and_names_the_part(given: list[str], pack: Path) -> None:
    path = damage(pack, "sst2")
    result = run("verify", pack, *given)
    assert result.exit_code == 4
    assert result.stdout.startswith(f"task 'sst2': '{path}'")
    assert "Damage in 1 of" in result.stdout
    assert "Damage" not in run("verify", pack, *given, "-q").stdout
    code, answer = run_json("verify", pack, *given)
    assert (code, answer["damaged"]) == (4, 1)
    assert [one["error"]["type"] for one in answer["checked"] if not one["ok"]] == ["DamageError"]


def test_another_base_is_5_for_verify_and_no_damage(place: Path, pack: Path) -> None:
    result = run("verify", pack, "--base", place / "rte")
    assert (result.exit_code, result.stderr) == (5, "")
    assert f"task 'rte': base '{place / 'rte'}' has no tensor " in result.stdout
    assert f"task 'adapter': base '{place / 'rte'}' is not the one that task 'adapter' adapts" in result.stdout
    assert "2 tasks with another base: every byte checked, no weight decoded.\n" in result.stdout
    assert "1 task of another base: every byte checked and every weight decoded.\n" in result.stdout
    assert "No damage in 8 parts.\n" in result.stdout  # tasks, templates, the base's table, config and adapter_config
    code, answer = run_json("verify", pack, "--base", place / "rte")
    assert (code, answer["damaged"]) == (5, 0)
    assert [one["error"]["type"] for one in answer["checked"] if not one["ok"]] == ["BaseError"] * 3
    damage(pack, "sst2")
    code, answer = run_json("verify", pack, "--base", place / "rte")
    assert (code, answer["damaged"]) == (4, 1)


def test_verify_says_how_deep_it_went(place: Path, pack: Path) -> None:
    shallow = run("verify", pack).stdout
    assert "2 tasks: every byte checked.\n" in shallow
    assert "1 task: every byte checked and every weight decoded.\n" in shallow
    assert "--base" in shallow
    deep = run("verify", pack, "--base", place / "base").stdout
    assert "3 tasks: every byte checked and every weight decoded.\n" in deep
    assert "--base" not in deep
    given: list[str | Path] = ["verify", pack, "sst2", "--base", place / "base", "--against"]
    assert "1 task: every weight decoded, and equal to what the run gives.\n" in run(*given, place / "sst2").stdout
    assert run(*given, place / "rte").exit_code == 4


def test_what_is_no_run_of_the_task_is_no_damage(place: Path, methods: Path, tmp_path: Path) -> None:
    """It is read before anything is checked: none of this is told of the pack."""
    several = methods / "hyper"
    for given, words in {
        tmp_path / "nothing": "no run at",
        place / "sst2" / "config.json": "is not a run",
        place / "p": "is a pack, expected a run",
        several: "task 'sst2' was encoded from a run of one task, but",
    }.items():
        result = run("verify", place / "p", "sst2", "--base", place / "base", "--against", given)
        assert (result.exit_code, result.stdout) == (1, ""), given
        hint = "give the run that the task was encoded from"
        assert re.fullmatch(rf"Error: .*{words}.*\nHint: {hint}\n", result.stderr), result.stderr
    result = run("verify", methods / "p", "mask.a", "--against", place / "adapter")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "task 'mask.a' was encoded from task 'a' of a run, but" in result.stderr
    assert run("verify", place / "p", "cola", "--against", place / "sst2").exit_code == 1


def test_a_base_that_nobody_gave_is_no_other_base(place: Path, pack: Path) -> None:
    result = run("verify", pack, "sst2", "--against", place / "sst2")
    assert result.exit_code == 5
    assert result.stdout.startswith("task 'sst2' needs its base to decode")
    assert "1 task without its base: every byte checked, no weight decoded.\n" in result.stdout
    assert "another base" not in result.stdout


def test_a_run_that_differs_says_where_and_what_to_do(place: Path, pack: Path) -> None:
    result = run("verify", pack, "sst2", "--base", place / "base", "--against", place / "rte", "--json")
    error = json.loads(result.stdout)["checked"][0]["error"]
    assert (result.exit_code, error["code"]) == (4, "run-differs")
    assert error["hint"]
