"""Which coder and which plan a large array gets: told by a sample, as good as if all had been tried."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petlpack import coding
from petlpack.codecs.units import OWN_CODERS, UNIT
from petlpack.coding import estimate, row_plan, rows
from petlpack.coding.array import Array, Level
from petlpack.coding.planes import Planes
from petlpack.coding.registry import coder
from petlpack.tensors.dtypes import DTYPES, Bits
from tests.coding.test_coding import LEVELS, matrices
from tests.support.small_runs import weights

CODERS = ("rows", "ulps", "numbers")
SHAPES = [(2 * estimate.LARGE // 384, 384), (3, estimate.LARGE), (2 * estimate.LARGE, 1)]


@pytest.mark.exhaustive(3)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_what_a_sample_tells_takes_as_few_bytes_as_the_best_of_all(
    dtype: str, shape: tuple[int, int], level: Level
) -> None:
    for what, bits, near in matrices(DTYPES[dtype], *shape, seed=2):
        array = Array(DTYPES[dtype], bits.size, shape[1], near.reshape(-1))
        chosen, data = coding.encode(bits.reshape(-1), array, CODERS, level)
        assert np.array_equal(coding.decode(chosen, data, array, "section"), bits.reshape(-1))
        every = {one: coder(one).encode(bits.reshape(-1), array, level) for one in CODERS}
        fewest = min(len(one) for one in every.values() if one is not None)
        most = 1.05 if shape[1] == 1 else 1.01  # a row of one weight hardly tells how far it moves
        assert len(data) <= fewest * (65 / 64 if level == "fast" else most) + 1000, (what, chosen)


def test_a_plan_is_chosen_as_if_both_were_coded() -> None:
    for what, bits, near in matrices(DTYPES["BF16"], *SHAPES[0], seed=3):
        array = Array(DTYPES["BF16"], bits.size, 384, near.reshape(-1))
        data = rows.Rows().encode(bits.reshape(-1), array, "small")
        with mock.patch.object(rows, "LARGE", bits.size):
            best = rows.Rows().encode(bits.reshape(-1), array, "small")
        assert data is not None
        assert best is not None
        assert len(data) <= len(best) * 1.002 + 100, what


def test_an_array_that_is_not_made_of_whole_rows_is_sampled() -> None:
    bits = weights("F32", (estimate.LARGE + 1,), 1).bits()
    array = Array(DTYPES["F32"], bits.size, 384, bits + np.uint32(1))
    chosen, of_sample = estimate.sample(bits, array)
    assert of_sample.prediction is not None
    assert np.array_equal(chosen + np.uint32(1), of_sample.prediction)
    assert len(chosen) == of_sample.count == of_sample.row
    assert np.array_equal(coding.decode(*coding.encode(bits, array, CODERS, "small"), array, "section"), bits)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), min_size=1, max_size=60), st.sampled_from("iq"))
def test_the_commonest_value_of_an_index_is_the_largest_of_those(pairs: list[tuple[int, int]], kind: str) -> None:
    index, values = np.array([i for i, _ in pairs], np.intp), np.array([v for _, v in pairs], kind)
    modes = row_plan._modes(index, values)
    for at in {i for i, _ in pairs}:
        found = [v for i, v in pairs if i == at]
        assert modes[at] == max(found, key=lambda value: (found.count(value), value))


@given(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=40), st.integers(1, 50))
def test_classes_are_split_as_a_mask_for_each_would(classes: int, labels: list[int], block: int) -> None:
    label = np.array(labels, np.uint8) % np.uint8(classes)
    values = np.arange(label.size)
    with mock.patch.object(rows, "_BLOCK", block):
        if label.size:
            parts = rows._split_classes(label, classes, values)
            assert all(np.array_equal(part, values[label == one]) for one, part in enumerate(parts))


def _levels(bits: Bits, dtype: str) -> list[Level]:
    """Return the levels at which planes are tried."""
    tried: list[Level] = []
    encode = Planes.encode

    def watch(planes: Planes, bits: Bits, array: Array, level: Level) -> bytes:
        tried.append(level)
        return encode(planes, bits, array, level)

    with mock.patch.object(Planes, "encode", watch):
        coding.encode(bits, Array(DTYPES[dtype], bits.size, bits.size), OWN_CODERS, "small")
    return tried


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_planes_are_tried_hard_only_where_they_may_win(dtype: str) -> None:
    adapter = weights(dtype, (UNIT // 4,), 1).bits()
    assert _levels(adapter, dtype) == ["fast"]
    assert _levels(np.tile(adapter[:1000], 200), dtype) == ["fast", "small"]
    assert _levels(adapter[:1000], dtype) == ["small"]
