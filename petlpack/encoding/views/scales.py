"""Quantised weights of a base, with the scales that stand beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from petlpack.tensors.views import BaseRef, Reshaped, Scaled, Shape, View

ENDINGS = ("_scale_inv", "_scale")
"""What is put behind the name of a quantised tensor for that of its scales, which both are to be multiplied with."""

_SCALES = re.compile(r"(?!.*(input|output|act))[._].*scale.*", re.IGNORECASE)
"""What else scales are called, behind the name of the module: those of activations say nothing of its weights."""

_BESIDE = re.compile(r"[._]\w+|\.weight\.\w+")
"""What a tensor is called, behind the name of a module, that belongs to it and to no module in it."""

USUAL_BLOCKS = (128, 64, 32, 16, 256, 512)
"""Sizes that are tried first where a cut last block leaves open how large the others are; 128 is that of fp8."""


def scaled_views(refs: Mapping[str, BaseRef]) -> dict[str, list[View]]:
    """Return the float tensors of 8 bits, each with all that may be its scales, the likeliest first: {name: views}.

    Scales are tensors of the same module whose shape makes blocks of the weights; which of them are these only a model
    that was trained from the weights tells.
    """
    quantised = {_module(name): name for name, ref in refs.items() if ref.dtype.itemsize == 1 and ref.shape}
    beside: dict[str, list[str]] = {name: [] for name in quantised.values()}
    for name in refs if quantised else ():
        for module in _may_belong_to(name):
            if module in quantised and name != quantised[module]:
                beside[quantised[module]].append(name)
    views = {name: list(_scaled(refs[name], refs, others)) for name, others in beside.items()}
    return {name: found for name, found in views.items() if found}


def likeliest(name: str, views: list[View]) -> View | None:
    """Return the view whose scales are called like scales, if there is one: of others a model has to tell."""
    return next((view for view in views if _standing(name, view.refs[1].name) < _UNTOLD), None)


def _module(name: str) -> str:
    """Return what a quantised tensor is called without what only says that it is a weight."""
    return name.removesuffix(".weight")


def _may_belong_to(name: str) -> Iterator[str]:
    """Yield the names of modules that a tensor may belong to by its own."""
    ends = [match.start() for match in re.finditer(r"[._]", name)]
    return (name[:end] for end in ends if _BESIDE.fullmatch(name, end))


_UNTOLD = len(ENDINGS) + 1


def _standing(name: str, scales: str) -> int:
    """Return how likely a tensor is the scales of another by its name, the less the likelier."""
    known = next((i for i, ending in enumerate(ENDINGS) if scales == name + ending), None)
    if known is not None:
        return known
    return len(ENDINGS) if _SCALES.fullmatch(scales, len(_module(name))) else _UNTOLD


def _scaled(ref: BaseRef, refs: Mapping[str, BaseRef], others: list[str]) -> Iterator[View]:
    """Yield a quantised tensor with each of some others as its scales, where its shape lets it be that."""
    for other in sorted(others, key=lambda other: (_standing(ref.name, other), other)):
        scales = refs[other]
        told = _standing(ref.name, other) < _UNTOLD
        if scales.dtype.itemsize > 4 or (scales.dtype.itemsize == 1 and not told):
            continue
        shape = scales.shape if len(scales.shape) == len(ref.shape) else _spread(scales.shape, ref.shape)
        blocks = None if shape is None else _blocks(ref.shape, shape)
        if shape is not None and blocks is not None:
            yield Scaled(blocks, ref, scales if scales.shape == shape else Reshaped(shape, scales))


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
