"""Diff pruning: every weight of the base gets a difference, and the gates of most of them learn to be closed.

Guo, Rush and Kim, "Parameter-Efficient Transfer Learning with Diff Pruning", ACL 2021; dguo98/DiffPruning.

    method = diff_pruning.attach(model, diff_pruning.Config(density=0.005))
    train(model, torch.optim.AdamW(method.groups(1e-3)))   # stage 1: differences and gates
    method.prune()                                         # stage 2: the largest differences, the others are gone
    train(model, torch.optim.AdamW(method.groups(1e-3)))   # stage 3: what is left of them, under a fixed mask
    method.save("runs/sst2")

`transformers.Trainer` is given the optimizer: `optimizers=(torch.optim.AdamW(method.groups(lr)), None)`.
"""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from petlpack.errors import RunError, UsageError, printable
from petlpack.errors.arguments import NOT_NEGATIVE, POSITIVE, SHARE, TRUTH, check, number
from petlpack.layouts.run import read_json
from petlpack.methods.attachment import loading, put_on
from petlpack.methods.diff_pruning_probe import check_step
from petlpack.methods.diff_pruning_stages import Gates, Kept, bits, exactly, largest, restore, starts_of, weights_of
from petlpack.methods.diff_pruning_state import check_base, check_stage, kept_in, untied
from petlpack.methods.files import GIVE, TensorFile, run_directory, stated_in, write_config, write_tensors, writing
from petlpack.methods.heads import head_parameters
from petlpack.methods.losses import loss_of, with_loss
from petlpack.methods.method import Method
from petlpack.methods.probe import running
from petlpack.methods.settings import check_all, check_config
from petlpack.tensors.checkpoint import find_weights

__all__ = ["Config", "DiffPruning", "attach", "largest", "load"]

_CONSTANT = "constant_lr"
"""A rate that no schedule changes, in an optimizer's group."""

_RULES = {
    "density": (SHARE, "density is the share of the base's weights that may change"),
    "structured": (TRUTH, "structured=True adds a gate that all differences of a tensor share"),
    "l0": (NOT_NEGATIVE, "l0 is the penalty that an open gate adds to the loss"),
    "gate_lr": (POSITIVE, "gate_lr is the learning rate of the gates"),
    "low": (
        number("a finite number < 0", lambda value: value < 0),
        "low is where a gate's range starts: from 0 on, none could close",
    ),
    "high": (
        number("a finite number > 1", lambda value: value > 1),
        "high is where a gate's range ends: up to 1, none could open fully",
    ),
    "alpha": (number("a finite number"), "alpha is the initial value of the gates' parameters"),
}


@dataclass(frozen=True)
class Config:
    """What the paper's section 3 and its code leave to choose; the defaults are those of its scripts."""

    density: float = 0.005
    """Share of the base's weights that keep a difference: the target sparsity of section 3.2."""
    structured: bool = True
    """Whether the differences of a tensor have a gate in common, too (section 3.3).

    A weight is open with the product of both probabilities. The released code adds up those of weights and of groups.
    """
    l0: float = 1.25e-7
    """lambda: what an open gate costs, for tens of thousands of steps; shorter trainings need more."""
    gate_lr: float = 0.1
    """The learning rate of the gates: a constant, whatever a schedule does with the others (in the released code they
    have an optimizer of their own, and no schedule)."""
    low: float = -1.5
    high: float = 1.5
    """The interval (l, r) that the concrete distribution is stretched to."""
    alpha: float = 5.0
    """What the gates' parameters begin with: almost open."""

    def __post_init__(self) -> None:
        """Check the values; raises UsageError."""
        check_all(self, _RULES)

    @property
    def shift(self) -> float:
        """log(-l / r), for P(z > 0) = sigmoid(alpha - shift)."""
        return math.log(-self.low / self.high)


def attach(model: nn.Module, config: Config | None = None, *, probe: Mapping[str, Any] | None = None) -> DiffPruning:
    """Give every weight of a model's base a difference and a gate, and begin stage 1; the head trains as it is.

    `probe` is a batch to probe it with (`Method.probe`).
    """
    chosen = Config() if config is None else config
    check_config(chosen, Config)
    return put_on(model, lambda: DiffPruning(model, chosen), probe)


