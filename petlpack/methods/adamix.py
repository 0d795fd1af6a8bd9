"""AdaMix: in each block a mixture of adapters or LoRAs, one drawn at random for each pass, averaged for inference.

Wang et al. 2022, "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning", and microsoft/AdaMix d361e9d,
whose names the parameters have. What is drawn and what is shared (section 3.1): each pass draws, uniformly, an expert
for each block and side (project down and up drawn apart); all inputs of the batch, and all their tokens, take it. A
training forward with labels makes two passes, A and B, of routes drawn independently (section 3.2), and of dropouts
drawn independently, as two forward passes have them. A side that its experts share (section 3.4) has one route.
Without labels, and in eval mode, the average of the experts is used (section 3.3).
"""

from __future__ import annotations

import inspect
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
from petlpack.errors.arguments import POSITIVE, TRUTH, one_of, whole
from petlpack.layouts.adamix import SOUPS
from petlpack.layouts.run import read_json
from petlpack.methods.attachment import loading, put_on
from petlpack.methods.files import GIVE, TensorFile, run_directory, stated_in, write_config, write_tensors, writing
from petlpack.methods.losses import IGNORED, predicts_next, with_loss
from petlpack.methods.method import Method
from petlpack.methods.places import ACTIVATIONS, Block, Projection, blocks, refuse_merged
from petlpack.methods.probe import parameters_of
from petlpack.methods.settings import check_all, check_config

_STD = 0.02
"""BERT's and RoBERTa's `initializer_range`, of which the reference draws adapters (modeling_bert.py _init_weights)."""

_SCORES = "lora_expert_score_weight"

_MERGED = 3
"""The inference level that averages the experts (expert_soup.py:59-79)."""


_RULES = {
    "kind": (one_of(("adapter", "lora")), "kind is what the experts are, adapters or LoRAs"),
    "experts": (whole(1), "experts is the number of experts to mix; 1 is a plain adapter or LoRA"),
    "bottleneck": (whole(1), "bottleneck is the width of an adapter"),
    "rank": (whole(1), "rank is the rank of a LoRA"),
    "alpha": (POSITIVE, "alpha / rank scales the LoRA"),
    "share_up": (TRUTH, "share_up=True gives all experts one up projection"),
    "share_down": (TRUTH, "share_down=True gives all experts one down projection"),
    "consistency": (TRUTH, "consistency=False skips the second forward pass"),
    "activation": (one_of(ACTIVATIONS), "activation is an adapter's non-linearity"),
    "idle_gradients": (TRUTH, "idle_gradients=False leaves experts that were not drawn without a gradient"),
}


@dataclass(frozen=True)
class Config:
    """Settings; the defaults are the paper's for BERT-base (appendix D; bottleneck 16 for RoBERTa-large).

    kind: "adapter" or "lora". experts: how many are mixed; 1 is a plain adapter or LoRA, trained by one pass.
    bottleneck, activation: an adapter's. rank, alpha: a LoRA's, alpha / rank scales it. share_up, share_down: whether
    all experts have one up (LoRA: B), or down (LoRA: A) projection. consistency: whether a second pass regularizes.
    idle_gradients: whether the experts that a step does not draw have a gradient of 0, as in the released code, so that
    their momentum goes on and processes of a distributed training agree on who has one, or none.
    """

    kind: str = "adapter"
    experts: int = 4
    bottleneck: int = 48
    rank: int = 4
    alpha: float = 32.0
    share_up: bool = True
    share_down: bool = False
    consistency: bool = True
    activation: str = "gelu"
    idle_gradients: bool = True

    def __post_init__(self) -> None:
        """Refuse what no mixture can have."""
        check_all(self, _RULES)
        if self.experts > 1 and self.share_up and self.share_down:
            raise UsageError(
                f"share_up and share_down are both True, which makes all {self.experts} experts identical",
                hint="share only one projection, or set experts=1",
            )

    @property
    def counts(self) -> tuple[int, int]:
        """How many experts project down (LoRA: A) and up (LoRA: B)."""
        return 1 if self.share_down else self.experts, 1 if self.share_up else self.experts


