"""Every parser, coder, codec and layout on changed bytes: what is read is as it was declared, or refused by name.

The quick form changes seeds by chance that is the same on every run. `make trust` lets atheris, where it is installed,
change what covers new lines of the library. What it found once stands in `tests/support/fuzz/kept.jsonl`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from petlpack.codecs.registry import CODECS
from petlpack.coding.registry import CODERS
from petlpack.layouts.registry import LAYOUTS
from tests.support.fuzz.guard import guarded
from tests.support.fuzz.mutations import blind
from tests.support.fuzz.target import Target
from tests.support.fuzz.targets import TARGETS
from tests.support.tally import FUZZED, Tally, bar_of

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("layout ", "task by ")
"""How the names of those targets begin of which one attack takes milliseconds."""

KEPT = [json.loads(line) for line in (ROOT / "tests/support/fuzz/kept.jsonl").read_text(encoding="utf-8").splitlines()]

MOST_SECONDS = int(os.environ.get("PETLPACK_FUZZ_SECONDS", "7200"))
"""Seconds after which a target ends that has not run as often as it has to: on a busy machine."""


@pytest.fixture(scope="module")
def target_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Target]:
    """Return what makes a target in a directory of its own, once."""

    @cache
    def make(name: str) -> Target:
        place = tmp_path_factory.mktemp("fuzz")
        made = TARGETS[name](place)
        return Target(list(made.seeds), guarded(made.attack, place), made.mutate)

    return make


def test_each_id_of_a_registry_has_a_target() -> None:
    wanted = {f"coder {name}" for name in CODERS} | {f"layout {name}" for name in LAYOUTS}
    wanted |= {f"{what} {name}" for name in CODECS for what in ("codec", "rules of", "task by")}
    assert wanted <= TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_changes_of_them(name: str, target_of: Callable[[str], Target]) -> None:
    target = target_of(name)
    seeds = list(target.seeds)
    assert seeds
    for number in range(12 if name.startswith(SLOW) else 100):
        rng = random.Random(f"{name} {number}")
        data = rng.choice(seeds)
        for _ in range(rng.choice((0, 1, 1, 2, 5))):
            data = target.mutate(data, rng, partial(blind, rng=rng))
        target.attack(data)


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in KEPT])
def test_what_was_found_once(case: dict[str, Any], target_of: Callable[[str], Target]) -> None:
    target_of(case["target"]).attack(bytes.fromhex(case["data"]))


@pytest.mark.trust(1000)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("name", TARGETS)
def test_under_atheris(name: str, tmp_path: Path, tally: Tally, request: pytest.FixtureRequest) -> None:
    row = f"{FUZZED}{name}"
    runs = bar_of(row) if request.config.getoption("trust") else 500
    options = (f"-runs={runs}", f"-max_total_time={MOST_SECONDS}", "-seed=1", "-timeout=60", "-rss_limit_mb=4096")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzz", name, tmp_path, "-print_final_stats=1", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "cli")))},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=MOST_SECONDS + 600,
    )
    found = sorted(tmp_path.glob("found-*"))
    assert (done.returncode, found) == (0, []), f"{[f.read_bytes().hex() for f in found]}\n{done.stderr[-4000:]}"
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert executed is not None, done.stderr[-4000:]
    tally(row, int(executed[1]))
