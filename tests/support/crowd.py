"""A crowd at one pack: writers that encode, replace and remove, readers, one that collects garbage and one that seals.

Threads of one process call what is here; processes are started by `start`, each for one role. What a task may decode to
hangs on its name alone, and so does whether it may ever be missing once it was seen. So a reader knows what is right
without asking a writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack import Base, TaskError
from petlpack.store import lock
from tests.support.command_line import ENVIRONMENT, load, run
from tests.support.places import SMALL
from tests.support.small_runs import make_base as make_base_tensors
from tests.support.small_runs import make_pair, weights, write_run, write_safetensors

STAY, PASS, RACE = "stay", "pass", "race"
"""How names begin: of tasks that are replaced, but never removed; that come and go; that many writers want at once."""
OWN, RACES = 4, 3
"""Names that a writer has for itself, and names that all want."""
FULL, LORA = 24, 3
"""Runs: two full fine-tunes have a template in common, and adapters have each their own."""
LEAST, PATIENCE = 7, 120.0
"""Tasks that a writer encodes at least, and the seconds that it takes longer for that on a busy machine."""
WRITING = {"encode", "remove", "gc", "seal"}
"""Commands that change a pack."""


@dataclass(frozen=True)
class Crowd:
    """A directory with a pack, a base and runs, and what each of the runs decodes to."""

    root: Path
    states: dict[str, str]

    @property
    def pack(self) -> Path:
        """The pack that all are at."""
        return self.root / "pack"

    @property
    def base(self) -> Path:
        """The base of all runs."""
        return self.root / "base"

    def runs_of(self, task: str) -> list[str]:
        """The runs that a task may be of."""
        runs, first = sorted(self.states), zlib.crc32(task.encode())
        return [runs[first % len(runs)], runs[(first + 1) % len(runs)]]

    def encode(self, run: str, task: str, pack: Path | None = None, *, replace: bool = False) -> None:
        """Encode a run on one thread, an adapter without a base."""
        dense = (self.root / run / "config.json").exists()
        options: dict[str, Any] = {"base": self.base, "codec": "ulp"} if dense else {}
        petlpack.encode(self.root / run, pack or self.pack, task=task, replace=replace, jobs=1, **options)

    def save(self) -> None:
        """Write down what processes have to know."""
        (self.root / "states.json").write_text(json.dumps(self.states))


@dataclass
class Report:
    """What one of the crowd did, and what it met that must not be."""

    own: dict[str, str] = field(default_factory=dict)
    """The tasks that are this writer's at the end, with their runs."""
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> Report:
        """Return what a process printed."""
        table = json.loads(text)
        return cls(table["own"], Counter(table["counts"]), table["problems"])


def make_crowd(root: Path) -> Crowd:
    """Write a base and runs of it: full fine-tunes with one or another head, and adapters."""
    write_run(root / "base", make_base_tensors(0, "F32", **SMALL))
    for number in range(FULL):
        write_run(root / f"full{number:02d}", make_pair(number + 1, labels=2 + number // 2, **SMALL)[0])
    for number in range(LORA):
        names = [f"base_model.model.encoder.layer.0.attention.self.query.lora_{side}.weight" for side in "AB"]
        tensors = {name: weights("F32", (4, 4), 10 * number + i) for i, name in enumerate(names)}
        write_safetensors(root / f"lora{number}" / "adapter_model.safetensors", tensors)
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4 + number, "base_model_name_or_path": "some/base"}
        (root / f"lora{number}" / "adapter_config.json").write_text(json.dumps(config))
    crowd = Crowd(root, {})
    for run_dir in [*(f"full{number:02d}" for number in range(FULL)), *(f"lora{number}" for number in range(LORA))]:
        crowd.encode(run_dir, run_dir, root / "seen")
        crowd.states[run_dir] = digest_of(petlpack.open(root / "seen")[run_dir], Base(crowd.base))
    assert len(set(crowd.states.values())) == len(crowd.states)
    return crowd


def digest_of(task: petlpack.Task, base: Base) -> str:
    """Decode a task, and return one digest of all tensors."""
    digest = hashlib.sha256()
    for name, _, bits in sorted(task.load(base).read_all(jobs=1), key=lambda row: row[0]):
        digest.update(name.encode() + bits.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def one_holder(crowd: Crowd) -> Iterator[None]:
    """Let whoever takes the pack's lock find out whether somebody else has it, in this process or in another."""
    real, marker = lock.locked, crowd.root / "holder"

    @contextlib.contextmanager
    def locked(pack: Path, timeout: float, told: list[str]) -> Iterator[None]:
        with real(pack, timeout, told):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))  # there is one: two hold the lock
            try:
                yield
            finally:
                marker.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "locked", locked)
        yield


