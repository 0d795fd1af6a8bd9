"""PROPETL: one prototype for all layers (and tasks), and a binary mask that says which of its entries a layer uses.

"One Network, Many Masks" (Zeng, Zhang and Lu 2023), section 3; ChaosCodes/ProPETL. `kind` is what the prototype is:
an adapter behind the feed-forward, a LoRA on query and value, or a prefix of the attention's keys and values.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petlpack.errors import RunError, UsageError, printable
from petlpack.layouts.run import read_json
from petlpack.methods.files import GIVE, TensorFile, run_directory, write_json, write_tensors
from petlpack.methods.method import Method, loading, put_on
from petlpack.methods.places import ACTIVATIONS, Argument, Block, Projection, blocks, refuse_merged
from petlpack.methods.probe import no_effect
from petlpack.methods.settings import (
    NOT_ZERO,
    SHARE,
    check_all,
    check_config,
    check_name,
    check_tasks,
    one_of,
    optional,
    shown,
    whole,
)

KINDS = ("adapter", "lora", "prefix")

COMBINE: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "or": lambda task, layer: 1 - (1 - task) * (1 - layer),
    "and": lambda task, layer: task * layer,
    "add": lambda task, layer: task + layer,
}
"""How a task's and a layer's mask become one, section 3.3; written so that the gradient reaches both."""

MULTI_TASK = "propetl_weight.safetensors"
ABOUT = "propetl_config.json"
LAYER = "layer"
"""Whose masks the layers' are in a file of several tasks, and so no task's name."""

_FIELDS: Mapping[str, Mapping[str, type]] = {
    "adapter": {"bottleneck": int, "activation": str, "scaling": float},
    "lora": {"rank": int, "alpha": float},
    "prefix": {"length": int},
}
"""What propetl_config.json says of each kind, as `Config` calls it."""

_KEEP = {"adapter": 0.5, "lora": 0.1, "prefix": 0.1}
_KEEP_OF_TASKS = 0.3
_REDUCTION = 12

_RULES = {
    "kind": (one_of(KINDS), "kind says what the prototype is"),
    "keep": (optional(SHARE), "keep is the share of the prototype's entries that a mask keeps; None takes the paper's"),
    "bottleneck": (optional(whole(1)), "bottleneck is the width of an adapter; None takes the model's width / 12"),
    "rank": (whole(1), "rank is a LoRA's"),
    "alpha": (NOT_ZERO, "alpha / rank scales the LoRA"),
    "length": (whole(1), "length is how many positions a prefix has"),
    "hidden": (whole(0), "hidden is the width of the network that makes a prefix; with 0 the prefix itself trains"),
    "scaling": (NOT_ZERO, "scaling multiplies an adapter's output"),
    "combine": (one_of(COMBINE), "combine says how a task's and a layer's mask become one"),
    "activation": (optional(one_of(ACTIVATIONS)), "activation is an adapter's non-linearity; None takes the usual one"),
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
    found = blocks(model)
    if tasks is not None:
        check_tasks(tasks)
    for name in [task] if tasks is None else tasks:
        check_name(name, lambda name: name == LAYER, f"it becomes part of tensor names; '{LAYER}' stands there already")
    if tasks is not None and not tasks:
        raise UsageError("tasks is empty", hint="name each task with its number of labels, or omit tasks for one task")
    first = found[0]
    if config.kind == "lora":
        refuse_merged(model, first)
    if config.kind == "adapter" and first.norm is None and first.reads is None:
        raise UsageError(
            f"{type(model).__name__} has no norm behind its feed-forward, where the adapter would stand",
            hint="choose kind='lora'",
        )
    if config.kind == "prefix" and not all(_takes_prefix(block) for block in found):
        raise UsageError(
            f"{type(model).__name__} takes no prefix: its attention depends on the positions of its keys",
            hint="prefixes work on encoders of the BERT and RoBERTa families; choose kind='adapter' or kind='lora'",
        )
    if config.kind == "prefix" and tasks is None and config.hidden == 0:
        raise UsageError(
            "hidden must be a whole number of at least 1 for a prefix of one task, got 0",
            hint="such a prefix is saved with the network that makes it",
        )
    resolved = _resolved(config, first, tasks is not None)
    return put_on(model, lambda: Propetl(model, resolved, found, task, tasks), probe)


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


# Masks


def kept_count(entries: int, keep: float) -> int:
    """Return how many of a matrix's entries a mask keeps: n - int((1 - keep) n)."""
    return entries - int((1 - keep) * entries)


