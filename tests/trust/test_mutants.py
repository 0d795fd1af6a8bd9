"""The product without one of its guards: a test notices, whichever it is (tools/mutants.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command_line import posix
from tests.support.sampling import Sample
from tests.support.tally import Tally
from tools.mutants import ROOT, mutants, report, try_all, unmutated


def test_every_mutant_takes_away_what_is_there() -> None:
    for mutant in mutants():
        mutant.compiled()
    names = [(mutant.file, mutant.what) for mutant in mutants()]
    assert len({*names}) == len(names)


def test_every_test_of_a_mutant_is_there() -> None:
    for test in {test for mutant in mutants() for test in mutant.tests}:
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), test


@posix
@pytest.mark.trust(64)
def test_a_product_without_a_guard_is_noticed(tmp_path: Path, sample: Sample, tally: Tally) -> None:
    chosen = [*sample(mutants())]
    outcomes = try_all(chosen, tmp_path, jobs=os.cpu_count() or 1)
    told = "\n".join(report(outcomes))
    assert all(outcome.killed for outcome in outcomes), told
    if sample.step == 1:  # elsewhere these tests run beside this one
        status, by = unmutated(chosen, tmp_path)
        assert status == 0, f"fails without a mutant, too: {by}"
    tally("mutants of the product killed", len(outcomes))
