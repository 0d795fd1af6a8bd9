"""What the four methods are compared with: full fine-tuning, the last layer, BitFit, one bottleneck adapter, LoRA."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from petlpack.methods.files import TensorFile, write_json, write_tensors, writing
from petlpack.methods.method import Method
from petlpack.methods.places import blocks


class Whole(Method):
    """Train some of the model's own parameters; the run is the whole model, as Transformers saves it."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the model."""
        self.model.save_pretrained(directory)


def last_layer(model: nn.Module) -> Whole:
    """Train the classifier alone."""
    return Whole(model)


def full(model: nn.Module) -> Whole:
    """Train every parameter."""
    method = Whole(model)
    model.requires_grad_(True)
    return method


def bitfit(model: nn.Module) -> Whole:
    """Train every bias and the classifier (Ben Zaken, Goldberg and Ravfogel 2022, section 3)."""
    method = Whole(model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_(True)
    return method


class Bottleneck(nn.Module):  # type: ignore[misc] # torch is Any here
    """Wu relu(Wd x + bd) + bu, weights N(0, 0.02) as BERT's (Pfeiffer et al. 2021, appendix)."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.adapter_down = nn.Sequential(nn.Linear(width, narrow), nn.ReLU())
        self.adapter_up = nn.Linear(narrow, width)
        for layer in (self.adapter_down[0], self.adapter_up):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Any) -> Any:
        """Return what is added to the residual."""
        return self.adapter_up(self.adapter_down(x))


NAME = "task"


class Adapter(Method):
    """One bottleneck adapter a layer, as AdapterHub places and saves it (`seq_bn`)."""

    def __init__(self, model: nn.Module, narrow: int) -> None:
        super().__init__(model)
        self.width, self.narrow = model.config.hidden_size, narrow
        self.keys = []
        for block in blocks(model):
            adapter = Bottleneck(self.width, narrow)
            self.add(block.output, "adapters", nn.ModuleDict({NAME: adapter}))
            self.hook(block.output.LayerNorm.register_forward_hook(_behind_norm(adapter)))
            self.keys.append(f"{block.output_name}.adapters.{NAME}.")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write adapter_config.json, adapter.safetensors and the head."""
        config = {
            **{"mh_adapter": False, "output_adapter": True, "non_linearity": "relu", "scaling": 1.0},
            **{"original_ln_before": True, "original_ln_after": True, "residual_before_ln": True},
            **{"reduction_factor": self.width / self.narrow, "ln_before": False, "ln_after": False},
        }
        about = {
            **{"name": NAME, "model_type": self.model.config.model_type, "model_class": type(self.model).__name__},
            **{"hidden_size": self.width, "model_name": self.model.config._name_or_path, "version": "adapters.1.3.0"},
        }
        state = self.model.state_dict()
        with writing(self.model, directory) as made:
            write_json(made / "adapter_config.json", {"config": config, **about})
            write_json(made / "head_config.json", {"config": None, "num_labels": self.model.config.num_labels, **about})
            tensors = {name: t for name, t in state.items() if name.startswith(tuple(self.keys))}
            write_tensors(made / "adapter.safetensors", tensors)
            write_tensors(made / "model_head.safetensors", self.head_tensors())


def _behind_norm(adapter: Bottleneck) -> Any:
    return lambda norm, args, out: norm.forward(args[0] + adapter(out))


def load_adapter(model: nn.Module, directory: str | os.PathLike[str], narrow: int) -> Adapter:
    """Put a saved or decoded adapter on a model."""
    method = Adapter(model, narrow)
    tensors = {
        name: tensor
        for file in ("adapter.safetensors", "model_head.safetensors")
        for name, tensor in TensorFile(Path(directory) / file).tensors.items()
    }
    left = model.load_state_dict(tensors, strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    return method


@dataclass
class Lora:
    """PEFT's LoRA on query and value (Hu et al. 2022), rank 8, alpha 16."""

    model: nn.Module

    def __post_init__(self) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
        self.wrapped = get_peft_model(self.model, config)

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains."""
        return [parameter for parameter in self.wrapped.parameters() if parameter.requires_grad]

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the parameters as one group."""
        return [{"params": self.parameters(), "lr": lr}]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        self.wrapped.save_pretrained(directory)


def load_lora(model: nn.Module, directory: str | os.PathLike[str]) -> Any:
    """Put a saved or decoded LoRA on a model."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, directory)