def top_mask(scores: torch.Tensor, keep: float) -> torch.Tensor:
    """Return 1 at the largest |scores| and 0 elsewhere, in their shape and dtype; of equal ones the later stay.

    Section 3.2; ProPETL adapters/modeling.py:815-833, whose sort has no rule for ties.
    """
    sizes = scores.detach().abs().flatten()
    kept = kept_count(len(sizes), keep)
    dropped = len(sizes) - kept
    mask = sizes > sizes.kthvalue(dropped).values if dropped else torch.ones_like(sizes, dtype=torch.bool)
    if int(mask.sum()) != kept:  # ties at the threshold; a sort takes six times as long, and they are rare
        mask = torch.ones_like(mask)
        mask[sizes.argsort(stable=True)[:dropped]] = False
    return mask.view_as(scores).to(scores.dtype)


def learned_mask(scores: torch.Tensor, keep: float) -> torch.Tensor:
    """Return the top mask of scores, whose gradient is that of the mask times the score's sign.

    So a score whose entry should be kept moves away from 0, on either side of it: the reference hands |scores| to its
    straight-through function (ProPETL adapters/modeling.py:815-833).
    """
    mask: torch.Tensor = _StraightThrough.apply(scores.abs(), keep)
    return mask


class _StraightThrough(torch.autograd.Function):  # type: ignore[misc] # torch is Any here
    """The mask of the sizes of scores, whose gradient the sizes take as theirs."""

    @staticmethod
    def forward(ctx: Any, sizes: torch.Tensor, keep: float) -> torch.Tensor:
        return top_mask(sizes, keep)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


_DROPPED = 0.01
"""The score of an entry that a loaded mask drops, as a share of a kept one's; |score| has no slope at 0."""


def _bound(shape: Sequence[int]) -> float:
    """Return the bound of kaiming_uniform(a=sqrt 5): 1 / sqrt(fan in)."""
    return float(shape[-1] ** -0.5)


def _new_scores(shapes: Mapping[str, tuple[int, int]]) -> nn.ParameterDict:
    """Return scores by side, kaiming_uniform(a=sqrt 5): section 3.2."""
    return nn.ParameterDict(
        {side: torch.empty(shape).uniform_(-1, 1) * _bound(shape) for side, shape in shapes.items()}
    )


# What trains


class PrefixNetwork(nn.Module):  # type: ignore[misc] # torch is Any here
    """Prefix tuning's reparametrisation, P = W2 tanh(W1 wte + b1) + b2: ProPETL adapters/prefix_tuning.py:93-126."""

    def __init__(self, length: int, hidden: int, width: int, outputs: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(length, width)
        self.control_trans = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, outputs))

    def forward(self) -> torch.Tensor:
        """Return P, (length, keys and values of all heads)."""
        made: torch.Tensor = self.control_trans(self.wte.weight)
        return made


class Network(nn.Module):  # type: ignore[misc] # torch is Any here
    """The prototypes, once, and the scores of every mask, all in the orientation of the weights (out, in)."""

    def __init__(self, config: Config, block: Block, layers: int, tasks: Mapping[str, int]) -> None:
        super().__init__()
        shapes = _shapes(config, block)
        self.prototype = nn.ParameterDict()
        self.prefix: PrefixNetwork | None = None
        if config.kind == "prefix" and config.hidden:
            self.prefix = PrefixNetwork(config.length, config.hidden, block.width, shapes["prefix"][1])
        else:
            for side, shape in shapes.items():
                # N(0, 0.02), also for LoRA's B: of a zero matrix no mask learns (dL/dM = W dL/dW')
                self.prototype[side] = torch.empty(shape).normal_(std=0.02)
                if side.endswith("lora_A"):
                    nn.init.kaiming_uniform_(self.prototype[side], a=math.sqrt(5))
            if config.kind == "adapter":
                for side, shape in shapes.items():
                    self.prototype[f"{side}_bias"] = torch.zeros(shape[0])
        self.layers = nn.ModuleList(_new_scores(shapes) for _ in range(layers))
        self.tasks = nn.ModuleDict({task: _new_scores(shapes) for task in tasks})

    def weight(self, side: str) -> torch.Tensor:
        """Return a prototype, or one of its biases."""
        weight: torch.Tensor = self.prototype[side] if self.prefix is None else self.prefix()
        return weight


