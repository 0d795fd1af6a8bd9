"""`peft`: an adapter that PEFT wrote, of any `peft_type`; the config is kept byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petlpack.errors import RunError, printable
from petlpack.layouts.base import Run, read_json, sort_files
from petlpack.modules import Plain
from petlpack.tensors.checkpoint import find_weights, open_checkpoint


@dataclass(frozen=True)
class Peft:
    """A PEFT adapter directory: adapter_config.json with a `peft_type`, adapter_model.safetensors or .bin."""

    id = "peft"

    def detect(self, path: Path) -> bool:
        """Tell whether the directory has PEFT's adapter_config.json (AdapterHub's has no `peft_type`)."""
        config = path / "adapter_config.json"
        return config.is_file() and "peft_type" in read_json(config)

    def read(self, path: Path) -> Run:
        """Read the adapter."""
        config = read_json(path / "adapter_config.json")
        weights = find_weights(path, stem="adapter_model", pickled="adapter_model")
        if weights is None:
            raise RunError(
                f"'{printable(str(path))}' has adapter_config.json, but no adapter_model.safetensors",
                hint="the adapter was saved only in part: save it again",
            )
        checkpoint = open_checkpoint(weights)
        kept, left_out = sort_files(path, checkpoint.sources)
        base_name = config.get("base_model_name_or_path")
        return Run(
            path=path,
            layout=self.id,
            method=str(config["peft_type"]).lower(),
            module=Plain(checkpoint.tensors, _head(checkpoint.tensors, config)),
            headers=checkpoint.headers,
            weight_bytes=checkpoint.nbytes,
            kept=kept,
            left_out=left_out,
            base_name=base_name if isinstance(base_name, str) else None,
        )


def _head(names: Any, config: dict[str, Any]) -> frozenset[str]:
    """Return the tensors of `modules_to_save`, and of a classifier that PEFT saves without being told."""
    saved = config.get("modules_to_save")
    modules = {"classifier", "score", *(saved if isinstance(saved, list) else ())}
    return frozenset(name for name in names if modules & set(name.split(".")) and ".lora_" not in name)
