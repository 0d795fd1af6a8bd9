"""PROPETL: one prototype for all layers (and tasks), and a binary mask that says which of its entries a layer uses.

"One Network, Many Masks" (Zeng, Zhang and Lu 2023), section 3; ChaosCodes/ProPETL. `kind` is what the prototype is:
an adapter behind the feed-forward, a LoRA on query and value, or a prefix of the attention's keys and values.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petlpack.errors import UsageError
from petlpack.errors.arguments import NOT_ZERO, SHARE, one_of, optional, whole
from petlpack.methods.attachment import loading, put_on
from petlpack.methods.method import Method
from petlpack.methods.places import ACTIVATIONS, Argument, Block, Projection, blocks, refuse_merged
from petlpack.methods.probe import no_effect
from petlpack.methods.propetl_files import LAYER, find_run, write_run
from petlpack.methods.propetl_masks import COMBINE, kept_count, learned_mask, top_mask
from petlpack.methods.propetl_network import Network
from petlpack.methods.settings import check_all, check_config, check_name, check_tasks

__all__ = ["COMBINE", "KINDS", "Config", "Propetl", "attach", "kept_count", "learned_mask", "load", "top_mask"]

KINDS = ("adapter", "lora", "prefix")

_KEEP = {"adapter": 0.5, "lora": 0.1, "prefix": 0.1}
_KEEP_OF_TASKS = 0.3
_REDUCTION = 12

_RULES = {
    "kind": (one_of(KINDS), "kind is what the prototype is"),
    "keep": (
        optional(SHARE),
        "keep is the share of the prototype's entries that a mask keeps; None is the paper's value",
    ),
    "bottleneck": (optional(whole(1)), "bottleneck is the width of an adapter; None is the model's width / 12"),
    "rank": (whole(1), "rank is the rank of a LoRA"),
    "alpha": (NOT_ZERO, "alpha / rank scales the LoRA"),
    "length": (whole(1), "length is the number of positions of a prefix"),
    "hidden": (whole(0), "hidden is the width of the network that generates a prefix; 0 trains the prefix itself"),
    "scaling": (NOT_ZERO, "scaling multiplies an adapter's output"),
    "combine": (one_of(COMBINE), "combine is how the masks of a task and a layer become one"),
    "activation": (optional(one_of(ACTIVATIONS)), "activation is an adapter's non-linearity; None is the usual one"),
}


@dataclass(frozen=True)
class Config:
    """The settings of a PROPETL; the defaults are the paper's (section 4.1 and appendix, scripts/run_*.sh).

    `keep` is the share of the prototype's entries that a mask keeps (by default adapter 0.5, LoRA and prefix 0.1, of
    several tasks 0.3). An adapter has `bottleneck` (default: width / 12), `scaling` and `activation` (default: relu, T5
    gelu_new); a LoRA `rank` and `alpha`; a prefix `length`, and `hidden` units in the network that makes it, or 0 where
    the prefix itself trains. `combine` is for several tasks.
    """

    kind: str = "adapter"
    keep: float | None = None
    bottleneck: int | None = None
    rank: int = 32
    alpha: float = 48.0
    length: int = 64
    hidden: int = 512
    scaling: float = 1.0
    combine: str = "or"
    activation: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_all(self, _RULES)


def attach(
    model: nn.Module,
    config: Config,
    *,
    task: str = "task",
    tasks: Mapping[str, int] | None = None,
    probe: Mapping[str, Any] | None = None,
) -> Propetl:
    """Put PROPETL on a model of a known family: for one task, called `task`, or for `tasks` (labels by task).

    One task has a mask for each layer. Several have hybrid masks (section 3.3): a mask for each task, tied over the
    layers, combined with a mask for each layer, shared by the tasks; `switch` says whose batch comes next.
    `probe` is a batch to probe the method with (`Method.probe`), where the model does not run on tokens alone.
    Raises UsageError.
    """
    check_config(config, Config)
    model_blocks = blocks(model)
    if tasks is not None:
        check_tasks(tasks, empty="name each task with its number of labels, or omit tasks to train one task")
    for name in [task] if tasks is None else tasks:
        check_name(
            name, lambda name: name == LAYER, f"task names become part of tensor names, where '{LAYER}' is taken"
        )
    _refuse_kind(model, config, model_blocks, several=tasks is not None)
    resolved = _resolved(config, model_blocks[0], tasks is not None)
    return put_on(model, lambda: Propetl(model, resolved, model_blocks, task, tasks), probe)


def _refuse_kind(model: nn.Module, config: Config, model_blocks: list[Block], *, several: bool) -> None:
    """Raise UsageError for a kind that the model's blocks have no place for, or that is not saved for one task."""
    first = model_blocks[0]
    if config.kind == "lora":
        refuse_merged(model, first)
    if config.kind == "adapter" and first.norm is None and first.reads is None:
        raise UsageError(
            f"{type(model).__name__} has no norm after its feed-forward, where the adapter would go",
            hint="use kind='lora'",
        )
    if config.kind == "prefix" and not all(_takes_prefix(block) for block in model_blocks):
        raise UsageError(
            f"{type(model).__name__} takes no prefix: its attention depends on the positions of its keys",
            hint="prefixes work on encoders of the BERT and RoBERTa families; use kind='adapter' or kind='lora' here",
        )
    if config.kind == "prefix" and not several and config.hidden == 0:
        raise UsageError(
            "hidden must be an integer >= 1 for a prefix of one task, got 0",
            hint="set hidden: the prefix of one task is saved with the network that generates it",
        )


