"""`petlpack plan`: what people and programs see, what is refused, and that nothing is left behind."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import petlpack
from tests.support.command_line import ROOT, SCHEMAS, table
from tests.support.plans import DENSE, METHODS, commands_of, offers_of, planned_place, run, run_json, with_methods
from tests.support.small_runs import nudged, weights, write_run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return planned_place(tmp_path, monkeypatch)


@pytest.fixture
def methods(place: Path) -> Path:
    return with_methods(place)


def test_the_tables_are_80_columns_and_commands_are_whole(methods: Path) -> None:
    for name in ("much", "little", "none", *METHODS):
        result = run("plan", *commands_of(methods, name))
        assert (result.exit_code, result.stderr) == (0, "")
        assert max(map(len, result.stdout.splitlines())) <= 80
    text = run("plan", "much", "--base", "base").stdout
    assert "petlpack encode much --base base --codec ulp --level fast\n" in text
    assert "ulp (auto)" in text
    assert "Not sparse: " in text


def test_many_runs_get_a_row_each_and_all_shows_every_offer(place: Path) -> None:
    names = ["much", "little", "none", "adapter"]
    text = run("plan", *names, "--base", "base").stdout
    assert text.count("(auto)") == 4
    assert "Use --all to show every offer of every run.\n" in text
    assert "4 runs of " in text
    assert text.endswith("\npetlpack encode much little none adapter --base base\n")
    every = run("plan", *names, "--base", "base", "--all").stdout
    plans = petlpack.plan(names, "base")
    offers = {run.path: sum(offer.refused is None for offer in run.offers) for run in plans.runs}
    assert offers["much"] == len(DENSE) - 1  # `sparse` does not take it
    assert every.count("petlpack encode ") == sum(offers.values()) + 1
    assert "--all" not in every
    quiet = run("plan", *names, "--base", "base", "-q")
    assert (quiet.stdout.count("\n"), quiet.stderr) == (4, "")
    assert all(line.startswith("petlpack encode ") for line in quiet.stdout.splitlines())


def test_hostile_paths_stay_one_word(place: Path) -> None:
    name = "-a b';x"
    shutil.copytree(place / "much", place / "sub" / name)
    os.chdir(place / "sub")
    words = shlex.split(run("plan", "--base", "../base", "-q", "--", name).stdout)
    assert words == ["petlpack", "encode", f"./{name}", "--base", "../base", "--codec", "ulp"]
    code, answer = run_json(*words[1:], "--pack", "p")
    assert (code, [row["name"] for row in answer["tasks"]]) == (0, ["a-b-x"])
    shutil.copytree(place / "much", place / "sub dir" / "-x")
    os.chdir(place / "sub dir")
    words = shlex.split(run("plan", "--base", "../base", "-q", "--", "-x").stdout)
    assert words == ["petlpack", "encode", "./-x", "--base", "../base", "--codec", "ulp"]
    os.chdir(place)
    words = shlex.split(run("plan", "sub dir/-x", "--base", "base", "-q").stdout)
    assert run(*words[1:], "--task", "x", "--pack", "p").exit_code == 0


def test_a_full_fine_tune_without_a_base_can_be_plain(place: Path) -> None:
    result = run("plan", "much")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "needs its base, but no base was given" in result.stdout.replace("\n", " ")
    assert result.stdout.count("petlpack encode much --codec plain\n") == 1
    offers = offers_of(petlpack.plan("much").runs[0])
    assert {label for label, offer in offers.items() if isinstance(offer.refused, petlpack.BaseError)} == {
        label for label, one in DENSE.items() if one.codec is not None and one.codec.uses_base
    }
    sampled = offers_of(petlpack.plan("much", sample=0.5).runs[0])
    assert {label for label, offer in sampled.items() if offer.refused is None} == {"plain"}


BAD: dict[str, tuple[list[str], int, str]] = {
    "no run": (["nothing"], 1, "no run at 'nothing'"),
    "an empty directory": (["empty"], 1, "'empty' is empty"),
    "not a base": (["much", "--base", "nothing"], 5, "no base at 'nothing'"),
    "a method without its base": (["hyper"], 5, "needs its base"),
    "a setting is missing": (["mask"], 1, "combine"),
    "a setting that there is not": (["much", "--set", "colour=red"], 2, "unknown setting 'colour'"),
    "no setting": (["much", "--set", "combine"], 2, "--set needs KEY=VALUE, got 'combine'"),
    "two settings": (["much", "--set", "combine=or", "--set", "combine=and"], 2, "setting combine is given twice"),
    "no sample": (["much", "--sample", "0"], 2, "0.0 is not in the range"),
    "all as a sample": (["much", "--sample", "1"], 2, "1.0 is not in the range"),
    "a sample that is no number": (["much", "--sample", "nan"], 2, "sample must be in (0, 1), got nan"),
    "the base of another method": (["hyper", "--base", "base"], 5, "in the run and [16] in the base"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_single_run_that_fails_exits_with_its_code(methods: Path, case: str) -> None:
    (methods / "empty").mkdir()
    arguments, code, message = BAD[case]
    result = run("plan", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Hint: " in result.stderr
    failed, answer = run_json("plan", *arguments)
    assert (failed, set(answer)) == (code, {"schema_version", "error"})
    assert list((methods / "scratch").iterdir()) == []


def test_of_several_runs_those_that_fail_do_not_stop_the_rest(place: Path) -> None:
    shutil.copytree("much", "other/Much")
    names = ["nothing", "much", "much/", "other/Much", "adapter"]
    result = run("plan", *names, "--base", "base")
    assert result.exit_code == 3
    assert "2 runs of " in result.stdout
    assert result.stdout.endswith("\npetlpack encode much adapter --base base\n")
    assert "Error: nothing: no run at 'nothing'\nHint: " in result.stderr
    assert "Error: much: 'much' is given twice\nHint: " in result.stderr
    assert "'other/Much' would become task 'Much', but so would 'much'" in result.stderr
    code, answer = run_json("plan", *names, "--base", "base")
    assert code == 3
    assert [row["run"] for row in answer["failed"]] == ["nothing", "much", "other/Much"]
    jsonschema.validate(answer, SCHEMA)
    code, answer = run_json("plan", "nothing", "empty")
    assert (code, answer["runs"], answer["pack"]) == (3, [], None)
    jsonschema.validate(answer, SCHEMA)


def test_settings_that_nothing_depends_on_are_a_warning(place: Path) -> None:
    result = run("plan", "much", "--base", "base", "--set", "combine=or")
    assert result.exit_code == 0
    assert "Warning: much: setting combine has no effect on this run\n" in result.stderr
    assert "--set combine=or --codec ulp\n" in result.stdout


def test_nothing_is_written_but_in_a_temporary_directory(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.parent.name != "scratch"}
    assert run("plan", "much", "little", "--base", "base").exit_code == 0
    assert run("plan", "much", "--base", "base", "--sample", "0.3").exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.parent.name != "scratch"}
    assert {path for path in before.keys() ^ after.keys()} == set()
    assert {path for path in before if before[path] != after[path]} <= {place / "scratch"}
    assert list((place / "scratch").iterdir()) == []


def test_a_temporary_directory_that_cannot_be_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(place / "nowhere"))
    result = run("plan", "much", "--base", "base")
    assert result.exit_code == 2
    assert "cannot create a temporary directory in" in result.stderr
    assert "Hint: set TMPDIR" in result.stderr
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(errno.ENOSPC, "No space left on device"), 1), (KeyboardInterrupt(), 130)]
)
def test_what_goes_wrong_while_writing_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("petlpack.container.write", fail)
    result = run("plan", "much", "--base", "base")
    assert result.exit_code == code
    assert list((place / "scratch").iterdir()) == []
    if code == 1:
        assert "No space left on device: '" in result.stderr
        assert "petlpack-plan-" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing(place: Path, name: str, code: int) -> None:
    base = {f"layer.{i}.weight": weights("F32", (1024, 1024), i) for i in range(8)}
    write_run(place / "big-base", base)
    write_run(place / "big", {name: nudged(tensor, i) for i, (name, tensor) in enumerate(base.items())})
    process = subprocess.Popen(
        [sys.executable, "-m", "petlpack_cli", "plan", "big", "--base", "big-base"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),  # nohup has it ignored
    )
    wait_for(lambda: any((place / "scratch").rglob(".tmp-*")))
    process.send_signal(getattr(signal, name))
    told, complaint = process.communicate(timeout=60)
    assert (process.returncode, told, complaint) == (code, "", "interrupted\n" if name == "SIGINT" else "")
    assert list((place / "scratch").iterdir()) == []
    assert not (place / "pack").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_signals_do_afterwards_what_they_did_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    known = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def look(*_: Any, **__: Any) -> petlpack.Plans:
        seen.extend(map(signal.getsignal, (signal.SIGHUP, signal.SIGTERM)))
        raise RuntimeError

    monkeypatch.setattr(petlpack, "plan", look)
    try:
        assert run("plan", "much").exit_code == 1
        assert signal.getsignal(signal.SIGTERM) == known
        assert seen[0] == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as `nohup` has it
        assert seen[1] != known
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    place: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    (place / "much" / "model.safetensors").rename(place / "much" / file)

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("petlpack.tensors.checkpoint.content_of", refuse)
    result = run("plan", "much")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: '{Path('much', file)}' cannot be read: Permission denied\nHint: check the file's permissions\n"
    )


def wait_for(there: Callable[[], bool]) -> None:
    for _ in range(600):
        if there():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


PLAN = SCHEMAS["plan"]
OFFERS = PLAN["runs"]["items"]["properties"]["offers"]
SCHEMA = table(schema_version={"const": 1}, **PLAN)


@pytest.mark.parametrize("name", ["much", "little", *METHODS])
def test_the_json_is_of_the_stated_schema(methods: Path, name: str) -> None:
    jsonschema.validate(run_json("plan", *commands_of(methods, name))[1], SCHEMA)


def test_every_field_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split("## `petlpack plan ")[1].split("\n## ")[0]
    nested = [*OFFERS["items"]["properties"], *PLAN["pack"]["anyOf"][0]["properties"], "density", "error"]
    fields = [*PLAN, *PLAN["runs"]["items"]["properties"], *nested]
    assert [field for field in fields if f'"{field}"' not in section] == []
