"""Quantised weights of a base, with the scales that stand beside them."""

from __future__ import annotations

from collections.abc import Mapping

from petlpack.tensors.views import BaseRef, Reshaped, Scaled, Shape, View

ENDINGS = ("_scale_inv", "_scale")
"""What is put behind the name of a quantised tensor for that of its scales, which both are to be multiplied with."""

USUAL_BLOCKS = (128, 64, 32, 16, 256, 512)
"""Sizes that are tried first where a cut last block leaves open how large the others are; 128 is that of fp8."""


def scaled_views(refs: Mapping[str, BaseRef]) -> dict[str, View]:
    """Return the float tensors of 8 bits that have scales, each with them: {name: view}."""
    views: dict[str, View] = {}
    for name, ref in refs.items():
        scales = next((refs[name + ending] for ending in ENDINGS if name + ending in refs), None)
        if scales is None or ref.dtype.itemsize > 1 or scales.dtype.itemsize > 4 or not ref.shape:
            continue
        shape = scales.shape if len(scales.shape) == len(ref.shape) else _spread(scales.shape, ref.shape)
        blocks = None if shape is None else _blocks(ref.shape, shape)
        if shape is not None and blocks is not None:
            views[name] = Scaled(blocks, ref, scales if scales.shape == shape else Reshaped(shape, scales))
    return views


def _spread(scales: Shape, shape: Shape) -> Shape | None:
    """Return the shape of scales with the axes of what they scale: one for all, or one for each row."""
    if scales in ((), (1,)):
        return (1,) * len(shape)
    return (*scales, *(1 for _ in shape[1:])) if scales == shape[:1] else None


def _blocks(shape: Shape, scales: Shape) -> Shape | None:
    """Return the size of a block along each axis; None where so many scales fit no block."""
    blocks = []
    for size, count in zip(shape, scales, strict=True):
        usual = (block for block in USUAL_BLOCKS if count > 1 and -(-size // block) == count)
        block = next(usual, -(-size // count))
        if -(-size // block) != count:
            return None
        blocks.append(block)
    return tuple(blocks)