def _takes_prefix(block: Block) -> bool:
    attention = block.attention
    return block.is_bert and hasattr(attention, "num_attention_heads") and not getattr(attention, "is_decoder", False)


def _resolved(config: Config, block: Block, several: bool) -> Config:
    """Return a config in which every default that depends on kind, model or tasks is a value."""
    return dataclasses.replace(
        config,
        keep=config.keep or (_KEEP_OF_TASKS if several else _KEEP[config.kind]),
        bottleneck=config.bottleneck or max(1, block.width // _REDUCTION),
        activation=config.activation or ("gelu_new" if block.is_t5 else "relu"),
    )


class _Prefix:
    """Stands where attention takes a cache: returns a layer's prefix in front of the keys and values."""

    def __init__(self, states: torch.Tensor) -> None:
        self._states = states

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values, (batch, heads, length + positions, width of a head)."""
        before_keys, before_values = (state.expand(len(keys), -1, -1, -1).to(keys.dtype) for state in self._states)
        return torch.cat([before_keys, keys], dim=2), torch.cat([before_values, values], dim=2)


class Propetl(Method):
    """PROPETL on a model. `model.propetl` holds all that trains, but the head."""

    def __init__(
        self, model: nn.Module, config: Config, model_blocks: list[Block], task: str, tasks: Mapping[str, int] | None
    ) -> None:
        super().__init__(model, tasks)
        self.config, self.blocks, self.name = config, model_blocks, task
        assert config.keep is not None
        self.keep: float = config.keep
        # single precision also on a base in half: scores of 8 bits are equal by the dozen
        wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self.network = Network(config, model_blocks[0], len(model_blocks), self.tasks).to(wide)
        self.add(model, "propetl", self.network)
        for number, block in enumerate(model_blocks):
            {"adapter": self._add_adapter, "lora": self._add_lora, "prefix": self._add_prefix}[config.kind](
                number, block
            )

    def mask(self, side: str, layer: int) -> torch.Tensor:
        """Return the mask of a layer's matrix as the current task has it, 0 and 1 (`add`: and 2), with its gradient."""
        mask = learned_mask(self.network.layers[layer][side], self.keep)
        if not self.tasks:
            return mask
        return COMBINE[self.config.combine](learned_mask(self.network.tasks[self.task][side], self.keep), mask)

    def weight(self, side: str, layer: int) -> torch.Tensor:
        """Return a layer's matrix: prototype * mask, equation 2."""
        return self.network.weight(side) * self.mask(side, layer)

    # Where it stands

    def _note(self, what: str, layer: int, *sides: str) -> None:
        """Note what was put into a layer: its masks, and of a matrix that trains itself the prototype and its bias."""
        network, block = self.network, self.blocks[layer]

        def tensors() -> list[torch.Tensor]:
            masks = [network.layers[layer], *([network.tasks[self.task]] if self.tasks else [])]
            weights = [network.prototype.get(name) for side in sides for name in (side, f"{side}_bias")]
            return [scores[side] for scores in masks for side in sides] + [w for w in weights if w is not None]

        self.insert(what, block.name, block.layer, tensors)

    def _adapter(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Return scaling (W'u act(W'd x + bd) + bu), computed in the method's precision and typed as x."""
        bias, down = self.network.prototype, self.weight("down", layer)
        hidden = F.linear(x.to(down.dtype), down, bias["down_bias"])
        added = F.linear(ACTIVATIONS[str(self.config.activation)](hidden), self.weight("up", layer), bias["up_bias"])
        return (added * self.config.scaling).to(x.dtype)

    def _add_adapter(self, layer: int, block: Block) -> None:
        self._note("the adapter", layer, "down", "up")
        if block.norm is not None:  # Pfeiffer et al. 2021: LN(in + adapter(LN(in))), with the base's own LN

            def behind(norm: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
                normed: torch.Tensor = norm.forward(args[0] + self._adapter(layer, out))
                return normed

            self.hook(block.norm.register_forward_hook(behind))
            return
        before: list[torch.Tensor] = []  # the block's input, on its way to the hook behind the feed-forward
        assert block.reads is not None
        states = Argument(block.reads, "hidden_states", "input", "x")

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before[:] = [states.get(args, kwargs)]

        def add(_module: nn.Module, _args: object, out: torch.Tensor) -> torch.Tensor:
            if not before:
                raise no_effect(f"the adapter in '{block.name}' does not see what the layer reads", self.model)
            return out + self._adapter(layer, out + before.pop())  # propetl-t5 adapter_controller.py:185-188

        self.hook(block.reads.register_forward_pre_hook(note, with_kwargs=True))
        self.hook(block.feed_forward.register_forward_hook(add))

    def _add_lora(self, layer: int, block: Block) -> None:
        for name, projection in block.query_and_value.items():
            self._note(f"the LoRA on {name}", layer, f"{name}_lora_A", f"{name}_lora_B")

            def add(
                _module: nn.Module,
                args: tuple[torch.Tensor, ...],
                out: torch.Tensor,
                name: str = name,
                projection: Projection = projection,
            ) -> torch.Tensor:
                a, b = (self.weight(f"{name}_lora_{part}", layer) for part in "AB")
                low = projection.low_rank(args[0], a, b) * (self.config.alpha / self.config.rank)
                return out + low.to(out.dtype)

            self.hook(projection.module.register_forward_hook(add))

    def _add_prefix(self, layer: int, block: Block) -> None:
        self._note("the prefix", layer, "prefix")
        heads = block.attention.num_attention_heads
        attention_mask = Argument(block.attention, "attention_mask")
        cache = Argument(block.attention, "cache", "past_key_values")

        def put(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            states = self.weight("prefix", layer).view(self.config.length, 2, heads, -1).permute(1, 2, 0, 3)
            mask = attention_mask.get(args, kwargs)
            if mask is not None:  # visible: True, 1 of a two-dimensional one, 0 of one that is added
                visible = True if mask.dtype == torch.bool else float(mask.dim() == 2)
                longer = F.pad(mask, (self.config.length, 0), value=visible)
                args, kwargs = attention_mask.put(longer, args, kwargs)
            return cache.put(_Prefix(states), args, kwargs)

        self.hook(block.attention.register_forward_pre_hook(put, with_kwargs=True))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the run: of one task on an encoder as the RoBERTa code does, else as the T5 code does."""
        self.check_precision()
        write_run(self, directory)


def load(model: nn.Module, directory: str | os.PathLike[str], *, probe: Mapping[str, Any] | None = None) -> Propetl:
    """Attach what a run directory, as saved or as decoded from a pack, says, and copy its weights in.

    In eval mode the model then computes, to the bit, what the saved one did. Most runs hold masks and no scores: kept
    entries then get the largest size that scores start with, the others a hundredth of it, and training can go on.
    Raises RunError where a file is missing or does not fit the model.
    """
    run = find_run(directory)
    with run.table.stated():
        config = Config(**run.settings)
    method = attach(model, config, **run.tasks, probe=probe)
    with loading(method):
        run.fill(method)
    return method