def load(model: nn.Module, directory: str | os.PathLike[str], *, probe: Mapping[str, Any] | None = None) -> DiffPruning:
    """Give a model that holds the base what the run in `directory` trained; the method is in stage 3.

    Kept are the positions whose bits changed. Raises RunError that names the file and what does not fit.
    """
    directory = run_directory(directory)
    shown = printable(str(directory))
    settings = read_json(directory / "config.json").get("diff_pruning")
    if not isinstance(settings, dict) or "density" not in settings:
        raise RunError(f"'{shown}/config.json' has no 'diff_pruning' with a density", hint=GIVE)
    weights = find_weights(directory)
    if weights is None:
        raise RunError(f"'{shown}' has no weights", hint=GIVE)
    file = TensorFile(weights)
    with stated_in(directory / "config.json"):
        config = Config(density=settings["density"], structured=bool(settings.get("structured", True)))
    method = attach(model, config, probe=probe)
    with loading(method):
        method.take(file)
    return method


class DiffPruning(Method):
    """Diff pruning on a model, which always holds all weights as parameters of its own.

    In stage 1 a training forward writes theta = p0 + z w with newly drawn gates z into the model, and backward turns
    the gradient of theta into those of w and alpha. In eval mode, in a state dict and in `differences` a gate is what
    it is at u = 0.5, its median; the paper draws u once after training (footnote 5). Between two training forwards
    there is a backward, else torch refuses it: the second one writes over the first one's weights.
    """

    def __init__(self, model: nn.Module, config: Config) -> None:
        """Take over every parameter but the head's; a tied one counts once."""
        super().__init__(model)
        self.config = config
        self._head = head_parameters(model)
        self._weights = weights_of(model, excluded=self._head)
        self.size = sum(weight.start.numel() for weight in self._weights)
        self._own = nn.Module()
        self.add(model, "diff_pruning", self._own)
        self._undo.append(lambda: restore(self._weights))
        self._stage: Gates | Kept = Gates(self._weights, config, self._own)
        for i, weight in enumerate(self._weights):
            weight.theta.requires_grad_(True)
            self.hook(weight.theta.register_post_accumulate_grad_hook(self._turn(i)))
            for table in weight.tables:
                self.hook(table.register_forward_pre_hook(self._look(i)))
        self.hook(model.register_state_dict_pre_hook(lambda *_args: self._write()))
        self.hook(model.register_load_state_dict_pre_hook(self._check_state))
        self.hook(model.register_load_state_dict_post_hook(lambda *_args: self._take_state()))
        holding = register_optimizer_step_pre_hook(functools.partial(_hold_rates, weakref.ref(self)))
        self.hook(holding)
        weakref.finalize(self, holding.remove)
        self._named: set[str] = set()
        self._inside = False
        self._called: set[int] = set()
        parts = {getattr(model, "base_model", model)}
        if getattr(model.config, "is_encoder_decoder", False):
            parts.add(model.get_encoder())  # which `generate` calls by itself
        for part in parts - {model}:  # called by themselves, too
            self.hook(part.register_forward_pre_hook(lambda *_args: None if self._inside else self._write()))

    def note_own(self) -> None:
        """Note what is the method's: all of the model, which `save` writes whole."""
        super().note_own()
        self._frozen = []

    def remember(self) -> None:
        """Note nothing: the state dict of a stage tells by its names and shapes what it is of."""

    @property
    def density(self) -> float:
        """Share of the weights that keep a difference, or will."""
        return float(self._own.density) if isinstance(self._stage, Kept) else self.config.density

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains: differences, gates and head."""
        return [*self._own.parameters(), *self._head]

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups: differences and head at `lr`, gates constantly at `gate_lr`; no decay."""
        gates = self._stage.gates()
        of_gates = set(map(id, gates))
        others = [parameter for parameter in self.parameters() if id(parameter) not in of_gates]
        groups = [{"params": others, "lr": lr, "weight_decay": 0.0}]
        rate = self.config.gate_lr
        return [*groups, {"params": gates, "lr": rate, "weight_decay": 0.0, _CONSTANT: rate}] if gates else groups

    def expected_l0(self) -> torch.Tensor:
        """Return how many of the `size` differences are expected not to be 0: a scalar, differentiable in stage 1."""
        return self._stage.expected_l0()

    def differences(self) -> dict[str, torch.Tensor]:
        """Return the differences by the names of the base's tensors, and the head's tensors as they are."""
        with torch.no_grad():
            differences = {weight.name: self._stage.difference(i) for i, weight in enumerate(self._weights)}
        return differences | self.head_tensors()

    def prune(self, density: float | None = None) -> None:
        """Keep the largest differences, round(density * size) of them, and begin stage 3 with what they are.

        `density` is the config's by default. Of equal differences the first are kept. What trains is new: make a new
        optimizer. Raises UsageError where the differences are not finite, or all 0.
        """
        density = self.config.density if density is None else density
        check("density", density, *_RULES["density"])
        self._follow()
        with torch.no_grad():
            flat = torch.cat([self._stage.difference(i).reshape(-1) for i in range(len(self._weights))])
            if not bool(torch.isfinite(flat).all()):
                raise UsageError("some differences are NaN or infinite", hint="train with a lower learning rate")
            if not bool(flat.any()):
                raise UsageError(
                    "all differences are 0: nothing was trained", hint="put the model in train mode: model.train()"
                )
            chosen = largest(flat.abs(), round(density * self.size))
            self._fix(density, chosen, starts_of(self._weights)[chosen], flat[chosen])

    def take(self, file: TensorFile) -> None:
        """Begin stage 3 with the weights of a tuned model, named as in its state dict.

        Raises RunError where they are another model's, or change more of it than the density says.
        """
        for name, tensor in untied(self.model).items():
            if (dtype := file.get(name, tensor.shape).dtype) != tensor.dtype:
                raise file.error(f"has '{name}' in {dtype}, but the model has it in {tensor.dtype}")
        with torch.no_grad():
            start = starts_of(self._weights)
            flat = torch.cat([file.tensors[weight.name].reshape(-1) for weight in self._weights]).to(start.device)
            chosen = (bits(flat) != bits(start)).nonzero().reshape(-1)
            allowed = round(self.density * self.size)
            if len(chosen) > allowed:
                at_most = f"a density of {self.density:g} allows only {allowed}"
                raise file.error(f"changes {len(chosen)} weights of the model, but {at_most}")
            self._fix(self.density, chosen, *exactly(flat[chosen], start[chosen]))
            for name, buffer in self.model.named_buffers():
                if name in file.tensors:  # what norms counted in training
                    buffer.copy_(file.get(name, buffer.shape))
        file.copy_head(self)

    def resume(self, directory: str | os.PathLike[str]) -> None:
        """Go to the state of a checkpoint of this model, a Trainer's, and to the stage that it was made in.

        What trains is new where the stage is another one: make the optimizer then. Raises RunError where the checkpoint
        does not fit.
        """
        weights = find_weights(run_directory(directory))
        if weights is None:
            raise RunError(
                f"'{printable(str(directory))}' has no weights", hint="give a checkpoint directory of the Trainer"
            )
        state = TensorFile(weights).tensors
        if kept := kept_in(state, self.device):
            with torch.no_grad():
                self._fix(float(kept["density"]), kept["chosen"], kept["start"], kept["w"])
        try:
            self.model.load_state_dict(state, strict=False)
        except UsageError as error:
            raise RunError(f"'{printable(str(weights))}': {error.message}", hint=error.hint) from error

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the tuned model and a config that states the density; raises UsageError before `prune`."""
        if not isinstance(self._stage, Kept):
            raise UsageError(
                "nothing has been pruned yet: the differences of stage 1 are dense",
                hint="call prune(), then train what it keeps",
            )
        settings = {"density": self.density, "structured": self.config.structured}
        with writing(self.model, directory) as made:
            write_config(made, self.model, diff_pruning=settings)
            write_tensors(made / "model.safetensors", untied(self.model))

    def _probe(self, run: Callable[[], Any]) -> None:
        """Show by a training step that the weights' gradients become those of differences and gates."""
        self._follow()
        self._note_tables(run)
        try:
            check_step(self.model, self._weights, self._stage, self.parameters(), run)
        finally:
            restore(self._weights)
            gates = self._stage if isinstance(self._stage, Gates) else None
            if gates is not None:
                gates.forget()
            if gates is None or not gates.is_new():
                self._write()

    def _note_tables(self, run: Callable[[], Any]) -> None:
        """Draw all rows of an embedding that the model does not call: DeBERTa reads the weights of one."""
        self._called = set()
        with running(self.model, training=False), torch.no_grad():
            run()
        for i, weight in enumerate(self._weights):
            if i not in self._called:
                weight.tables = []

    def _check_training(self, loss: torch.Tensor | None) -> None:
        super()._check_training(loss)
        group = torch.distributed
        processes = group.get_world_size() if group.is_available() and group.is_initialized() else 1
        if processes > 1:
            raise UsageError(
                f"diff pruning trains in 1 process, got {processes}: gradients of gates are not synchronized",
                hint="start the training in a single process",
            )

    def forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the model's output with the weights as they are now, in stage 1 with the gates' cost in the loss."""
        self._follow()
        first = self._weights[0]
        if first.theta.dtype != first.start.dtype:
            raise UsageError(
                f"the model was cast from {first.start.dtype} to {first.theta.dtype} after diff pruning was attached",
                hint="cast the model before attach()",
            )
        gates = self._stage if self.model.training and isinstance(self._stage, Gates) else None
        with torch.no_grad():
            self._stage.write() if gates is None else gates.draw()
        self._inside = True
        try:
            output = forward(*args, **kwargs)
        finally:
            self._inside = False
            if gates is not None:
                gates.drawing = False
        return output if gates is None else self._with_loss(output)

    def _with_loss(self, output: Any) -> Any:
        """Add lambda E[L0] to the loss of a model's output, where it has one."""
        if loss_of(output) is not None:
            return with_loss(output, self.config.l0 * self.expected_l0())
        self.tell_without_labels()
        return output

    def _write(self) -> None:
        self._follow()
        with torch.no_grad():
            self._stage.write()

    def _look(self, i: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Return what an embedding calls with the rows that it will look up."""

        def look(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self._called.add(i)
            if isinstance(self._stage, Gates) and self._stage.drawing and self._weights[i].tables:
                with torch.no_grad():
                    self._stage.draw_rows(i, args[0])

        return look

    def _turn(self, i: int) -> Callable[[nn.Parameter], None]:
        """Return what takes the gradient of theta, once it is complete, and leaves those of what trains."""

        def turn(theta: nn.Parameter) -> None:
            gradient, theta.grad = theta.grad, None
            with torch.no_grad():
                self._stage.turn(i, gradient)

        return turn

    def _fix(self, density: float, chosen: torch.Tensor, start: torch.Tensor, differences: torch.Tensor) -> None:
        for name, _ in [*self._own.named_parameters(), *self._own.named_buffers()]:
            delattr(self._own, name)
        restore(self._weights)
        self._stage = Kept(self._weights, chosen, start, differences, self._own)
        self._own.register_buffer("density", torch.tensor(density, dtype=torch.float64))
        self._stage.write()
        self.note_own()

    def _check_state(self, _module: nn.Module, state: Mapping[str, Any], prefix: str, *_args: Any) -> None:
        """Raise UsageError for a state dict that is not of this stage."""
        whole = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        check_stage(whole, self._own.state_dict())
        self._named = set(whole)

    def _take_state(self) -> None:
        """Write the weights that the state gives; raises UsageError where they are not those that came with it."""
        with torch.no_grad():
            loaded = [weight.theta.clone() for weight in self._weights]
            self._stage.taken()
            restore(self._weights)
            self._stage.write()
        check_base(self._weights, loaded, self._named)

    def _follow(self) -> None:
        """Go to the device that the model went to."""
        device = self._weights[0].theta.device
        if self._weights[0].start.device != device:
            for weight in self._weights:
                weight.start = weight.start.to(device)
            self._stage.to(device)


def _hold_rates(method: weakref.ref[DiffPruning], optimizer: torch.optim.Optimizer, *_args: Any) -> None:
    """Take back what a schedule made of the gates' rate; torch calls it before each step of any optimizer."""
    alive = method()
    gates = {id(gate) for gate in alive._stage.gates()} if alive is not None else set()
    for group in optimizer.param_groups:
        if _CONSTANT in group and any(id(parameter) in gates for parameter in group["params"]):
            group["lr"] = group[_CONSTANT]
