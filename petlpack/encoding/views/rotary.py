"""Rows of rotary attention in another order: a head's pairs of rows in turn, or the first halves before the second.

Original checkpoints of several families have them in pairs, and those that Transformers converted have halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from petlpack.tensors.views import Concatenated, Reshaped, Sliced, View

HEAD_SIZES = (128, 64, 256, 96, 80, 192, 112, 160, 32, 16, 8)
"""Rows of one head, the most frequent first."""


def reordered(view: View) -> Iterator[View]:
    """Yield a matrix, or a vector of biases, with the rows of its heads in the other order, for each size of a head."""
    rows, width = view.shape[0], math.prod(view.shape[1:])
    for head in HEAD_SIZES:
        if rows % head == 0:
            half = head // 2
            yield _woven(view, (rows // 2, 2 * width), width, (rows // head, half * width))
            yield _woven(view, (rows // head, head * width), half * width, (rows // 2, width))


def _woven(view: View, across: tuple[int, int], cut: int, along: tuple[int, int]) -> View:
    """Return what two halves of the columns of a matrix make, each in another shape, beside each other."""
    matrix = Reshaped(across, view)
    halves = (Sliced(1, 0, cut, matrix), Sliced(1, cut, 2 * cut, matrix))
    return Reshaped(view.shape, Concatenated(1, tuple(Reshaped(along, half) for half in halves)))
