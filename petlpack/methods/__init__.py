"""Train PROPETL, AdaMix, diff pruning and PHA, and leave behind the runs that petlpack packs.

    method = propetl.attach(model, propetl.Config(keep=0.5))   # the model now trains the method and its head alone
    ...                                                        # any loop, or transformers.Trainer
    method.save("runs/sst2")                                   # petlpack encode runs/sst2

Needs torch (`pip install 'petlpack[torch]'`); models are Hugging Face's, or built like theirs (`places.FAMILIES`).
"""

from __future__ import annotations

import importlib
from types import ModuleType

from petlpack.errors import UsageError

__all__ = ["adamix", "diff_pruning", "pha", "propetl"]


def __getattr__(name: str) -> ModuleType:
    """Import a method when it is first asked for (PEP 562); raises UsageError without torch."""
    if name not in __all__:
        raise AttributeError(f"module 'petlpack.methods' has no attribute '{name}'")
    try:
        return importlib.import_module(f"petlpack.methods.{name}")
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        hint = "pip install 'petlpack[torch]' torch"
        raise UsageError(f"petlpack.methods.{name} needs torch, which is not installed", hint=hint) from exc