def _shapes(config: Config, block: Block) -> dict[str, tuple[int, int]]:
    """Return the shape of each masked matrix by its side: down, up; query_lora_A, ...; prefix."""
    width = block.width
    if config.kind == "adapter":
        assert config.bottleneck is not None
        return {"down": (config.bottleneck, width), "up": (width, config.bottleneck)}
    if config.kind == "lora":
        return {
            f"{name}_lora_{part}": shape
            for name, projection in block.query_and_value.items()
            for part, shape in projection.shapes(config.rank).items()
        }
    return {"prefix": (config.length, 2 * block.attention.query.out_features)}


class _Prefix:
    """Stands where attention takes a cache: returns a layer's prefix in front of the keys and values."""

    def __init__(self, states: torch.Tensor) -> None:
        self._states = states

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values, (batch, heads, length + positions, width of a head)."""
        first, second = (own.expand(len(keys), -1, -1, -1).to(keys.dtype) for own in self._states)
        return torch.cat([first, keys], dim=2), torch.cat([second, values], dim=2)


class Propetl(Method):
    """PROPETL on a model. `model.propetl` holds all that trains, but the head."""

    def __init__(
        self, model: nn.Module, config: Config, found: list[Block], task: str, tasks: Mapping[str, int] | None
    ) -> None:
        super().__init__(model, tasks)
        self.config, self.blocks, self.name = config, found, task
        assert config.keep is not None
        self.keep: float = config.keep
        # single precision also on a base in half: scores of 8 bits are equal by the dozen
        wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self.network = Network(config, found[0], len(found), self.tasks).to(wide)
        self.add(model, "propetl", self.network)
        for number, block in enumerate(found):
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
        seen = Argument(block.attention, "attention_mask")
        cache = Argument(block.attention, "cache", "past_key_values")

        def put(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            states = self.weight("prefix", layer).view(self.config.length, 2, heads, -1).permute(1, 2, 0, 3)
            mask = seen.get(args, kwargs)
            if mask is not None:  # visible: True, 1 of a two-dimensional one, 0 of one that is added
                visible = True if mask.dtype == torch.bool else float(mask.dim() == 2)
                args, kwargs = seen.put(F.pad(mask, (self.config.length, 0), value=visible), args, kwargs)
            return cache.put(_Prefix(states), args, kwargs)

        self.hook(block.attention.register_forward_pre_hook(put, with_kwargs=True))

    # Files

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the run: of one task on an encoder as the RoBERTa code does, else as the T5 code does."""
        self.check_precision()
        with self.writing(directory) as made:
            write_json(made / "config.json", self.config_json())
            if self.tasks or not self.blocks[0].is_bert:
                self._save_tasks(made)
            else:
                self._save_adapter(made / self.name)

    def _save_tasks(self, made: Path) -> None:
        weights, masks = self._names_of_tasks()
        tensors = {**weights, **{name: self._bits(scores) for name, scores in masks.items()}}
        for task in self.tasks or [self.name]:
            own = self.head_tensors(task if self.tasks else "")
            tensors |= {f"heads.{task}.{name}": tensor for name, tensor in own.items()}
        write_tensors(made / MULTI_TASK, tensors)
        write_json(made / ABOUT, self._about_tasks())

    def _names_of_tasks(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return prototypes, and scores, by their names in a file of several tasks, or of one on T5."""
        weights: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        for i, block in enumerate(self.blocks):
            for side, scores in self.network.layers[i].items():
                place, part = self._place(block, side)
                name = f"{place}.adapter_controller"
                if i == 0:
                    prototype = f"{name}.adapters.common_adapter.{part}"
                    if self.config.kind == "adapter":
                        weights[f"{prototype}_sampler.weight"] = self.network.weight(side)
                        weights[f"{prototype}_sampler.bias"] = self.network.weight(f"{side}_bias")
                    else:
                        weights[prototype] = self.network.weight(side)
                    for task in self.tasks:
                        masks[f"{name}.mask_scores.{task}_{part}_mask.param"] = self.network.tasks[task][side]
                masks[f"{name}.mask_scores.{LAYER if self.tasks else self.name}_{part}_mask.param"] = scores
        return weights, masks

    def _place(self, block: Block, side: str) -> tuple[str, str]:
        """Return the name of the module that a matrix acts in, and what the matrix is called there."""
        if self.config.kind == "adapter":
            return block.output_name, side
        if self.config.kind == "prefix":
            return block.attention_name, side
        name, _, part = side.rpartition("_lora_")
        return f"{block.attention_name}.{name}", f"lora_{part}"

    def _about_tasks(self) -> dict[str, Any]:
        """Return what propetl_config.json says, so that nothing has to be said when the run is packed."""
        return {
            "kind": self.config.kind,
            "keep_ratio": self.keep,
            "combine": self.config.combine if self.tasks else "none",
            "tasks": self.tasks or {self.name: self.model.config.num_labels if self.head_tensors() else 0},
            **{name: getattr(self.config, name) for name in _FIELDS[self.config.kind]},
            **self._form(),
        }

    def _form(self) -> dict[str, Any]:
        """Return what only the model knows: an adapter's place; of a merged matrix, which parts have a LoRA."""
        first = self.blocks[0]
        if self.config.kind == "adapter":
            return {"form": "t5-output" if first.norm is None else "pfeiffer"}
        merged = [projection.enable for projection in first.query_and_value.values() if len(projection.enable) > 1]
        return {"enable": list(merged[0])} if self.config.kind == "lora" and merged else {}

    def _bits(self, scores: torch.Tensor) -> torch.Tensor:
        return top_mask(scores, self.keep).bool()

    def _save_adapter(self, made: Path) -> None:
        weights, masks = self._names_of_adapter()
        if self.config.kind == "prefix":  # raw: the reader makes masks of them; the file of masks has no key
            raw = torch.stack([scores["prefix"].detach() for scores in self.network.layers])
            weights |= {name: raw for name in masks}
            masks = {}
        about = {
            "hidden_size": self.blocks[0].width,
            "model_class": type(self.model).__name__,
            "model_name": getattr(self.model.config, "_name_or_path", ""),
            "model_type": self.model.config.model_type,
            "name": self.name,
            "version": "3.1.0",
        }
        write_json(made / "adapter_config.json", {**about, "config": self._adapter_config()})
        write_tensors(made / "adapter.safetensors", weights)
        transposed = self.config.kind == "adapter"
        bits = {name: self._bits(scores) for name, (scores, *_) in masks.items()}
        write_tensors(made / "adapter_mask.safetensors", {name: m.T if transposed else m for name, m in bits.items()})
        if head := self.head_tensors():
            labels = {"num_labels": self.model.config.num_labels, "label2id": self.model.config.label2id}
            write_json(made / "head_config.json", {**about, **labels})
            write_tensors(made / "model_head.safetensors", head)

    def _names_of_adapter(self) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, ...]]]:
        """Return weights, each under its name in every layer, and scores, by their names in an adapter's files.

        A prefix's scores stand in one tensor, layer by layer, that has a name in every layer, too.
        """
        weights: dict[str, torch.Tensor] = {}
        masks: dict[str, tuple[torch.Tensor, ...]] = {}
        if self.network.prefix is not None:
            end = f"prefix_tunings.{self.name}.self_prefix"
            stem = self.blocks[0].attention_name.partition("encoder.layer.")[0]
            at = [f"{block.attention_name}.prefix_tuning.pool.{end}" for block in self.blocks]
            for module in [*at, f"{stem}prefix_tuning.{end}"]:
                own = self.network.prefix.state_dict(keep_vars=True)
                weights |= {f"{module}.{name}": tensor for name, tensor in own.items()}
                masks[f"{module}.adapters_mask.adapters_mask"] = tuple(s["prefix"] for s in self.network.layers)
            return weights, masks
        parts = {"down": "adapter_down.0", "up": "adapter_up"}
        for i, block in enumerate(self.blocks):
            for side, scores in self.network.layers[i].items():
                place, part = self._place(block, side)
                masks[f"{place}.adapters_mask.{self.name}.{part}_mask"] = (scores,)
                if self.config.kind == "lora":
                    weights[f"{place}.loras.{self.name}.{part}"] = self.network.weight(side)
                else:
                    name = f"{place}.adapters.{self.name}.{parts[part]}"
                    weights[f"{name}.weight"] = self.network.weight(side)
                    weights[f"{name}.bias"] = self.network.weight(f"{side}_bias")
        return weights, masks

    def _adapter_config(self) -> dict[str, Any]:
        """Return what adapter_config.json says of the adapter; `sparsity` is the share that is kept."""
        config = self.config
        shared = {"leave_out": [], "use_gating": False, "share_adapter": True, "sparsity": self.keep}
        if config.kind == "adapter":
            assert config.bottleneck is not None
            yes = ("original_ln_before", "original_ln_after", "output_adapter", "residual_before_ln")
            no = ("adapter_residual_before_ln", "cross_adapter", "is_parallel", "ln_after", "ln_before", "mh_adapter")
            return {
                **shared,
                **dict.fromkeys(yes, True),
                **dict.fromkeys((*no, "phm_layer"), False),
                "inv_adapter": None,
                "init_weights": "bert",
                "non_linearity": config.activation,
                "reduction_factor": self.blocks[0].width / config.bottleneck,
                "scaling": config.scaling,
            }
        if config.kind == "lora":
            return {
                **shared,
                **{"architecture": "lora", "composition_mode": "add", "dropout": 0.0},
                **{"selfattn_lora": True, "intermediate_lora": False, "output_lora": False},
                **{"attn_matrices": ["q", "v"], "r": config.rank, "alpha": config.alpha},
            }
        return {
            **shared,
            **{"architecture": "prefix_tuning", "encoder_prefix": True, "cross_prefix": False, "flat": False},
            **{"non_linearity": "tanh", "dropout": 0.0, "shared_gating": True},
            **{"prefix_length": config.length, "bottleneck_size": config.hidden},
        }


