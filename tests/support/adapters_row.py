"""Rows of AdapterHub's `adapters`, which has an environment of its own.

Tests write and ask by running this file as a script there, where it imports nothing of petlpack or of the tests:
`python adapters_row.py fusion write PLACE` trains and saves, and `python adapters_row.py fusion ask BASE DIRECTORY`
prints the digest of what the library computes with what it loads.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
SIZES = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
KINDS = {"fusion": "Fuse", "fusion alone": "Fuse", "stack": "Stack"}


def adapters_python() -> str | None:
    """Return the python of the environment that has `adapters`, if there is one."""
    here = REPO / ".venv" / "adapters" / "bin" / "python"
    return os.environ.get("PETLPACK_ADAPTERS_PYTHON") or (str(here) if here.exists() else None)


@dataclass(frozen=True)
class AdapterHub:
    """Two adapters of one model, put together in a way."""

    kind: str
    needs = "torch"

    def write(self, place: Path) -> None:
        """Write `base`, and `run`, which was trained from it."""
        self._run("write", place)

    def ask(self, directory: Path, base: Path) -> bytes:
        """Return the digest of what the model computes that `adapters` loads."""
        return self._run("ask", base, directory)

    def _run(self, *words: str | Path) -> bytes:
        import pytest

        python = adapters_python()
        if python is None:
            pytest.skip("no environment with `adapters`: set PETLPACK_ADAPTERS_PYTHON to its python")
        done = subprocess.run(
            [python, "-W", "ignore", __file__, self.kind, *map(str, words)],
            capture_output=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


def write(kind: str, place: Path) -> None:
    """Write the base, and train and save two adapters, put together in a way."""
    torch, transformers = map(importlib.import_module, ("torch", "transformers"))
    composition = importlib.import_module("adapters.composition")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(place / "base")
    model = _base(place / "base")
    for name in ("a", "b"):
        model.add_adapter(name, config="seq_bn")
    setup = getattr(composition, KINDS[kind])("a", "b")
    if setup.__class__.__name__ == "Fuse":
        model.add_adapter_fusion(setup)
        model.train_adapter_fusion(setup)
    else:
        model.train_adapter(setup)
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad or ".adapters." in name)
    model.set_active_adapters(setup)
    before = said(model)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (output(model.train()) - 1).square().mean().backward()
        optimizer.step()
    assert said(model) != before
    if kind == "fusion alone":
        model.save_all_adapters(str(place / "base"))
        model.save_adapter_fusion(str(place / "run"), setup)
    else:
        model.save_adapter_setup(str(place / "run"), setup, use_safetensors=kind == "stack")


def ask(base: Path, directory: Path) -> str:
    """Return the digest of what the base computes with the adapters of a directory."""
    model = _base(base)
    safe = not list(directory.rglob("*.bin"))
    if (directory / "adapter_fusion_config.json").is_file():
        for name in ("a", "b"):
            model.load_adapter(str(base / name))
        model.load_adapter_fusion(str(directory), set_active=True)
    else:
        model.load_adapter_setup(str(directory), set_active=True, use_safetensors=safe)
    return said(model)


def output(model: Any) -> Any:
    """Return what the model computes, with gradients."""
    torch = importlib.import_module("torch")
    return model(input_ids=torch.tensor([[2, 5, 6, 7, 8, 3]]))[0]


def said(model: Any) -> str:
    """Return the digest of what the model computes."""
    return hashlib.sha256(output(model.eval()).detach().numpy().tobytes()).hexdigest()


def _base(directory: Path) -> Any:
    model = importlib.import_module("transformers").BertModel.from_pretrained(directory)
    importlib.import_module("adapters").init(model)
    return model


if __name__ == "__main__":
    kind, step, *paths = sys.argv[1:]
    if step == "write":
        write(kind, *map(Path, paths))
    else:
        print(ask(*map(Path, paths)))
