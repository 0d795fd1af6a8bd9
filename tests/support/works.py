"""Every command at work: words with which it does what it is for, and what is true before and behind it."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import petlpack
from petlpack.store import Store
from tests.support.method_runs import write_propetl_t5
from tests.support.places import SMALL, write_place
from tests.support.small_runs import METHOD_SETTINGS, TINY, make_pair, weights, write_run

JOB = "--json --jobs 1"
BASE = "--base {root}/base"
ENCODE = f"{BASE} --codec ulp --pack {{case}}/pack {JOB}"
SET = " ".join(f"--set {name}={value}" for name, value in METHOD_SETTINGS.items())


@dataclass(frozen=True, eq=False)
class Work:
    """What one command is told, and what it changes."""

    words: str
    start: str | None = "pack"
    """Of which pack it begins with a copy; None where there is none yet."""
    changes: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    """Of each task that it changes: what it was, and what it is then."""
    writes: bool = False
    makes: str | None = None
    """The run that it makes again."""

    def words_at(self, root: Path, case: Path) -> list[str]:
        """Return the words of the work in a directory."""
        return self.words.format(root=root, case=case).split()


def _encode(run: str, task: str, start: str | None, before: str | None = None) -> Work:
    replace = "" if before is None else " --replace"
    words = f"encode {{root}}/{run} --task {task}{replace} {ENCODE}"
    return Work(words, start, {task: (before, run)}, writes=True)


def _remove(start: str) -> Work:
    return Work("remove {case}/pack two --json", start, {"two": ("second", None)}, writes=True)


WORKS: dict[str, dict[str, Work]] = {
    "encode": {
        "": _encode("third", "three", "pack"),
        "into a new pack": _encode("third", "three", None),
        "into a sealed pack": _encode("third", "three", "sealed"),
        "over a task": _encode("third", "two", "pack", "second"),
        "over a sealed task": _encode("third", "two", "sealed", "second"),
        "of several tasks": Work(
            f"encode {{root}}/several --pack {{case}}/pack {SET} {JOB}",
            "pack",
            {"several.a": (None, "several.a"), "several.b": (None, "several.b")},
            writes=True,
        ),
    },
    "plan": {"": Work(f"plan {{root}}/adapted {JOB}")},
    "decode": {
        "": Work(f"decode {{case}}/pack one {{case}}/out {BASE} {JOB}", writes=True, makes="run"),
        "deeper": Work(f"decode {{case}}/pack one {{case}}/some/out {BASE} {JOB}", writes=True, makes="run"),
    },
    "list": {"": Work("list {case}/pack --json"), "long": Work("list {case}/pack --long --json")},
    "show": {"": Work("show {case}/pack two --json")},
    "stats": {"": Work("stats {case}/pack --json")},
    "survey": {"": Work(f"survey {{root}}/run {BASE} {JOB}")},
    "forecast": {"": Work("forecast {case}/pack --json")},
    "verify": {"": Work(f"verify {{case}}/pack {BASE} {JOB}", "sealed")},
    "remove": {"": _remove("pack"), "from a sealed pack": _remove("sealed")},
    "gc": {
        "": Work("gc {case}/pack --json", "given up", writes=True),
        "of a sealed pack": Work("gc {case}/pack --json", "given up and sealed", writes=True),
    },
    "seal": {
        "": Work("seal {case}/pack --json", writes=True),
        "again": Work("seal {case}/pack --json", "sealed", writes=True),
    },
    "codecs": {"": Work("codecs --json")},
}
"""What each command is told: a new one is told something here, or the test of faults fails."""


class Workshop:
    """Runs, their base, and the packs that works begin with; and what each run decodes to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.case = root / "case"
        self.base = write_place(root) / "base"
        write_run(root / "third", make_pair(5, labels=5, **SMALL)[0])
        write_propetl_t5(root / "several", ["a", "b"], TINY)
        adapted = {name: tensor for name, tensor in make_pair(6, **SMALL)[0].items() if "classifier" in name}
        write_run(root / "adapted", adapted)
        for start in ("sealed", "given up", "given up and sealed"):
            shutil.copytree(root / "pack", root / start)
            if "sealed" in start:
                petlpack.seal(root / start)
            if "given up" in start:
                petlpack.remove(root / start, "two")
        self.states = self._states()
        self._starts: dict[str | None, dict[str, str]] = {None: {}}

    def _states(self) -> dict[str, str]:
        whole = self.root / "whole"
        for run in ("run", "second", "third"):
            petlpack.encode(self.root / run, whole, self.base, task=run, codec="ulp", jobs=1)
        petlpack.encode(self.root / "several", whole, settings=METHOD_SETTINGS, jobs=1)
        write_run(self.root / "large", {f"{i}.weight": weights("F32", (512, 512), i) for i in range(4)})
        petlpack.encode(self.root / "large", self.root / "large pack", codec="plain", jobs=1)
        shutil.copytree(self.root / "large pack", whole, dirs_exist_ok=True)
        return {task: self.read(whole, task) for task in petlpack.open(whole)}

    def read(self, pack: Path, task: str) -> str:
        """Return the sha256 of all weights that a task decodes to."""
        digest = hashlib.sha256()
        for name, _, bits in petlpack.open(pack)[task].load(self.base).read_all(jobs=1):
            digest.update(f"{name} {bits.dtype} {bits.shape}\n".encode())
            digest.update(bits.tobytes())
        return digest.hexdigest()

    def begin(self, work: Work) -> list[str]:
        """Make the directory of a case anew, and return the words."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        if work.start is not None:
            shutil.copytree(self.root / work.start, self.case / "pack")
        return work.words_at(self.root, self.case)

    def keep(self, start: str) -> None:
        """Keep the pack of the case for others to begin with."""
        shutil.copytree(self.case / "pack", self.root / start)

    def tasks(self, pack: Path | None = None) -> dict[str, str]:
        """Return of every task of the case's pack what it decodes to, once all of the pack is found right.

        That a seal is stale is no damage.
        """
        pack = pack or self.case / "pack"
        if not (pack / "pack.json").exists():
            return {}
        found = [one for one in petlpack.verify(pack, self.base, jobs=1) if one.error is not None]
        stale = any(getattr(one.error, "code", "") == "sealed-stale" for one in found)
        wrong = [one.error for one in found if not (stale and one.kind == "sealed")]
        assert not wrong, wrong
        return {task: self.read(pack, task) for task in petlpack.open(pack)}

    def wanted(self, work: Work, *, done: bool) -> dict[str, str]:
        """Return what `tasks` has to be before or behind a work."""
        if work.start not in self._starts:
            self._starts[work.start] = self.tasks(self.root / str(work.start))
        runs = {task: states[done] for task, states in work.changes.items()}
        changed = {task: self.states[run] for task, run in runs.items() if run is not None}
        return {**{task: state for task, state in self._starts[work.start].items() if task not in runs}, **changed}

    def leftovers(self) -> list[str]:
        """Return what is no part of a pack or of an output, but stands in the case."""
        return [path.name for path in self.case.rglob(".*-*") if path.name.startswith((".tmp-", ".petlpack-"))]

    def check_next(self, *, everything: bool = False) -> None:
        """Check that the next writer and decoder find nothing in their way, and leave nothing behind.

        With `everything` parts may be left for `gc --all`: it was told that they would be.
        """
        pack = self.case / "pack"
        petlpack.encode(self.root / "third", pack, self.base, task="next", codec="ulp", jobs=1)
        petlpack.gc(pack, everything=everything)
        if petlpack.open(pack).store.read_seal() is not None:
            petlpack.seal(pack)
        assert [one for one in petlpack.verify(pack, self.base, jobs=1) if one.error is not None] == []
        assert self.read(pack, "next") == self.states["third"]
        assert Store(pack).foreign() == []
        assert petlpack.open(pack).unexplained() == []
        for out in (self.case, self.case / "some"):
            petlpack.open(pack)["next"].decode(out / "next", self.base, jobs=1)
        assert self.leftovers() == []

    def check_out(self, work: Work) -> bool:
        """Tell whether what a decode makes is there; it is whole then."""
        out = self.case / ("some/out" if "/some/" in work.words else "out")
        if not out.exists():
            return False
        files = {path.name: path.read_bytes() for path in out.iterdir()}
        assert files == {path.name: path.read_bytes() for path in (self.root / str(work.makes)).iterdir()}
        return True

    def snapshot(self) -> dict[str, str]:
        """Return every file and directory of the case: equal where bytes are, and names but for what is random."""
        return dict(sorted(_contents(self.case)))


def _contents(place: Path) -> Iterator[tuple[str, str]]:
    for path in place.rglob("*"):
        name = re.sub("-([0-9a-f]{32}|[0-9a-f]{12})", "-*", str(path))
        yield name, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


ALL = {f"{command} {name}".strip(): work for command, works in WORKS.items() for name, work in works.items()}
"""Every work by the name of its command, and what is special about it."""
