"""A pack of small runs and one of methods, to try bad things on; what a refusal is; and how a task is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import petlpack
from petlpack import BaseError, DamageError, PetlpackError, RunError, TaskError, UnknownFormatError, UsageError
from petlpack.sections.shared import write_shared
from petlpack.store import SUFFIX
from tests.support.small_runs import make_pair, write_pair, write_run

EXIT = {
    PetlpackError: 1,
    RunError: 1,
    UsageError: 2,
    TaskError: 1,
    DamageError: 4,
    BaseError: 5,
    UnknownFormatError: 7,
}
SMALL: dict[str, Any] = {"layers": 1, "width": 4, "words": 8}
Call = Callable[[Path], object]
"""What is tried on a pack."""


@dataclass(frozen=True)
class Place:
    """A pack with the tasks `one` and `two`, their runs, the base, and room for bad things."""

    root: Path
    pack: Path
    base: Path
    run: Path

    def bad(self, name: str = "bad") -> Path:
        """A new directory."""
        path = self.root / name
        path.mkdir(parents=True)
        return path

    def encode(self, run: Path, **changes: Any) -> Call:
        """What encodes a run as task `bad`."""
        changes = {"base": self.base, "task": "bad", **changes}
        return lambda pack: petlpack.encode(run, pack, **changes)

    def snapshot(self, pack: Path | None = None) -> dict[str, tuple[bytes, int] | None]:
        """Every directory and every file of the pack with its bytes and time."""
        found: dict[str, tuple[bytes, int] | None] = {}
        for path in (pack or self.pack).rglob("*"):
            time = 0 if path.name == ".lock" else path.stat().st_mtime_ns  # filelock before 4 opens it anew
            found[path.relative_to(self.root).as_posix()] = (path.read_bytes(), time) if path.is_file() else None
        return found

    def part(self, task: str, what: str) -> Path:
        """The shared part of a task that is its template, or its kept file."""
        opened = petlpack.open(self.pack)[task]
        digest = opened.manifest.shared[0] if what == "template" else opened.template.files["config.json"]
        return self.pack / "shared" / f"{digest}{SUFFIX}"

    def check_others(self) -> None:
        """Check that the earlier tasks decode."""
        for checked in petlpack.verify(self.pack, self.base):
            assert checked.error is None

    def refused(self, call: Call, error: type[PetlpackError], *words: str) -> PetlpackError:
        """Check that a call is refused by the right error, well told, and leaves every file of the pack alone."""
        before = self.snapshot()
        with pytest.raises(PetlpackError) as caught:
            call(self.pack)
        assert type(caught.value) is error, caught.value
        assert caught.value.exit_code == EXIT[error]
        for word in words:
            assert word in caught.value.message
        assert caught.value.message.isprintable()
        assert caught.value.hint, f"no hint: {caught.value.message}"
        assert self.snapshot() == before
        self.check_others()
        return caught.value


def write_place(root: Path) -> Path:
    """Write what a `Place` is a copy of to a directory."""
    run, base = write_pair(root, 1, **SMALL)
    petlpack.encode(run, root / "pack", base, task="one")
    second = write_run(root / "second", make_pair(2, labels=3, share=0.1, **SMALL)[0])
    petlpack.encode(second, root / "pack", base, task="two")
    return root


@dataclass(frozen=True)
class Methods:
    """Runs of the codecs mask, hyper and merge, and room for packs of them."""

    root: Path
    runs: dict[str, tuple[Path, dict[str, Any]]]

    @property
    def base(self) -> Path:
        """The base of the run of codec hyper."""
        return self.root / "t5"

    def pack(self, name: str = "pack") -> Path:
        """A new pack of all."""
        for run in self.runs:
            self.encode(run, self.root / name)
        return self.root / name

    def encode(self, run: str, pack: Path, **changes: Any) -> list[petlpack.Encoded]:
        """Encode one of the runs on one thread."""
        directory, options = self.runs[run]
        return petlpack.encode(directory, pack, **{"jobs": 1, **options, **changes})

    def wrong(self, pack: Path) -> set[str]:
        """The names of the tasks and parts that are not as they were written."""
        return {found.name for found in petlpack.verify(pack, self.base) if found.error is not None}

    def state(self, pack: Path) -> dict[str, Any]:
        """What every task decodes to."""
        return {name: task.state_dict(self.base) for name, task in petlpack.open(pack).items()}


def snapshot(pack: Path) -> dict[str, bytes]:
    """Every file of a pack but the lock."""
    return {
        path.relative_to(pack).as_posix(): path.read_bytes()
        for path in pack.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def same(state: Any, other: Any) -> bool:
    """Whether two tasks decoded to the same tensors, or both are none."""
    if state is None or other is None:
        return state is other
    return state.keys() == other.keys() and all(bool(state[name].equal(other[name])) for name in state)


class RunsWhenLoaded:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


def _offsets(path: Path) -> tuple[dict[str, tuple[int, int]], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    table.pop("__metadata__")
    return {name: tuple(8 + length + at for at in row["data_offsets"]) for name, row in table.items()}, content


def _zeroed(path: Path) -> bytes:
    offsets, content = _offsets(path)
    start, stop = next(iter(offsets.values()))
    return content[:start] + bytes(stop - start) + content[stop:]


def _swapped(path: Path) -> bytes:
    offsets, content = _offsets(path)
    first, second = sorted(offsets.values())[:2]
    return content[: first[0]] + content[slice(*second)] + content[slice(*first)] + content[second[1] :]


def _without_manifest(path: Path) -> bytes:
    offsets, content = _offsets(path)
    return content[: offsets["manifest"][0]]


def _block_of_another(path: Path) -> bytes:
    other = (path.parent / f"two{SUFFIX}").read_bytes()
    content = path.read_bytes()
    middle = len(content) // 2
    return content[:middle] + other[middle : middle + 64] + content[middle + 64 :]


DAMAGES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "half": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "zeros": lambda path: bytes(path.stat().st_size),
    "zeroed section": _zeroed,
    "swapped sections": _swapped,
    "no manifest": _without_manifest,
    "block of another task": _block_of_another,
    "text": lambda path: b"this is not the file you are looking for",
    "a shared part": lambda path: write_shared(b"x" * 200),
}
