"""The kinds by which `survey` counts files; which file is of which, `petlpack.tensors.kinds` tells."""

from __future__ import annotations

KINDS = (
    *("weights", "other checkpoints", "other weights", "training state", "tokenizer", "config", "log"),
    *("cache", "pack", "code", "other"),
)
"""What a file is, exactly one of these: `weights` are those that `encode` would take of a run."""

WEIGHT_KINDS = ("weights", "other checkpoints", "other weights")

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""How the names of pickled weights end."""
