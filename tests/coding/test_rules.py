"""What the reader of a coder forbids, its encoder does not write: it declines such an array."""

from __future__ import annotations

import numpy as np
import pytest

from petlpack import coding
from petlpack.coding.registry import coder
from petlpack.tensors.dtypes import DTYPES

DECLINED: dict[str, tuple[str, str, list[int], int, list[int] | None]] = {
    "coder-array bitmap": ("bitmap", "U8", [0, 1], 1, None),
    "coder-array bitmap values": ("bitmap", "BOOL", [0, 2], 1, None),
    "coder-array masks": ("masks", "U8", [0, 1], 2, None),
    "coder-array masks values": ("masks", "BOOL", [0, 2], 2, None),
    "coder-array gaps": ("gaps", "I32", [0, 1], 1, None),
    "coder-array rows": ("rows", "I32", [0, 1], 1, [0, 0]),
    "position-order gaps": ("gaps", "U32", [1, 0], 1, None),
    "position-order gaps equal": ("gaps", "U32", [1, 1], 1, None),
    "prediction-missing ulps": ("ulps", "F32", [1, 2], 1, None),
    "prediction-missing rows": ("rows", "F32", [1, 2], 1, None),
    "prediction-form parts of rows": ("masks", "BOOL", [0, 1, 1, 0], 2, [0, 1, 1]),
    "prediction-form values": ("masks", "BOOL", [0, 1, 1, 0], 2, [0, 2]),
}
"""Arrays as (coder, dtype, bits, row, prediction); before the space stands what a reader says of them."""


@pytest.mark.parametrize(
    "case", [pytest.param(name, id=name, marks=pytest.mark.rule(name.split()[0])) for name in DECLINED]
)
def test_a_coder_declines_what_its_reader_forbids(case: str) -> None:
    coder_id, dtype, bits, row, prediction = DECLINED[case]
    known = DTYPES[dtype]
    predicted = None if prediction is None else np.array(prediction, known.bits)
    array = coding.Array(known, len(bits), row, predicted)
    assert coder(coder_id).encode(np.array(bits, known.bits), array, "small") is None
