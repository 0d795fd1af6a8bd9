"""`petlpack verify`: which part is damaged, how deep it looked, and what another base is."""

from __future__ import annotations

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
