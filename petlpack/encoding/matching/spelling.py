"""How one tensor may be called in two files: old spellings, and the wrappers that libraries put around modules."""

from __future__ import annotations

from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, DeepSpeed, AveragedModel
        "_module",  # Opacus
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",  # FullyShardedDataParallel
        "_fpw_module",  # fairscale's
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_forward_module",  # Lightning
        "base_layer",  # PEFT, around a layer that it adapts
        "original_module",  # PEFT, the frozen one beside `modules_to_save`
    }
)
"""Parts of names that stand for an object around a module, anywhere in the name."""

KEYED_WRAPPERS = frozenset({"modules_to_save"})
"""Those that are followed by a key of their own: the adapter's name."""


def modern(name: str) -> str:
    """Return a name in today's spelling: LayerNorm's gamma and beta became weight and bias."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def plain(name: str) -> str:
    """Return a name in today's spelling without wrappers; the last part is the tensor's own, whatever it is called."""
    *parts, last = modern(name).split(".")
    kept = [
        part
        for part, before in zip(parts, ["", *parts], strict=False)
        if part not in WRAPPERS and part not in KEYED_WRAPPERS and before not in KEYED_WRAPPERS
    ]
    return ".".join([*kept, last])


def comparable(shape: tuple[int, ...], base: tuple[int, ...]) -> bool:
    """Tell whether two shapes are equal, or differ only in the number of rows of a matrix (resized embeddings)."""
    return shape == base or (len(shape) == len(base) >= 2 and shape[1:] == base[1:])


def likeness(name: str, other: str) -> tuple[int, int, int]:
    """Return how alike two names are, the larger the more: equal last parts, equal numbers, equal first parts."""
    parts, others = plain(name).split("."), plain(other).split(".")
    return _in_common(parts[::-1], others[::-1]), int(numbers(name) == numbers(other)), _in_common(parts, others)


def numbers(name: str) -> tuple[str, ...]:
    """Return the numbers among the parts of a name: which layer, which expert."""
    return tuple(part for part in name.split(".") if part.isdecimal())


def _in_common(parts: list[str], others: list[str]) -> int:
    """Return how many leading parts two names have in common."""
    count = 0
    for part, other in zip(parts, others, strict=False):
        if part != other:
            break
        count += 1
    return count