# Loading


def load(model: nn.Module, directory: str | os.PathLike[str], *, probe: Mapping[str, Any] | None = None) -> Propetl:
    """Attach what a run directory, as saved or as decoded from a pack, says, and copy its weights in.

    In eval mode the model then computes, to the bit, what the saved one did. Most runs hold masks and no scores: kept
    entries then get the largest size that scores start with, the others a hundredth of it, and training can go on.
    Raises RunError where a file is missing or does not fit the model.
    """
    path = run_directory(directory)
    if (path / MULTI_TASK).is_file():
        return _load_tasks(model, path, probe)
    folders = [folder for folder in (path, *sorted(path.glob("*/"))) if (folder / "adapter_config.json").is_file()]
    if len(folders) != 1:
        raise RunError(
            f"'{printable(str(path))}' has {len(folders)} adapters and no {MULTI_TASK}",
            hint=f"{GIVE}, or that of one adapter",
        )
    return _load_adapter(model, folders[0], probe)


def _load_tasks(model: nn.Module, path: Path, probe: Mapping[str, Any] | None) -> Propetl:
    about = _Json(path / ABOUT)
    kind, combine, tasks = about.get("kind", str), about.get("combine", str), about.get("tasks", dict)
    if kind not in _FIELDS:
        raise about.error(f"has kind '{printable(kind)}', which must be one of {', '.join(_FIELDS)}")
    if not tasks or not all(type(labels) is int and labels >= 0 for labels in tasks.values()):
        raise about.error(f"has tasks {shown(tasks)}, which must map the tasks' names to numbers of labels")
    own = {name: about.get(name, wanted) for name, wanted in _FIELDS[kind].items()}
    several = combine != "none"
    config = about.config(
        kind=kind, keep=about.get("keep_ratio", float), hidden=0, **own, **({"combine": combine} if several else {})
    )
    named: dict[str, Any] = {"tasks": tasks} if several else {"task": next(iter(tasks))}
    method = attach(model, config, **named, probe=probe)
    with loading(method):
        file = TensorFile(path / MULTI_TASK)
        weights, masks = method._names_of_tasks()
        file.copy(weights)
        for name, scores in masks.items():
            _copy_masks(file, name, (scores,), method.keep)
        for task in tasks:
            file.copy_head(method, f"heads.{task}.", task if several else "")
        file.refuse_others()
    return method


