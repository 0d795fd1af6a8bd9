"""What masks have in common is found whatever bytes they are made of."""

from __future__ import annotations

import numpy as np

from petlpack.layouts.scores import consensus
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor


def mask(values: list[int]) -> Tensor:
    return Tensor.of(np.array(values * 32, np.uint8), DTYPES["BOOL"])


def test_a_mask_of_other_bytes_than_0_and_1_keeps_what_is_not_0() -> None:
    masks = [mask([0, 1, 0, 1]) for _ in range(5)]
    odd = [mask([0, 2, 0, 255]) for _ in range(5)]
    found, same = consensus(masks), consensus(odd)
    assert found is not None
    assert same is not None
    assert same.bits().tolist() == found.bits().tolist()


def test_masks_of_several_shapes_have_nothing_in_common() -> None:
    assert consensus([mask([0, 1]), mask([0, 1, 1]), mask([0, 1])]) is None
