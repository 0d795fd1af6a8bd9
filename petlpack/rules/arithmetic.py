"""What rules compute: tensors that are computed when they are read, in stated precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petlpack.errors import DamageError
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.tensor import Tensor

Numbers = NDArray[Any]


def computed(like: Tensor, shape: tuple[int, ...], compute: Callable[[], NDArray[Any]]) -> Tensor:
    """Return a tensor of the dtype of `like` that is computed, as floats or bits, when it is read."""

    def read_flat(start: int, stop: int) -> Bits:
        with np.errstate(all="ignore"):  # infinity times 0 is no number, and nothing to warn of
            return to_bits(compute(), like).reshape(-1)[start:stop]

    return Tensor(like.dtype, shape, read_flat)


def floats(tensor: Tensor) -> NDArray[Any]:
    """Return a float tensor's numbers, those of dtypes that numpy lacks as float32; raises DamageError for others."""
    if tensor.dtype.kind != "float":
        raise DamageError(f"a rule needs a float tensor, got {tensor.dtype.name}", code="rule-shape")
    return tensor.numpy()


def to_bits(numbers: NDArray[Any], like: Tensor) -> Bits:
    """Return floats as bits of the dtype of `like`, rounded to nearest, ties to even."""
    native = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}.get(like.dtype.name)
    if native is not None:
        with np.errstate(over="ignore"):
            bits: Bits = np.ascontiguousarray(numbers, dtype=native).view(like.dtype.bits)
        return bits
    wide = np.ascontiguousarray(numbers, dtype="<f8").view("<u8")
    return cast_bits(wide, DTYPES["F64"], like.dtype)


def softmax(scores: Numbers) -> Numbers:
    """Return softmax in the scores' own precision, computed in float64: of equal scores exactly 1 / n, rounded."""
    powers = np.exp(scores.astype(np.float64) - scores.max())
    weights: Numbers = (powers / powers.sum()).astype(scores.dtype)
    return weights


def average(experts: Sequence[Tensor], scores: Tensor) -> Tensor:
    """Return the sum of softmax(scores)[e] times expert e, in the experts' order and precision, from +0 on.

    AdaMix, expert_soup.py:34-45. All experts have one dtype and shape, and `scores` is as long as they are many.
    """
    first = experts[0]

    def compute() -> Numbers:
        total = np.zeros(first.shape, floats(first).dtype)  # from 0, as the reference: -0.0 becomes +0.0
        for weight, expert in zip(softmax(floats(scores)), experts, strict=True):
            total = total + weight.astype(total.dtype) * floats(expert)
        return total

    return computed(first, first.shape, compute)


def produce(codes: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Return W2 tanh(W1 codes + b1) + b2, a row for each row of `codes`, computed in float64 and rounded once.

    Prefix tuning's reparametrisation (prefix_tuning.py:93-126). The shapes follow each other.
    """

    def compute() -> Numbers:
        w1, b1, w2, b2 = (floats(tensor).astype(np.float64) for tensor in (*first, *second))
        produced: Numbers = np.tanh(floats(codes).astype(np.float64) @ w1.T + b1) @ w2.T + b2
        return produced

    return computed(codes, (codes.shape[0], second[0].shape[0]), compute)
