"""Whether a model is its base's checkpoint and a head: what else is new in it would be frozen, and not be saved."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from petlpack.encoding.matching.names import match_names
from petlpack.errors import PetlpackError, UsageError, printable
from petlpack.methods.heads import head_parameters
from petlpack.tensors.checkpoint import find_weights, open_checkpoint

_IN_A_LAYER = re.compile(r"\.\d+\.")


def refuse_new_weights(model: nn.Module) -> None:
    """Raise UsageError for weights, other than the head's, that the base's checkpoint lacks, or has fewer rows of.

    They are random: a model made anew from that checkpoint has others, and computes otherwise. Nothing is said where
    the checkpoint that the model's config names is not on this machine, or calls the layers' weights otherwise, as
    libraries do that convert what they load.
    """
    file = _checkpoint_of(model)
    if file is None:
        return
    try:
        base = {name: tensor.shape for name, tensor in open_checkpoint(file).tensors.items()}
        names = _names_of(model)
        matches = match_names({name: shape for known, shape in names for name in known}, base)
    except PetlpackError:  # a checkpoint that is not read here, or of other names: nothing is known of it
        return
    missing = []
    for known, shape in names:
        in_base = [base[matches[name]] for name in known if name in matches]
        if shape not in in_base:
            missing.append((known, shape, in_base))
    if not missing or any(_IN_A_LAYER.search(name) for known, *_ in missing for name in known):
        return
    known, shape, in_base = missing[0]
    has = f"has {in_base[0][0]:,} rows of it, the model {shape[0]:,} rows" if in_base else "does not have it"
    raise UsageError(
        f"'{printable(known[0])}' is new in this {type(model).__name__}: the base's checkpoint "
        f"'{printable(str(file))}' {has}; it would stay random and not be saved",
        hint="make it part of the base: call model.save_pretrained(DIRECTORY) and load the model from there",
    )


def _names_of(model: nn.Module) -> list[tuple[list[str], tuple[int, ...]]]:
    """Return all names of every parameter that is not the head's, with its shape; a tied one has several."""
    head = set(map(id, head_parameters(model)))
    names: dict[int, tuple[list[str], tuple[int, ...]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in head:
            names.setdefault(id(parameter), ([], tuple(parameter.shape)))[0].append(name)
    return list(names.values())


def _checkpoint_of(model: nn.Module) -> Path | None:
    """Return the weights that the model's config says it was loaded from, in a directory or in the hub's cache."""
    config = model.config
    name = getattr(config, "_name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    if Path(name).is_dir():
        return find_weights(Path(name))
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "model.safetensors", revision=getattr(config, "_commit_hash", None))
    except (ImportError, ValueError):  # no hub, or no name of it
        return None
    return Path(cached) if isinstance(cached, str) else None
