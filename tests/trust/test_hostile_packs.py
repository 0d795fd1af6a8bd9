"""Packs that a stranger made: whatever stands in them, under digests that are right, is told at once and by name.

Every command that reads a pack runs in a process of its own, which has a second, and memory of twice the pack and
128 MB.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from petlpack.exports.registry import known_exports
from tests.support.confined import Runner
from tests.support.sampling import Sample
from tests.support.strangers import KINDS, Hostile
from tests.support.tally import Tally

OF_EACH = {"texts": 257, "sections": 31, "references": 5, "directories": 5, "journals": 47}
"""Of so many packs the full form takes one: primes, so that every field and every value comes up."""


PARTS = 4
"""Tests of each kind, which run beside one another."""


def commands(place: Path, task: str, as_json: bool) -> Iterator[list[str]]:
    """Yield what people do with a stranger's pack, in words and as JSON, and what the library reads of it.

    What is written is the same either way, and takes longest: of that one of both.
    """
    pack, base = str(place / "pack"), place / "base"
    against = ["--base", str(base)] if base.exists() else []
    for words in (
        *(["list", pack], ["list", pack, "--long"], ["show", pack, task], ["stats", pack]),
        ["verify", pack, "--jobs", "1", *against],
    ):
        yield words
        yield [*words, "--json"]
    decode = ["decode", pack, task, str(place / "out"), "--jobs", "1", *against, *(["--json"] if as_json else [])]
    yield from ([*decode, "--to", export] for export in known_exports())
    yield ["load", pack, task, *([str(base)] if against else [])]


def outside(place: Path) -> dict[str, tuple[int, int]]:
    """Return every file that is not what a command wrote to its output: its bytes and time; of a pack not the lock."""
    paths = (path for path in place.rglob("*") if path.name != ".lock" and (place / "out") not in (path, *path.parents))
    states = {path.relative_to(place).as_posix(): path.lstat() for path in paths}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items() if not name.endswith("/tasks")}


def attack(runner: Runner, place: Path, hostile: Hostile, as_json: bool) -> None:
    """Check what every command does with a pack."""
    place.mkdir()
    task = hostile.write(place)
    before = outside(place)
    for arguments in commands(place, task, as_json):
        found = runner.check(place / "pack", arguments)
        assert arguments[0] != "decode" or found["exit"] == 0 or not (place / "out").exists(), (hostile.what, found)
        shutil.rmtree(place / "out", ignore_errors=True)
    assert outside(place) == before, hostile.what
    shutil.rmtree(place)


@pytest.mark.trust(60)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_of_a_stranger_is_read_or_refused(
    kind: str, part: int, tmp_path: Path, runner: Runner, sample: Sample, tally: Tally
) -> None:
    """By every command and the library: all errors are ours, and nothing is written elsewhere."""
    cases = [hostile for number, hostile in enumerate(KINDS[kind](tmp_path / "good")) if number % OF_EACH[kind] == 1]
    taken: Sequence[Hostile] = list(sample(cases[part::PARTS]))
    for number, hostile in enumerate(taken):
        attack(runner, tmp_path / f"{number}", hostile, bool(number % 2))
    tally("hostile packs", len(taken))