def _load_adapter(model: nn.Module, folder: Path, probe: Mapping[str, Any] | None) -> Propetl:
    about = _Json(folder / "adapter_config.json")
    own = _Json(about.path, about.get("config", dict))
    kind = {"lora": "lora", "prefix_tuning": "prefix"}.get(str(own.table.get("architecture")), "adapter")
    settings: dict[str, Any]
    if kind == "adapter":
        width, factor = about.get("hidden_size", int), own.get("reduction_factor", float)
        settings = {"activation": own.get("non_linearity", str), "scaling": own.get("scaling", float)}
        settings["bottleneck"] = round(width / factor) if factor > 0 else 0
    elif kind == "lora":
        settings = {"rank": own.get("r", int), "alpha": own.get("alpha", float)}
    else:
        settings = {"length": own.get("prefix_length", int), "hidden": own.get("bottleneck_size", int)}
    config = about.config(kind=kind, keep=own.get("sparsity", float), **settings)
    method = attach(model, config, task=about.get("name", str), probe=probe)
    with loading(method):
        file = TensorFile(folder / "adapter.safetensors")
        weights, masks = method._names_of_adapter()
        file.copy(weights)
        bits = file if kind == "prefix" else TensorFile(folder / "adapter_mask.safetensors")
        for name, scores in masks.items():
            _copy_masks(bits, name, scores, method.keep, transposed=kind == "adapter")
        for each in {id(file): file, id(bits): bits}.values():
            each.refuse_others()
        head = folder / "model_head.safetensors"
        if head.is_file():
            TensorFile(head).copy_head(method)
    return method