def merge(experts: list[torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
    """Return the sum of softmax(scores)[e] times expert e, in the experts' order and precision, from 0 on.

    Experts of one shape and dtype, scores (experts,). Section 3.3; expert_soup.py:34-45, to the bit, and petlpack's.
    """
    shares = torch.softmax(scores.double(), 0).to(experts[0].dtype)
    total = torch.zeros_like(experts[0])
    for share, expert in zip(shares, experts, strict=True):
        total = total + share * expert
    return total


def symmetric_kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return 1/2 (KL(A || B) + KL(B || A)) of two passes' logits (inputs, classes), the mean of the inputs.

    Section 3.2; of no inputs it is 0. Computed in float32, or float64 where the logits are. Both passes have a
    gradient, by which each comes nearer to the other as it stands: the target of a divergence has none
    (modeling_roberta.py:1179-1188).
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    log_a, log_b = F.log_softmax(a.to(wide), -1), F.log_softmax(b.to(wide), -1)

    def kl(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        return F.kl_div(log_q, log_p.detach(), reduction="sum", log_target=True) / max(1, len(log_p))

    return 0.5 * (kl(log_b, log_a) + kl(log_a, log_b))


class _Idle(torch.autograd.Function):  # type: ignore[misc]  # torch is Any here
    """A tensor as it is, and gradients of 0 for others."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        ctx.others = others
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients[0], *map(torch.zeros_like, ctx.others)


def _with_idle(x: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return x, whose backward leaves gradients of 0 on others."""
    with_idle: torch.Tensor = _Idle.apply(x, *others)
    return with_idle


class MixtureSoup(nn.Module):  # type: ignore[misc]  # torch is Any here
    """One side's experts, linear layers: weights drawn of N(0, 0.02), each its own, biases 0, as the reference's."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.deepspeed_experts = nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(experts))
        for expert in self.deepspeed_experts:
            nn.init.normal_(expert.weight, std=_STD)
            nn.init.zeros_(expert.bias)
        self.expert_score_weight = nn.Parameter(torch.zeros(experts), requires_grad=False)

    def forward(self, x: torch.Tensor, routed: bool, idle_gradients: bool) -> torch.Tensor:
        """Return (..., outputs) of (..., inputs), by an expert drawn for all of x, or by the average of all."""
        if routed:
            experts = list(self.deepspeed_experts)
            drawn = experts.pop(_draw(len(experts)))(x)
            return _with_idle(drawn, parameters_of(*experts)) if idle_gradients else drawn
        parts = ([getattr(expert, part) for expert in self.deepspeed_experts] for part in ("weight", "bias"))
        return F.linear(x, *(merge(part, self.expert_score_weight) for part in parts))


class ExpertSoup(nn.Module):  # type: ignore[misc]  # torch is Any here
    """A mixture of adapters in one block: MoA_A projects down, MoA_B up."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        down, up = config.counts
        self.MoA_A = MixtureSoup(down, width, config.bottleneck)
        self.MoA_B = MixtureSoup(up, config.bottleneck, width)
        self.activation = ACTIVATIONS[config.activation]
        self.idle_gradients = config.idle_gradients

    def forward(self, x: torch.Tensor, routed: bool) -> torch.Tensor:
        """Return Wu gelu(Wd x + bd) + bu + x, shaped and typed as x (section 2.2; modeling_bert.py:440-455)."""
        inner = x.to(self.MoA_A.expert_score_weight.dtype)  # of a base in half precision the experts are not
        hidden = self.activation(self.MoA_A(inner, routed, self.idle_gradients))
        return x + self.MoA_B(hidden, routed, self.idle_gradients).to(x.dtype)


class AdaMix(Method):
    """AdaMix on a model; made by `attach` or `load`."""

    def __init__(self, model: nn.Module, config: Config) -> None:
        model_blocks = blocks(model)
        if "labels" not in inspect.signature(model.forward).parameters:
            raise UsageError(
                f"{type(model).__name__} takes no labels, but AdaMix needs them for its loss",
                hint="use a model with a classification or language-modeling head",
            )
        if config.kind == "lora":
            refuse_merged(model, model_blocks[0])
        super().__init__(model)
        self.config = config
        self._signature = inspect.signature(model.forward)
        self._routed = False
        self._names: list[str] = []
        for block in model_blocks:
            if config.kind == "adapter":
                self._add_adapter(block)
            else:
                for name, projection in block.query_and_value.items():
                    self._add_lora(block, name, projection)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write every expert and the head (pytorch_model_expert_soup.safetensors) and what they mean (config.json)."""
        self.check_precision()
        config = self.config
        about: dict[str, Any] = {"num_experts": config.experts, "inference_level": _MERGED}
        about |= {"consistency": config.consistency}
        if config.kind == "adapter":
            about |= {"apply_expert_soup": True, "adapter_size": config.bottleneck}
            about |= {"adapter_activation": config.activation}
            about |= {"sharing_down": int(config.share_down), "sharing_up": int(config.share_up)}
        else:
            about |= {"lora_r": config.rank, "lora_alpha": config.alpha}
            about |= {"share_A": int(config.share_down), "share_B": int(config.share_up)}
        with writing(self.model, directory) as made:
            write_tensors(made / SOUPS[0], {**self.tensors(), **self.head_tensors()})
            write_config(made, self.model, **about)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the experts and their scores, as the model names them."""
        state = self.model.state_dict()
        return {name: state[name] for name in self._names}

    @property
    def routed(self) -> bool:
        """Whether the pass under way takes one expert each, and not their average."""
        return self._routed and self.model.training

    def forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the model's output, in training with labels that of two passes, their consistency in the loss."""
        labels = self._signature.bind(*args, **kwargs).arguments.get("labels")
        self._routed = labels is not None
        if labels is None and self.config.experts > 1:
            self.tell_without_labels()
        try:
            output = forward(*args, **kwargs)
            if not self.routed or not self.config.consistency or self.config.experts == 1 or output[1].shape[-1] == 1:
                return output  # a regression's one number is no distribution: in the reference their divergence is 0
            other = forward(*args, **kwargs)
            return _with_consistency(output, other, labels, shift=predicts_next(self.model))
        finally:
            # Checkpointed blocks run again in the backward pass; torch restores the generator, so they draw the same
            self._routed = self._routed and bool(self.checkpointing())

    def _add_adapter(self, block: Block) -> None:
        soup = ExpertSoup(block.width, self.config)
        self.add(block.output, "ExpertSoup", soup)
        self.hook(block.feed_forward.register_forward_hook(lambda _module, _args, out: soup(out, self.routed)))
        self._names += [f"{block.output_name}.ExpertSoup.{name}" for name in soup.state_dict()]
        experts = [expert for side in (soup.MoA_A, soup.MoA_B) for expert in side.deepspeed_experts]
        self.insert("the mixture of adapters", block.name, block.layer, lambda: parameters_of(*experts))

    def _add_lora(self, block: Block, name: str, projection: Projection) -> None:
        """Add experts of a LoRA: A one Kaiming draw, the same for all of them, B zeros (loralib/layers.py:263-290)."""
        config, place, linear = self.config, f"{block.attention_name}.{name}", projection.module
        shapes = projection.shapes(config.rank)
        a = torch.empty(shapes["A"])
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        sides = {"A": (config.counts[0], a), "B": (config.counts[1], torch.zeros(shapes["B"]))}
        for side, (count, first) in sides.items():
            experts = nn.ParameterList(nn.Parameter(first.clone()) for _ in range(count))
            self.add(linear, f"experts_lora_{side}", experts)
            self._names += [f"{place}.experts_lora_{side}.{e}" for e in range(count)]
        scores = nn.Parameter(torch.zeros(config.experts, device=self.device), requires_grad=False)
        linear.register_parameter(_SCORES, scores)
        self._undo.append(lambda: delattr(linear, _SCORES))
        self._names.append(f"{place}.{_SCORES}")

        def add(_module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            return out + self._delta(projection, args[0]).to(out.dtype)  # under autocast another than the input's

        self.hook(linear.register_forward_hook(add))
        both = linear.experts_lora_A, linear.experts_lora_B
        self.insert(f"the mixture of LoRAs on {name}", block.name, block.layer, lambda: parameters_of(*both))

    def _delta(self, projection: Projection, x: torch.Tensor) -> torch.Tensor:
        """Return alpha / rank * B A x, shaped (..., outputs), in the experts' precision."""
        linear: Any = projection.module
        scores = linear.lora_expert_score_weight
        a, b = (self._factor([*side], scores) for side in (linear.experts_lora_A, linear.experts_lora_B))
        return projection.low_rank(x, a, b) * (self.config.alpha / self.config.rank)

    def _factor(self, experts: list[torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
        if len(experts) == 1:
            return experts[0]  # never weighted, as in the reference (loralib/layers.py:304-337)
        if not self.routed:
            return merge(experts, scores)
        drawn = experts.pop(_draw(len(experts)))
        return _with_idle(drawn, experts) if self.config.idle_gradients else drawn


def attach(model: nn.Module, config: Config, *, probe: Mapping[str, Any] | None = None) -> AdaMix:
    """Put AdaMix on a model with a head, or a T5 that generates; raises UsageError for models of other families.

    The adapters' output is tiny at first, as both projections are drawn of N(0, 0.02): the model begins near the base.
    A LoRA's is zero, as B is: it begins at the base. `probe` is a batch to probe it with (`Method.probe`).
    """
    check_config(config, Config)
    return put_on(model, lambda: AdaMix(model, config), probe)


def load(model: nn.Module, directory: str | os.PathLike[str], *, probe: Mapping[str, Any] | None = None) -> AdaMix:
    """Put a saved or decoded run on a model of its base; raises RunError where they do not fit."""
    path = run_directory(directory)
    about = path / "config.json"
    weights = next((path / name for name in SOUPS if (path / name).is_file()), None)
    if weights is None:
        raise RunError(f"'{printable(str(path))}' has no {SOUPS[0]}", hint=GIVE)
    file = TensorFile(weights)
    lora = any(".experts_lora_" in name for name in file.tensors)
    method = attach(model, _config(read_json(about), about, lora=lora), probe=probe)
    with loading(method):
        file.copy(method.tensors())
        file.copy_head(method)
        file.refuse_others()
    return method


def _with_consistency(output: Any, other: Any, labels: torch.Tensor, *, shift: bool) -> Any:
    """Return pass A's output, its loss with the consistency added: section 3.2's whole objective.

    Loss and logits stand first in an output, which may be a tuple. Of labels for each token those that are ignored
    do not count; with `shift` a position's logits are for the next token's label.
    """
    logits = output[1]
    if labels.shape != logits.shape[:-1]:
        raise UsageError(
            f"labels have shape {list(labels.shape)}, but AdaMix's consistency loss needs one class for each row of "
            f"the logits, whose shape is {list(logits.shape)}",
            hint="attach with consistency=False",
        )
    counted = labels != IGNORED
    if shift:
        counted = F.pad(counted[..., 1:], (0, 1), value=False)
    return with_loss(output, symmetric_kl(logits[counted], other[1][counted]))


def _config(about: Mapping[str, Any], file: Path, *, lora: bool) -> Config:
    """Return the settings that a run's config.json says, saved or decoded, or left by the reference code."""

    def setting(*names: str) -> Any:
        for name in names:
            if about.get(name) is not None:
                return about[name]
        raise RunError(
            f"'{printable(str(file))}' has no {names[0]}",
            hint="copy the run again, with the config.json that was saved with it",
        )

    if setting("inference_level") != _MERGED:
        raise RunError(
            f"'{printable(str(file))}': inference_level must be {_MERGED} (averaged experts), got "
            f"{printable(str(about['inference_level']))}",
            hint="average the experts before saving: other levels route at random and cannot be loaded",
        )
    down, up = ("share_A", "share_B") if lora else ("sharing_down", "sharing_up")
    settings: dict[str, Any] = {"kind": "lora" if lora else "adapter", "experts": setting("num_experts")}
    settings |= {"share_down": bool(about.get(down)), "share_up": bool(about.get(up))}
    settings |= {"consistency": bool(about.get("consistency", True))}
    if lora:
        settings |= {"rank": setting("lora_r"), "alpha": setting("lora_alpha")}
    else:
        settings |= {"bottleneck": setting("adapter_size"), "activation": setting("adapter_activation", "hidden_act")}
    with stated_in(file):
        return Config(**settings)


def _draw(experts: int) -> int:
    """Draw the expert of one pass from torch's global generator, each as likely (section 3.1)."""
    return int(torch.randint(experts, (1,))) if experts > 1 else 0
