"""docs/accounting.md: every worked example, by arithmetic written out by hand, and by the library."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import petlpack
from petlpack.analyze.bases import LORA_TARGETS
from petlpack.analyze.bounds import bound_bits, choose_bits
from petlpack.analyze.figures import entropy
from petlpack.analyze.forecast import GB
from petlpack.analyze.growth import Growth, PartRole, break_even, linear
from petlpack.analyze.sampling import estimate, quantile
from petlpack.analyze.stats import shares_of
from petlpack.analyze.tables import divided
from petlpack.codecs.units import Role, Unit
from petlpack.sections.read import DecodedSection
from petlpack.tensors.dtypes import DTYPES
from tests.support.small_runs import weights, write_run

PAGE = Path(__file__).parents[2] / "docs" / "accounting.md"

EXAMPLES: dict[str, dict[str, Any]] = {
    name: json.loads(text)
    for name, text in re.findall(r"```json example (\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
}


def test_every_example_is_recomputed() -> None:
    here = set(re.findall(r"def test_example_(\w+)\(", Path(__file__).read_text(encoding="utf-8")))
    assert set(EXAMPLES) == here
    assert len(here) >= 8


def test_example_share() -> None:
    told = EXAMPLES["share"]
    assert told["share"] == {"a": 334, "b": 334, "c": 333}
    assert 334 + 334 + 333 == told["bytes"] == 1001
    assert shares_of({"part": tuple(told["tasks"])}, {"part": told["bytes"]}) == told["share"]


def test_example_tensors() -> None:
    told = EXAMPLES["tensors"]
    # 100 * 10 / 33 = 30.3; of the 70 left 70 * 20 / 23 = 60.9; the last has what is left
    assert told["divided"] == {"query": 30, "value": 60, "bias": 10}
    assert dict(divided(told["bytes"], list(told["elements"].items()))) == told["divided"]


def test_example_lora() -> None:
    told = EXAMPLES["lora"]
    assert told["bytes"] == 4 * 8 * (768 + 768) * 24 == 1179648
    assert told["matrices"] == 12 * 2
    for name in (
        "bert.encoder.layer.0.attention.self.query.weight",
        "model.layers.3.self_attn.v_proj.weight",
        "q.weight",
    ):
        assert LORA_TARGETS.fullmatch(name)
    for name in ("encoder.layer.0.attention.self.key.weight", "layer.0.query.bias", "layer.0.my_query.weight"):
        assert not LORA_TARGETS.fullmatch(name)


def test_example_papers() -> None:
    told = EXAMPLES["papers"]
    assert told["entries"] == 12 * 2 * 49152
    assert told["paper_bytes"] == 4 * 99136 + 1179648 // 8 == 4 * 136000
    assert told["percent_of_base"] == pytest.approx(100 * (99136 + 1179648 / 32) / 124645632, rel=1e-4)
    hand = -0.1 * math.log2(0.1) - 0.9 * math.log2(0.9)
    assert told["entropy_bits"] == pytest.approx(hand, rel=1e-4)
    assert entropy(told["density"]) == pytest.approx(hand)


def _growth(told: dict[str, Any]) -> Growth:
    roles = tuple(
        PartRole(name, tuple((users, nbytes) for users, nbytes in rows)) for name, rows in told["roles"].items()
    )
    return Growth(len(told["own"]), told["pack_json"], tuple(told["own"]), roles)


def test_example_growth() -> None:
    told = EXAMPLES["growth"]
    mean = (1000 + 1200 + 900 + 1100) / 4
    # a config that two of four use is needed by one drawn task with 1/2, by two with 1 - C(2,2)/C(4,2) = 5/6
    one = 37 + mean + 800 + 600 / 2 + 2 * 500 / 4
    two = 37 + 2 * mean + 800 + 600 * 5 / 6 + 2 * 500 / 2
    four = 37 + 4 * mean + 800 + 600 + 2 * 500
    # configs: at half of the tasks the curve rises by 600 (5/6 - 1/2) + 1000 / 4 = 450, at its end by 1000 / 4 = 250
    power = 1 - math.log2(450 / 250)
    many = 37 + 400 * mean + 800 + 1600 + 1000 * (100**power - 1) / power
    assert told["bytes"] == {"1": one, "2": two, "4": four, "400": pytest.approx(many, abs=0.05)}
    assert told["next_task"] == mean + 1000 / 4
    assert told["next_task_at_least"] == mean
    growth = _growth(told)
    for count, nbytes in told["bytes"].items():
        assert growth.at(int(count)) == pytest.approx(nbytes, abs=0.05)
    assert (growth.marginal, growth.least_marginal) == (told["next_task"], told["next_task_at_least"])
    # the model has no kink: its slope just beyond the pack is what the next task takes
    assert growth.at(5) - growth.at(4) == pytest.approx(growth.marginal, rel=0.05)


def test_example_break_even() -> None:
    told = EXAMPLES["break_even"]
    assert 10_000_000 + 11 * 2_000_000 < 11 * 3_000_000
    assert 10_000_000 + 10 * 2_000_000 >= 10 * 3_000_000
    assert told["tasks"] == 11
    assert break_even(linear(told["each"], told["once"]), linear(told["other"])) == 11
    assert break_even(linear(3.0), linear(3.0)) is None
    assert break_even(linear(1.0), linear(2.0)) == 1


def test_example_forecast() -> None:
    told = EXAMPLES["forecast"]
    deviation = math.sqrt(((1000 - 1050) ** 2 + (1200 - 1050) ** 2 + (900 - 1050) ** 2 + (1100 - 1050) ** 2) / 3)
    hand = 1.96 * deviation / math.sqrt(4) / 1050
    assert told["error"] == pytest.approx(hand, rel=1e-3)
    assert Growth(4, 0, tuple(told["own"])).error == pytest.approx(hand)
    assert (
        told["monthly"]
        == pytest.approx(429106.3 / 1e9 * 0.023, rel=1e-4)
        == pytest.approx(told["bytes"] / GB * told["price"], rel=1e-4)
    )
    assert told["days"] == (400 - 4) / 20


def _section(name: str, dtype: str, values: list[int], row: int, size: int = 0) -> DecodedSection:
    bits = np.array(values, DTYPES[dtype].bits)
    roles: dict[str, Role] = {"positions": "positions", "masks": "mask"}
    role: Role = next((roles[part] for part in name.split(".") if part in roles), "own")
    unit = Unit(name.removesuffix(".positions"), DTYPES[dtype], row, (), "own")
    if size:
        unit = type("Sized", (), {"size": size})()
    return DecodedSection(name, unit, role, DTYPES[dtype], bits, None, row)


def test_example_bounds() -> None:
    told = EXAMPLES["bounds"]
    hand = math.log2(1000 * 999 * 998 * 997 * 996 / (5 * 4 * 3 * 2))
    assert told["positions"]["bits"] == pytest.approx(hand, abs=1e-4)
    assert choose_bits(1000, 5) == pytest.approx(hand)
    assert bound_bits(_section("sparse.0.positions", "U32", [1, 5, 7, 8, 999], 5, 1000)) == pytest.approx(hand)
    assert told["mask"]["bits"] == pytest.approx(math.log2(6), abs=1e-5)
    mask = _section("masks.0", "BOOL", [1, 0, 1, 0, 0, 1, 1, 1], 4)
    assert bound_bits(mask) == pytest.approx(math.log2(6) + math.log2(4))
    assert bound_bits(replace(mask, role="own", row=1)) == pytest.approx(math.log2(56))  # of 8, 5 are set
    assert told["numbers"]["bits"] == 8 * 1 + 4 * 2 + 4 * 2 == 24
    few = [1] * 80 + [2] * 40 + [3] * 40
    assert bound_bits(_section("tensors.0", "I32", few, 1)) == pytest.approx(240)


def test_example_survey(tmp_path: Path) -> None:
    told = EXAMPLES["survey"]
    assert told["training_state"] == 2 * 800
    assert told["total"] == 2 * 800 + 50 + 2 * 100 + 0  # without the 300
    frozen = weights("F32", (25,), 1)  # 100 bytes
    base = write_run(tmp_path / "base", {"a": frozen, "b": weights("F32", (25,), 2)})
    for seed, name in ((3, "one"), (4, "two")):
        run = write_run(tmp_path / "runs" / name, {"a": frozen, "b": weights("F32", (25,), seed)}, {"seed": seed})
        (run / "optimizer.pt").write_bytes(name.encode() + b"x" * 797)
        (run / "notes.txt").write_bytes(b"y" * 50)
    (tmp_path / "runs" / "one" / "checkpoint-1").mkdir()
    (tmp_path / "runs" / "one" / "checkpoint-1" / "pytorch_model.bin").write_bytes(b"z" * 300)
    savings = petlpack.survey([tmp_path / "runs"], base).savings
    assert {**vars(savings), "total": savings.total} == told


def test_example_sample() -> None:
    told = EXAMPLES["sample"]
    measured = {i: nbytes for i, nbytes in enumerate(told["measured"]) if nbytes is not None}
    assert told["bytes"] == sum(measured.values()) + (53 + 55) / 2
    steps = [2, -1, 2, 2, -1, 2, -1]  # between neighbours, bytes of 100 elements
    variance = sum((step / 100) ** 2 for step in steps) / 7 / 2
    hand = told["t"] * math.sqrt(variance * (100**2 + 50**2 + 50**2))
    assert told["error"] == math.ceil(hand) == 4
    found = estimate([told["elements"]] * 9, measured)
    assert (found.nbytes, found.error_bytes) == (told["bytes"], told["error"])
    assert quantile(2 * (8 - 1) / 3) == pytest.approx(told["t"], abs=1e-4)
