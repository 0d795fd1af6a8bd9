"""`petlpack encode`: what it says that it did, what it leaves out, and what is left where a run fails."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import filelock
import jsonschema
import pytest

import petlpack
from tests.support import method_runs
from tests.support.command_line import DEMO, ENVIRONMENT, ESC, MASK, SCHEMAS, command_line, posix, run, run_json, table
from tests.support.small_runs import METHOD_SETTINGS

PREFIX = ["encode", "run", "--pack", "p"]


@pytest.mark.parametrize(
    "said", [["--bake"], ["--set", "bake=true"], ["--bake", "--set", "bake=true"], ["--set", "bake=true", "--bake"]]
)
def test_a_flag_is_short_for_a_setting(said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    method_runs.write_propetl_roberta(Path("run"), "sst2", kind="prefix", keep=0.5)
    for others in ([], ["--set", "keep_experts=false"]):
        for line in ([*PREFIX, *said, *others], [*PREFIX, *others, *said]):
            assert run(*line, "--replace").exit_code == 0, line
            assert petlpack.open("p")["run"].facts.options == {"bake": True}
    refused = run(*PREFIX, *said, "--set", "bake=false")
    assert (refused.exit_code, "setting bake is given twice" in refused.stderr) == (2, True)
    refused = run(*PREFIX, "--set", "bake=false", *said)
    assert (refused.exit_code, "setting bake is given twice" in refused.stderr) == (2, True)
    assert "setting bake must be true or false, got yes" in run(*PREFIX, "--set", "bake=yes", "--replace").stderr


def test_some_runs_that_fail_are_3_and_do_not_stop_the_rest(place: Path, tmp_path: Path) -> None:
    given: list[str | Path] = [place / "sst2", tmp_path / "nothing", place / "rte", "--base", place / "base", "--pack"]
    code, answer = run_json("encode", *given, tmp_path / "q")
    assert code == 3
    assert [task["name"] for task in answer["tasks"]] == ["sst2", "rte"]
    assert [(one["run"], one["type"]) for one in answer["failed"]] == [(str(tmp_path / "nothing"), "RunError")]
    result = run("encode", *given, tmp_path / "r")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"Error: {tmp_path / 'nothing'}: no run at ")
    assert sorted(petlpack.open(tmp_path / "r")) == ["rte", "sst2"]


@pytest.mark.parametrize("replace", [[], ["--replace"]])
def test_runs_of_one_name_are_refused_even_to_replace(replace: list[str], place: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(place / "rte", tmp_path / "other" / "SST2"))
    code, answer = run_json(
        "encode", place / "sst2", twin, "--base", place / "base", "--pack", tmp_path / "q", *replace
    )
    assert code == 3
    assert [task["name"] for task in answer["tasks"]] == ["sst2"]
    assert str(place / "sst2") in answer["failed"][0]["message"]
    assert "--task" in answer["failed"][0]["hint"]


def test_the_base_is_opened_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    original = petlpack.Base.__init__

    def open_base(self: petlpack.Base, path: Path, **options: bool) -> None:
        opened.append(path)
        original(self, path, **options)

    monkeypatch.setattr(petlpack.Base, "__init__", open_base)
    assert run("encode", place / "sst2", place / "rte", "--base", place / "base", "--pack", tmp_path).exit_code == 0
    assert opened == [place / "base"]


@posix
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_an_interrupt_at_work_is_130_and_leaves_nothing_half_written(
    as_json: list[str], place: Path, pack: Path
) -> None:
    before = sorted(path.name for path in (pack / "tasks").iterdir())
    task: list[str | Path] = [place / "sst2", "--task", "again", "--base", place / "base"]
    process = subprocess.Popen(
        command_line("encode", *task, "--pack", pack, *as_json),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(pack.glob(".tmp-*")):  # it has begun
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with filelock.FileLock(pack / ".lock"):  # so that it cannot be done before it is interrupted
        while not list((pack / "tasks").glob(".tmp-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=50)
    assert process.returncode == 130
    if as_json:
        assert json.loads(stdout)["error"]["type"] == "Interrupted"
        assert stderr == ""
    else:
        assert (stdout, stderr) == ("", "interrupted\n")
    assert sorted(path.name for path in (pack / "tasks").iterdir()) == before


def test_an_interrupt_keeps_what_is_known_of_finished_tasks(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = petlpack.encode

    def encode(run_dir: Path, *others: Any, **options: Any) -> list[petlpack.Encoded]:
        if run_dir.name == "rte":
            raise KeyboardInterrupt
        return original(run_dir, *others, **options)

    monkeypatch.setattr("petlpack.encoding.runs.encode", encode)
    runs = [place / name for name in ("sst2", "rte", "adapter")]
    code, answer = run_json("encode", *runs, "--base", place / "base", "--pack", tmp_path / "q")
    assert (code, answer["interrupted"]) == (130, True)
    assert [task["name"] for task in answer["tasks"]] == ["sst2"]
    jsonschema.validate(answer, table(schema_version={"const": 1}, **SCHEMAS["encode"]))
    result = run("encode", *runs, "--base", place / "base", "--pack", tmp_path / "r")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert re.search(r"^sst2 +full fine-tune", result.stdout, re.MULTILINE)
    assert list(petlpack.open(tmp_path / "r")) == ["sst2"]


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"No space left on device: '.*q'", "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), r"Permission denied: '/x'", "permissions"),
        (
            OSError(errno.EROFS, "Read-only file system", f"/{ESC}"),
            r"Read-only file system: '/\\x1b\[31m'",
            "read-only",
        ),
        (MemoryError(), "not enough memory", "--jobs"),
        (ZeroDivisionError("oh\nno"), r"internal error: ZeroDivisionError: oh\\nno", "--debug and report it"),
        (AssertionError(), "internal error: AssertionError", "--debug and report it"),
    ],
)
def test_whatever_goes_wrong_is_one_line_and_a_hint(
    error: Exception, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("petlpack.encoding.runs.encode", fail)
    given: list[str | Path] = ["encode", "x", "--pack", tmp_path / "q"]
    result = run(*given)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(rf"Error: {message}\nHint: [^\n]*{hint}[^\n]*\n", result.stderr)
    code, answer = run_json(*given)
    assert (code, set(answer)) == (1, {"schema_version", "error"})
    for debug in (["--debug", *given], [*given, "--debug"]):
        result = run(*debug)
        assert result.exit_code == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert re.search(rf"^Error: {message}$", result.stderr, re.MULTILINE)
    result = run(*given, "y", "--debug")
    assert result.exit_code == 3
    assert result.stderr.count("Traceback (most recent call last)") == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_pack_is_an_error_that_names_the_file(place: Path, pack: Path) -> None:
    (pack / "tasks").chmod(0o500)
    try:
        result = run("encode", place / "sst2", "--task", "x", "--base", place / "base", "--pack", pack)
    finally:
        (pack / "tasks").chmod(0o700)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: Permission denied: '{pack}")


def test_encode_says_what_it_did_and_what_it_left_out(place: Path, tmp_path: Path) -> None:
    result = run("encode", place / "sst2", place / "adapter", "--base", place / "base", "--pack", tmp_path / "q")
    lines = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert lines[0] == ["Task", "Method", "Codec", "From", "To", "From / to"]
    assert lines[2][:3] == ["sst2", "full fine-tune", "ulp"]
    assert lines[3][:3] == ["adapter", "lora", "plain"]
    assert ["training state, not needed for inference", "2", "20 B"] in lines
    code, answer = run_json("encode", place / "rte", "--base", place / "base", "--pack", tmp_path / "q")
    assert code == 0
    (task,) = answer["tasks"]
    assert task["bytes"] == (tmp_path / "q" / "tasks" / "rte.petl.safetensors").stat().st_size
    assert {part["sha256"]: part["bytes"] for part in answer["shared"]}.items() <= {
        path.name.partition(".")[0]: path.stat().st_size for path in (tmp_path / "q" / "shared").iterdir()
    }.items()
    assert {(left["file"], left["bytes"]) for left in answer["left_out"]} == {
        ("optimizer.pt", 12),
        ("training_args.bin", 8),
        ("train.log", 2),
    }


def test_a_run_of_several_tasks_becomes_as_many(methods: Path, tmp_path: Path) -> None:
    code, answer = run_json("encode", methods / "mask", "--pack", tmp_path / "q", *MASK)
    assert code == 0
    assert [(task["name"], task["codec"], task["exact"]) for task in answer["tasks"]] == [
        ("mask.a", "mask", True),
        ("mask.b", "mask", True),
    ]
    assert {task["run"] for task in answer["tasks"]} == {str(methods / "mask")}
    for task in answer["tasks"]:
        assert task["bytes"] == (tmp_path / "q" / "tasks" / f"{task['name']}.petl.safetensors").stat().st_size
    stored = {path.name.partition(".")[0]: path.stat().st_size for path in (tmp_path / "q" / "shared").iterdir()}
    assert {part["sha256"]: part["bytes"] for part in answer["shared"]} == stored
    assert len(answer["shared"]) == len(stored) == 3  # template, tensors, config.json; each is told once
    left = [(row["run"], row["file"]) for row in answer["left_out"]]
    assert len(left) == len(set(left)), "a file that was left out once is told twice"
    lines = [re.split(r"\s{2,}", line.strip()) for line in run("show", tmp_path / "q", "mask.a").stdout.splitlines()]
    assert ["Layout", "propetl-t5"] in lines
    facts = run_json("show", tmp_path / "q", "mask.a")[1]
    assert facts["facts"]["options"] == METHOD_SETTINGS
    assert facts["facts"]["task"] == "a"
    assert facts["rule"]["kind"] == "adapter"
    assert facts["rule"]["settings"]["activation"] == "gelu_new"
    assert any(" or " in line for line in facts["rule"]["formula"])
    assert facts["tensors"]["stored"] == 2
    assert run_json("verify", tmp_path / "q", "mask.a", "--against", methods / "mask")[1]["damaged"] == 0
    named = run_json("encode", methods / "mask", "--pack", tmp_path / "q", "--task", "other", *MASK)[1]
    assert [task["name"] for task in named["tasks"]] == ["other.a", "other.b"]
    assert {path.name.partition(".")[0] for path in (tmp_path / "q" / "shared").iterdir()} == set(stored)


def test_a_setting_that_nothing_depends_on_is_warned_of_once_a_run(methods: Path, tmp_path: Path) -> None:
    given: list[str | Path] = ["encode", methods / "mask", methods / "merge", "--pack", tmp_path / "q", "--replace"]
    given += ["--set", "combine=or", "--set", "activation=gelu", "--set", "keep_ratio=0.3"]
    result = run(*given)
    assert result.exit_code == 0
    said = sorted(line for line in result.stderr.splitlines() if line.startswith("Warning: "))
    assert [re.findall(r"(mask|merge): setting ([a-z_]+)", line) for line in said] == [
        [("mask", "keep_ratio")],
        [("merge", "combine")],
        [("merge", "keep_ratio")],
    ]
    code, answer = run_json(*given)
    assert code == 0
    assert len(answer["warnings"]) == 3
    assert run(*given, "-q").stderr == ""


def test_a_sparse_fine_tune_of_a_density_is_not_exact_and_says_so(place: Path, tmp_path: Path) -> None:
    given: list[str | Path] = ["encode", place / "sst2", "--pack", tmp_path / "q", "--base", place / "base"]
    code, answer = run_json(*given, "--density", "0.05")
    assert code == 0
    (task,) = answer["tasks"]
    assert (task["codec"], task["exact"]) == ("sparse", False)
    facts = run_json("show", tmp_path / "q", "sst2")[1]
    assert facts["exact"] is False
    assert float(facts["facts"]["density"]) == pytest.approx(0.05, rel=0.02)
    assert facts["facts"]["error"]
    result = run("decode", tmp_path / "q", "sst2", tmp_path / "out", "--base", place / "base")
    assert "bit for bit" not in result.stdout
    assert "exact to the bit" not in run("show", tmp_path / "q", "sst2").stdout


def test_encode_warns_on_stderr(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "sst2", tmp_path / "out" / "checkpoint-1")
    (tmp_path / "out" / "checkpoint-2").mkdir()
    (tmp_path / "out" / "checkpoint-2" / "config.json").write_text("{}", encoding="utf-8")
    given: list[str | Path] = [
        "encode",
        tmp_path / "out",
        "--base",
        place / "base",
        "--replace",
        "--pack",
        tmp_path / "q",
    ]
    assert run(*given).stderr.startswith(f"Warning: {tmp_path / 'out'}: skipped a half-written checkpoint")
    assert run(*given, "-q").stderr == ""
    assert "half-written" in run_json(*given)[1]["warnings"][0]["message"]


@pytest.mark.skipif(not (DEMO / "runs").is_dir(), reason="the demo's runs are not there")
def test_the_demo_runs_come_back(tmp_path: Path) -> None:
    runs = sorted(path for path in (DEMO / "runs").iterdir() if path.is_dir())
    code, answer = run_json("encode", *runs, "--base", DEMO / "base", "--pack", tmp_path / "p", "--level", "fast")
    assert code == 0
    assert {Path(task["run"]).name for task in answer["tasks"]} == {run.name for run in runs}
    assert {task["method"].split()[0] for task in answer["tasks"]} >= {
        "PROPETL",
        "AdaMix",
        "diff",
        "PHA",
        "full",
        "lora",
    }
    for task in answer["tasks"]:
        name, source = task["name"], DEMO / "runs" / Path(task["run"]).name
        code, decoded = run_json("decode", tmp_path / "p", name, tmp_path / name, "--base", DEMO / "base")
        assert code == 0
        if task["codec"] in ("ulp", "sparse", "plain"):  # of the others a task is not the whole run
            for row in decoded["files"]:
                assert (tmp_path / name / row["file"]).read_bytes() == (source / row["file"]).read_bytes()


def test_json_keeps_names_as_they_are(place: Path, tmp_path: Path) -> None:
    name = f"caf\u00e9 [red]{ESC}" if os.name != "nt" else "caf\u00e9"
    source = Path(shutil.copytree(place / "sst2", tmp_path / name))
    answer = run_json("encode", source, "--task", "x", "--base", place / "base", "--pack", tmp_path / "q")[1]
    assert answer["tasks"][0]["run"] == str(source)


@pytest.mark.parametrize(
    ("size", "comes"),
    [("20", True), ("19", False), ("0.02kB", True), ("0.019 KB", False), ("1KiB", True), ("0", False), ("1e3", None)]
    + [(size, None) for size in ("", "MiB", "-1", "5 TB", "64mib", "9" * 400, "257MiB")],
)
def test_a_size_is_a_number_with_or_without_a_unit(place: Path, tmp_path: Path, size: str, comes: bool | None) -> None:
    source = Path(shutil.copytree(place / "adapter", tmp_path / "sized"))
    (source / "mine").write_bytes(b"x" * 20)
    result = run("encode", source, "--pack", tmp_path / "q", f"--max-file={size}")
    if comes is None:
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        return
    assert result.exit_code == 0
    assert ("mine" in [row["file"] for row in run_json("show", tmp_path / "q", "sized")[1]["files"]]) is comes
    assert ("larger than --max-file: mine" in result.stderr) is not comes


def test_globs_of_files_are_given_on_the_command_line(place: Path, tmp_path: Path) -> None:
    given: list[str | Path] = ["--base", place / "base", "--pack", tmp_path / "q", "--keep", "*.log", "--keep", "opt*"]
    code, answer = run_json("encode", place / "sst2", *given, "--drop", "config.json", "--drop", "nothing*")
    assert code == 0
    assert {row["file"]: row["why"] for row in answer["left_out"]} == {
        "config.json": "dropped (--drop)",
        "training_args.bin": "training state, not needed for inference",
    }
    assert [row["message"] for row in answer["warnings"]] == ["--drop nothing* matches no file of this run"]
    names = [row["file"] for row in run_json("show", tmp_path / "q", "sst2")[1]["files"]]
    assert names == ["optimizer.pt", "train.log"]
