"""Supermask scores to masks, once, at encode: PROPETL keeps the entries with the largest scores."""

from __future__ import annotations

import math

import numpy as np

from petlpack.errors import RunError, printable
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.tensor import Tensor

LESS = 0.98
"""Share of the bits that a common mask must save to be worth its tables."""


def mask_of(scores: Tensor, keep: float, name: str, layers: bool = False) -> Tensor:
    """Return the mask of a matrix of scores: n - int((1 - keep) n) entries with the largest sizes.

    "One Network, Many Masks" section 3.2; modeling.py:815-833. Of equal scores the later entries are kept (the
    reference sorts without a rule for ties). With `layers` every row of the first dimension is a mask of its own.
    Raises RunError where a score is no number.
    """
    if scores.dtype.kind != "float":
        raise RunError(f"scores '{printable(name)}' are {scores.dtype.name}, not floats")
    sizes = np.abs(cast_bits(scores.bits(), scores.dtype, DTYPES["F32"]).view("<f4"))
    if np.isnan(sizes).any():
        raise RunError(
            f"scores '{printable(name)}' have {int(np.isnan(sizes).sum()):,} NaN entries",
            hint="the training diverged: use an earlier checkpoint",
        )
    rows = sizes.reshape(sizes.shape[0] if layers else 1, -1)
    dropped = int((1 - keep) * rows.shape[1])
    mask: Bits = np.ones(rows.shape, np.uint8)
    for row, kept in zip(rows, mask, strict=True):
        kept[np.argsort(row, kind="stable")[:dropped]] = 0
    return Tensor.of(mask.reshape(scores.shape), DTYPES["BOOL"])


def stored_mask(tensor: Tensor) -> Tensor | None:
    """Return a mask that is stored as one: booleans, or numbers of which each is 0 or 1; None for scores."""
    if tensor.dtype.name == "BOOL":
        return tensor
    numbers = tensor.numpy()
    if not bool(((numbers == 0) | (numbers == 1)).all()):
        return None
    return Tensor.of((numbers == 1).astype(np.uint8), DTYPES["BOOL"])


def check_keep(keep: float, where: object) -> float:
    """Return a keep ratio; raises RunError for one that is no share."""
    if not 0 < keep <= 1:
        raise RunError(f"'{printable(str(where))}': keep_ratio must be in (0, 1], got {keep:g}")
    return keep


def consensus(masks: list[Tensor]) -> Tensor | None:
    """Return the mask of what most masks keep, where coding each by it takes fewer bits, itself included; else None.

    A mask keeps what is not 0: a file may have other bytes than 0 and 1. Masks of several shapes have no common one.
    """
    if len({mask.shape for mask in masks}) > 1:
        return None
    kept = np.stack([mask.bits().reshape(-1) != 0 for mask in masks])
    common: Bits = (2 * kept.sum(axis=0, dtype=np.int64) > len(masks)).astype(np.uint8)
    alone = sum(_bits(int(row.sum()), len(row)) for row in kept)
    together = _bits(int(common.sum()), len(common))
    for value in (0, 1):
        part = kept[:, common == value]
        together += sum(_bits(int(row.sum()), len(row)) for row in part)
    return Tensor.of(common.reshape(masks[0].shape), DTYPES["BOOL"]) if together < LESS * alone else None


def _bits(ones: int, count: int) -> float:
    """Return n H(ones / n), the bits that the place of so many ones needs."""
    if ones in (0, count):
        return 0.0
    share = ones / count
    return -count * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
