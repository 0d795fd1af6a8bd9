"""Runs that somebody made to be read: each is encoded right or refused by one error, cheaply, and nothing else happens.

Each command runs in a process of its own, which may take a second of CPU, and twice the run and 128 MB.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack.layouts.registry import LAYOUTS
from petlpack_cli.app import COMMANDS
from tests.support.hostile_runs import hostile_runs, options_of, write_run_of
from tests.support.sampling import Sample
from tests.support.small_runs import write_pair
from tests.support.tally import Tally

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time are Linux's here")
pytest.importorskip("torch")

LOADED = (
    *(
        "torch",
        "petlpack.encoding.encode",
        "petlpack.encoding.runs",
        "petlpack.analyze.planning",
        "petlpack.codecs.ulp",
    ),
    *("petlpack.analyze.survey.account", "petlpack.codecs.sparse", "petlpack.coding.rows", "petlpack.checking.against"),
    *("petlpack_cli.encode", "petlpack_cli.plan", "petlpack_cli.survey", "petlpack_cli.forecast"),
    *("petlpack.layouts.registry", "petlpack.encoding.views.find", "petlpack.encoding.nearest"),
)

READERS: dict[str, list[str]] = {
    "encode": ["{run}", "--pack", "{pack}", "--jobs", "1", "{options}"],
    "plan": ["{run}", "--jobs", "1"],
    "survey": ["{run}", "--jobs", "1"],
    "stats": ["{run}"],
    "forecast": ["{run}"],
    "decode": ["{kept}", "task", "{out}", "--base", "{run}", "--jobs", "1"],
    "verify": ["{kept}", "task", "--against", "{run}", "--jobs", "1"],
    "list": ["{run}"],
    "show": ["{run}", "task"],
    "seal": ["{run}"],
    "gc": ["{run}"],
    "remove": ["{run}", "task"],
}
"""How each command meets a run of a stranger: as what it reads, as a base, as what a task is compared with."""
MORE: dict[str, list[str]] = {
    "encode against it": ["encode", "{good}", "--pack", "{pack}", "--base", "{run}", "--jobs", "1"],
    "encode against one of them": ["encode", "{good}", "--pack", "{pack}", "--base", "{above}", "--jobs", "1"],
    "encode against itself": ["encode", "{run}", "--pack", "{pack}", "--base", "{run}", "--jobs", "1", "{options}"],
    "plan against it": ["plan", "{good}", "--base", "{run}", "--jobs", "1"],
    "verify with it": ["verify", "{kept}", "--base", "{run}", "--jobs", "1"],
}
CALLS = {name: [name, *words] for name, words in READERS.items()} | MORE

ALLOWED = {0, 1, 2, 3, 4, 5, 7}
NEVER = {"internal", "memory", "killed", "os", "unreadable"}
SURVEYS = {"survey", "stats"}
"""Calls that list what cannot be read, such as a link that leads nowhere, beside all other files."""


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.command_runner", *LOADED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a run of each layout that nobody changed."""
    return {layout_id: write_run_of(layout_id, tmp_path_factory.mktemp("run")) for layout_id in LAYOUTS}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a good run, and a pack in which it is a task on its base."""
    place = tmp_path_factory.mktemp("kept")
    run, base = write_pair(place, layers=1, width=8, words=8)
    petlpack.encode(run, place / "pack", base, task="task")
    return run, place / "pack"


def words(call: str, run: Path, kept: tuple[Path, Path], options: list[str]) -> list[str]:
    """Return the words of a command on a run."""
    room = run.parent.parent
    places = {"run": run, "above": run.parent, "pack": room / "pack", "out": room / "out"}
    places |= {"good": kept[0], "kept": kept[1]}
    said: list[str] = []
    for word in CALLS[call]:
        said += options if word == "{options}" else [word.format(**places)]
    return [*said, "--json"]


def tried(runner: subprocess.Popen[str], run: Path, arguments: list[str]) -> dict[str, Any]:
    """Run a command as far as it may go; on a busy machine one that took too long is tried again."""
    assert runner.stdin is not None
    assert runner.stdout is not None
    nbytes = sum(min(file.lstat().st_blocks * 512, file.lstat().st_size) for file in listed(run))
    wanted = {"arguments": arguments, "memory": 2 * nbytes + (128 << 20), "seconds": 3}
    for _ in range(3):
        print(json.dumps(wanted), file=runner.stdin, flush=True)
        found: dict[str, Any] = json.loads(runner.stdout.readline())
        if found["seconds"] <= 1:
            break
    return found


def listed(run: Path) -> list[Path]:
    """Return what stands in a run, two folders deep."""
    return [
        entry
        for folder in (run, *run.iterdir())
        if folder.is_dir() and not folder.is_symlink()
        for entry in folder.iterdir()
    ]


def state(*places: Path) -> dict[str, tuple[int, int]]:
    """Return what is in some places, with sizes and times."""
    return {
        str(entry): (entry.lstat().st_size, entry.lstat().st_mtime_ns)
        for place in places
        for entry in (place, *place.iterdir(), *listed(place))
        if entry.name != ".lock"
    }


def check(runner: subprocess.Popen[str], call: str, run: Path, kept: tuple[Path, Path], options: list[str]) -> None:
    """Run a command on a hostile run, and check that it is right, or refused and told, and nothing else is written."""
    room = run.parent.parent
    before = state(run, run.parent, *kept)
    found = tried(runner, run, words(call, run, kept, options))
    assert found["exit"] in ALLOWED, (call, found)
    if call in SURVEYS and found["code"] == "os":
        with contextlib.suppress(petlpack.PetlpackError):
            petlpack.survey([run], jobs=1)  # which raises no OSError
    else:
        assert found["code"] not in NEVER, (call, found)
    assert "internal" not in found["said"], (call, found)
    assert not found["odd"], (call, found)
    assert found["seconds"] <= 1, (call, found)
    assert state(run, run.parent, *kept) == before, call
    written = {entry.name for entry in room.iterdir()} - {"at"}
    assert written <= ({"pack"} if "pack" in "".join(CALLS[call]) else set()) | (
        {"out"} if not found["exit"] else set()
    )
    tasks = sorted(
        entry.name for entry in (room / "pack").rglob("*") if entry.is_file() and entry.parent.name == "tasks"
    )
    if found["exit"] and call.startswith("encode"):
        assert tasks == [], (call, found)
    elif tasks:
        verified = tried(runner, run, ["verify", str(room / "pack"), "--jobs", "1", "--json"])
        assert (verified["exit"], verified["code"]) == (0, None), (call, verified)
    assert not [*(room / "pack").rglob(".tmp-*")], call
    subprocess.run(["rm", "-rf", room / "pack", room / "out"], check=True)


@pytest.mark.trust(60)
@pytest.mark.parametrize("part", range(8))
def test_a_hostile_run_is_encoded_right_or_refused(
    part: int,
    pristine: dict[str, Path],
    kept: tuple[Path, Path],
    runner: subprocess.Popen[str],
    tmp_path: Path,
    sample: Sample,
    tally: Tally,
) -> None:
    cases = [case for i, case in enumerate(hostile_runs(pristine)) if i % 8 == part]
    failed: list[tuple[str, str, str]] = []
    count = 0
    for number, (layout_id, what, change) in enumerate(sample(cases)):
        room = tmp_path / str(number)
        try:
            run = made(room, pristine[layout_id], change)
            for call in calls_of(number + part):
                check(runner, call, run, kept, options_of(layout_id))
        except AssertionError as error:
            failed.append((layout_id, what, str(error)[:400]))
        finally:
            subprocess.run(["rm", "-rf", room], check=True)  # what is deep, Python itself deletes by RecursionError
        count += 1
    assert not failed, "\n".join(map(str, failed))
    tally("hostile runs", count)


def made(room: Path, pristine: Path, change: Callable[[Path], object]) -> Path:
    """Return a copy of a run to which something was done, in a folder of its own."""
    run = room / "at" / "run"
    run.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", pristine, run], check=True)
    change(run)
    return run


def calls_of(number: int) -> list[str]:
    """Return `encode`, and two of the other calls in turn."""
    others = [call for call in CALLS if call != "encode"]
    return ["encode", others[number % len(others)], others[(5 * number + 3) % len(others)]]


def test_a_run_as_it_was_written_is_encoded(
    pristine: dict[str, Path], kept: tuple[Path, Path], runner: subprocess.Popen[str], tmp_path: Path
) -> None:
    for layout_id, run in pristine.items():
        room = tmp_path / layout_id / "at" / "run"
        base = ["--base", str(run.parent / "base")] if (run.parent / "base").is_dir() else []
        options = [*options_of(layout_id), *base]
        room.parent.mkdir(parents=True)
        subprocess.run(["cp", "-r", run, room], check=True)
        found = tried(runner, room, words("encode", room, kept, options))
        assert (found["exit"], found["code"]) == (0, None), (layout_id, found)


def test_every_command_meets_a_hostile_run() -> None:
    assert set(COMMANDS) - READERS.keys() == {"codecs"}, "say how it meets a run, if it does"