# The roles


def write(crowd: Crowd, number: int, end: float) -> Report:
    """Encode, replace and remove tasks of one's own, and try for names that all want, until a time."""
    report, rng = Report(), random.Random(number)
    names = [f"{STAY if i % 2 else PASS}-{number}-{i}" for i in range(OWN)] + [f"{RACE}-{i}" for i in range(RACES)]
    while time.monotonic() < (end if report.counts["encoded"] >= LEAST else end + PATIENCE):
        task = rng.choice(names)
        with _noting(report, f"writer {number}, task '{task}'"):
            _change(crowd, report, task, rng)
    return report


def _change(crowd: Crowd, report: Report, task: str, rng: random.Random) -> None:
    run_dir, mine = rng.choice(crowd.runs_of(task)), task in report.own
    if mine and not task.startswith(STAY) and rng.random() < 0.6:
        petlpack.remove(crowd.pack, task)
        del report.own[task]
        report.counts["removed"] += 1
        return
    try:
        crowd.encode(run_dir, task, replace=mine)
    except TaskError:
        if mine or not task.startswith(RACE):
            raise
        report.counts["races lost"] += 1
        return
    report.own[task] = run_dir
    report.counts["encoded"] += 1


def collect(crowd: Crowd, number: int, end: float) -> Report:
    """Collect garbage until a time."""
    return _again(crowd, number, end, lambda: len(petlpack.gc(crowd.pack).files), "parts collected")


def seal(crowd: Crowd, number: int, end: float) -> Report:
    """Seal the pack until a time."""
    return _again(crowd, number, end, lambda: bool(petlpack.seal(crowd.pack).files), "seals")


def _again(crowd: Crowd, number: int, end: float, do: Callable[[], int], what: str) -> Report:
    report = Report()
    while time.monotonic() < end:
        with _noting(report, what):
            report.counts[what] += do()
        time.sleep(0.2)
    return report


def read(crowd: Crowd, number: int, end: float) -> Report:
    """Read tasks in one way after another until a time."""
    report, rng, base = Report(), random.Random(number), Base(crowd.base)
    held: list[petlpack.Task] = []
    while time.monotonic() < end:
        way = rng.choice(["decode", "decode", "decode", "held", "out", "facts", "stats", "long", "verify"])
        chosen = held.pop(rng.randrange(8)) if way == "held" and len(held) == 8 else None  # opened long before
        task = rng.choice([*petlpack.open(crowd.pack), ""]) if chosen is None else chosen.name
        with _noting(report, f"reader {number}, {way} of '{task}'", may_miss=not task.startswith(STAY)):
            if way in LOOKS:
                report.problems += LOOKS[way](crowd, base)
            elif chosen is not None:
                _check(crowd, report, task, digest_of(chosen, base))
            elif task:
                held.append(petlpack.open(crowd.pack)[task])
                del held[:-8]
                _read_one(crowd, report, held[-1], base, way)
            report.counts["reads"] += 1
        time.sleep(0.02)
    return report


def _read_one(crowd: Crowd, report: Report, task: petlpack.Task, base: Base, way: str) -> None:
    if way == "facts":
        assert petlpack.details(task).task.name == task.name
    elif way == "out":
        with tempfile.TemporaryDirectory(dir=crowd.root) as directory:
            task.decode(Path(directory) / "out", base, jobs=1)
            found = {path.name: path.read_bytes() for path in (Path(directory) / "out").iterdir()}
        runs = [crowd.root / name for name in crowd.runs_of(task.name)]
        if found not in [{path.name: path.read_bytes() for path in one.iterdir()} for one in runs]:
            report.problems.append(f"task '{task.name}' is written as none of its runs")
    else:
        _check(crowd, report, task.name, digest_of(task, base))


