"""Take the product's guards away, one at a time, and see that a test notices each.

    python -m tools.mutants                  all of them, and what came of each
    python -m tools.mutants --list           what there is
    python -m tools.mutants --only store     those whose file or description has this text

A mutant is one place in one file, which is replaced in a copy of the tree in a temporary directory; then the tests that
are named for it run there until one fails. It survives where none does: then a test is missing. The text of a place
must stand in its file exactly once, so that no mutant outlives what it takes away. Tables are `tools/mutants_of_*.py`.

Every place of the product is there that syncs, renames into place, locks, compares a digest or a state, refuses a link
or what is no file, or bounds a cost, but for those that no test can tell apart from what stands behind them:

* a part of tensors is decoded as it is written (`encoding/write.py`), and once more with the task that needs it;
* weights that are no file are told by `layouts/foreign.py` and `tensors/checkpoint.py` before `tensors/pinned.py`
  would refuse to open them;
* the dictionary of a zstd frame is refused by name before zstandard misses it;
* of fields of JSON and of coders that are out of their range, each has a vector in `formats/vectors/`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.mutants_of_limits import LIMITS
from tools.mutants_of_reading import READING
from tools.mutants_of_store import STORE

ROOT = Path(__file__).parent.parent

MUTANTS = {**STORE, **READING, **LIMITS}
"""Of each file the mutants, as (what it takes away, the text, what stands there instead), and of each table of them the
tests that run until one fails: files, or `FILE::TEST`."""

COPIED = ("petlpack", "cli", "tests", "tools", "formats", "docs", "benchmarks", "changes")
COPIED_FILES = ("pyproject.toml", "README.md", "SECURITY.md", "CONTRIBUTING.md", "Makefile", "CITATION.cff")

TIMEOUT = 900.0
"""Seconds for the tests of one mutant: one that hangs has been noticed, too."""

MOST_MEMORY = 24 << 20
"""Kilobytes of address space: without its bound a bomb goes off, and should not take the machine along."""

_LIMITED = ("sh", "-c", 'ulimit -v "$1" && shift && exec "$@"', "sh", str(MOST_MEMORY))


@dataclass(frozen=True)
class Mutant:
    """One guard taken away."""

    file: str
    what: str
    text: str
    instead: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """Return a file's text with the mutant in it; raises ValueError where its place is not there exactly once."""
        count = source.count(self.text)
        if count != 1:
            raise ValueError(f"{self.file}: the text of '{self.what}' stands there {count} times, expected once")
        return source.replace(self.text, self.instead)

    def compiled(self) -> None:
        """Check that it is Python; raises SyntaxError, and ValueError where it changes nothing."""
        source = (ROOT / self.file).read_text(encoding="utf-8")
        changed = self.applied(source)
        if changed == source:
            raise ValueError(f"{self.file}: '{self.what}' changes nothing")
        compile(changed, self.file, "exec")


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant: `killed` by the first that failed, `hung`, `survived`, or `broken`."""

    mutant: Mutant
    result: str
    by: str

    @property
    def killed(self) -> bool:
        """Whether a test noticed it."""
        return self.result in ("killed", "hung")


def mutants() -> list[Mutant]:
    """Return every mutant of the tables."""
    return [
        Mutant(file, what, text, instead, tests)
        for (file, tests), rows in MUTANTS.items()
        for what, text, instead in rows
    ]


class Tree:
    """A copy of the tree, in which one mutant after another is tried."""

    def __init__(self, path: Path) -> None:
        """Copy what tests need; what is compiled there is told by content, for mutants come faster than a clock."""
        self.path = path
        for name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__", ".cache", ".venv", "*.gz")
            shutil.copytree(ROOT / name, path / name, ignore=ignored)
        for name in COPIED_FILES:
            shutil.copy(ROOT / name, path / name)
        command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "petlpack", "tests"]
        subprocess.run(command, cwd=path, check=True)
        self._check_place()

    def _check_place(self) -> None:
        """Check that the package that tests import is the copy's: else nothing that is done here would matter."""
        command = [sys.executable, "-c", "import petlpack; print(petlpack.__file__)"]
        done = subprocess.run(
            command, cwd=self.path, env=self._environment(), capture_output=True, text=True, check=True
        )
        if not Path(done.stdout.strip()).is_relative_to(self.path.resolve()):
            raise RuntimeError(f"the tests would import {done.stdout.strip()}, not the copy in {self.path}")

    def _environment(self) -> dict[str, str]:
        temporary = self.path / "temporary"
        temporary.mkdir(exist_ok=True)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "PYTHONPATH": os.pathsep.join(str(self.path.resolve() / name) for name in (".", "cli")),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(temporary.resolve()),
        }

    def test(self, tests: Sequence[str]) -> tuple[int | None, str]:
        """Run tests until one fails; return the exit status, None where they hung, and the first failure."""
        options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        command = [*_LIMITED, sys.executable, "-m", "pytest", *options, *tests]
        with subprocess.Popen(
            command,
            cwd=self.path,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return None, "no answer"
        shutil.rmtree(self.path / "temporary", ignore_errors=True)
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        return process.returncode, found[1] if found else output[-2000:]

    def tried(self, mutant: Mutant) -> Outcome:
        """Try one mutant; the tree is as before afterwards."""
        file = self.path / mutant.file
        before = file.read_text(encoding="utf-8")
        file.write_text(mutant.applied(before), encoding="utf-8")
        try:
            status, by = self.test(mutant.tests)
        finally:
            file.write_text(before, encoding="utf-8")
        result = {None: "hung", 0: "survived", 1: "killed"}.get(status, "broken")
        return Outcome(mutant, result, by)


def try_all(
    chosen: Sequence[Mutant], place: Path, *, jobs: int, told: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Try mutants, each of `jobs` threads in a copy of its own below `place`; tells each outcome as it comes."""
    jobs = max(1, min(jobs, len(chosen)))
    trees = [Tree(place / str(number)) for number in range(jobs)]
    free = [*trees]

    def tried(mutant: Mutant) -> Outcome:
        tree = free.pop()
        try:
            outcome = tree.tried(mutant)
        finally:
            free.append(tree)
        told(outcome)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(tried, chosen))


def unmutated(chosen: Sequence[Mutant], place: Path) -> tuple[int | None, str]:
    """Run every test that mutants name on a tree without any: tests that fail by themselves notice nothing."""
    tests = list(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
    return Tree(place / "unmutated").test(tests)


def report(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield how many were killed, and each that was not, with why."""
    counts = Counter(outcome.result for outcome in outcomes)
    yield f"{len(outcomes)} mutants: " + ", ".join(f"{count} {result}" for result, count in counts.most_common())
    for outcome in outcomes:
        if not outcome.killed:
            yield f"{outcome.result}: {outcome.mutant.file}: {outcome.mutant.what} ({', '.join(outcome.mutant.tests)})"
            if outcome.result == "broken":
                yield outcome.by


def main() -> int:
    """Try mutants; returns 1 where one was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those whose file or description has this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="say what there is, and try nothing")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in mutants() if arguments.only in f"{mutant.file}: {mutant.what}"]
    for mutant in chosen:
        mutant.compiled()
        if arguments.list:
            print(f"{mutant.file}: {mutant.what}")
    if arguments.list:
        return 0

    def tell(outcome: Outcome) -> None:
        print(f"{outcome.result:<8} {outcome.mutant.file}: {outcome.mutant.what} [{outcome.by[-120:]}]", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        outcomes = try_all(chosen, Path(place), jobs=arguments.jobs, told=tell)
    print("\n".join(report(outcomes)))
    return 0 if all(outcome.killed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