class _Json:
    """A JSON file's table, of which every value that is asked for is checked."""

    def __init__(self, path: Path, table: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.table = read_json(path) if table is None else table

    def get(self, name: str, wanted: type) -> Any:
        """Return a value of this type; a whole number is a float, too."""
        value = self.table.get(name)
        fits = type(value) in (int, float) if wanted is float else type(value) is wanted
        if not fits:
            raise self.error(f"has {name} {shown(value)}, which must be of type {wanted.__name__}")
        return value

    def config(self, **settings: Any) -> Config:
        """Return a config of values that the file gives."""
        try:
            return Config(**settings)
        except UsageError as error:
            raise self.error(f"has a setting that makes no sense: {error.message}") from error

    def error(self, what: str) -> RunError:
        return RunError(f"'{printable(str(self.path))}' {printable(what)}", hint=_AGAIN)


def _copy_masks(
    file: TensorFile, name: str, scores: Sequence[torch.Tensor], keep: float, *, transposed: bool = False
) -> None:
    """Copy a mask into its scores, or a tensor of several, row by row; raw scores are copied as they are."""
    shape = tuple(reversed(scores[0].shape)) if transposed else tuple(scores[0].shape)
    stacked = name.endswith(".adapters_mask")
    tensor = file.get(name, (len(scores), *shape) if stacked else shape)
    for own, row in zip(scores, tensor if stacked else [tensor], strict=True):
        kept, wanted = int((row != 0).sum()), kept_count(row.numel(), keep)
        if row.dtype == torch.bool and kept != wanted:
            raise file.error(f"has '{name}' that keeps {kept:,} entries, but a keep ratio of {keep:g} keeps {wanted:,}")
        values = (row + _DROPPED * ~row) * _bound(own.shape) if row.dtype == torch.bool else row
        own.data.copy_(values.T if transposed else values)


_AGAIN = "save the run again, or copy it again"