def _check(crowd: Crowd, report: Report, task: str, digest: str) -> None:
    if digest not in [crowd.states[name] for name in crowd.runs_of(task)]:
        report.problems.append(f"task '{task}' decodes to none of its runs")


def wrong(crowd: Crowd, base: Base) -> list[str]:
    """Return what `verify` has against the pack."""
    pack = petlpack.open(crowd.pack)
    found = petlpack.verify(pack, base, jobs=1)
    odd = [*pack.unexplained(), *pack.foreign()]
    return [f"verify: {one.kind} {one.name}: {one.error}" for one in found if one.error is not None] + odd


def _stats(crowd: Crowd, base: Base) -> list[str]:
    return [f"stats: {name}: {error!r}" for name, error in petlpack.stats(crowd.pack).damaged.items()]


def _list(crowd: Crowd, base: Base) -> list[str]:
    found = petlpack.listing(crowd.pack, long=True)
    return [f"list: {row.name}: {row.error!r}" for row in found.tasks if row.error is not None]


LOOKS = {"verify": wrong, "stats": _stats, "long": _list}
"""Ways to look at the whole pack; each returns what it has against it."""


def command(crowd: Crowd, number: int, end: float) -> Report:
    """Run the commands that read a pack, all that there are, one after another until a time."""
    report, rng = Report(), random.Random(number)
    for name in itertools.cycle(reading_commands()):
        if time.monotonic() > end:
            return report
        task = rng.choice([task for task in petlpack.open(crowd.pack) if task.startswith(STAY)] or [""])
        with tempfile.TemporaryDirectory(dir=crowd.root) as directory:
            given = {"pack": crowd.pack, "task": task, "out": Path(directory) / "out"}
            arguments = [str(given[str(one.name)]) for one in load(name).params if one.param_type_name == "argument"]
            based = ["--base", str(crowd.base)] if any(one.name == "base" for one in load(name).params) else []
            if task or "task" not in [one.name for one in load(name).params]:
                answer = run(name, *arguments, *based, "--json")
                report.counts["reads"] += 1
                if answer.exit_code:
                    report.problems.append(f"{name} {task}: {answer.exit_code} {answer.stdout[-2000:]}")
    return report


def reading_commands() -> list[str]:
    """Return the commands that read a pack, and need nothing but that, a task and a place."""
    from petlpack_cli.app import COMMANDS

    arguments = {
        name: {one.name for one in load(name).params if one.param_type_name == "argument" and one.required}
        for name in COMMANDS
    }
    packs = {name for name in COMMANDS if any(one.name == "pack" and one.required for one in load(name).params)}
    return [name for name in COMMANDS if name in packs - WRITING and arguments[name] <= {"pack", "task", "out"}]


@contextlib.contextmanager
def _noting(report: Report, what: str, *, may_miss: bool = False) -> Iterator[None]:
    """Note every error as a problem, but that of a task that may be missing."""
    try:
        yield
    except TaskError as error:
        if not may_miss:
            report.problems.append(f"{what}: {error!r}")
    except Exception as error:
        report.problems.append(f"{what}: {error!r} {getattr(error, 'code', '')}")


ROLES: dict[str, Callable[[Crowd, int, float], Report]] = {
    one.__name__: one for one in (write, read, collect, seal, command)
}


# Processes


def start(crowd: Crowd, role: str, number: int) -> subprocess.Popen[str]:
    """Start a process for one role; it says that it is ready, and begins at a line with its seconds."""
    line = [sys.executable, "-m", "tests.support.crowd", str(crowd.root), role, str(number)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(line, cwd=root, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main(root: Path, role: str, number: int) -> None:
    """Play a role, and print the report as JSON."""
    os.fsync = os.fstat  # type: ignore[assignment]  # nothing here has to outlive a power cut
    crowd = Crowd(root, json.loads((root / "states.json").read_text()))
    reading_commands()  # what is imported for them
    print("ready", flush=True)
    seconds = float(sys.stdin.readline())
    with one_holder(crowd):
        report = ROLES[role](crowd, number, time.monotonic() + seconds)
    print(json.dumps(vars(report)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
