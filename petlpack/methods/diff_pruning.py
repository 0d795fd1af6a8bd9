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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from petlpack.errors import RunError, UsageError, printable
from petlpack.layouts.run import read_json
from petlpack.methods.files import GIVE, TensorFile, run_directory, stated_in, write_json, write_tensors
from petlpack.methods.gates import Gates, Kept, Weight, bits, exactly
from petlpack.methods.method import Method, loading, loss_of, put_on, with_loss
from petlpack.methods.places import head_modules
from petlpack.methods.probe import no_effect, running, weighed
from petlpack.methods.settings import NOT_NEGATIVE, POSITIVE, SHARE, TRUTH, check, check_all, check_config, number
from petlpack.tensors.checkpoint import find_weights

_RULES = {
    "density": (SHARE, "density is the share of the base's weights that may change"),
    "structured": (TRUTH, "with structured=True the differences of a tensor have a gate in common, too"),
    "l0": (NOT_NEGATIVE, "l0 is what an open gate adds to the loss"),
    "gate_lr": (POSITIVE, "gate_lr is the learning rate of the gates"),
    "low": (number("a finite number below 0", lambda value: value < 0), "above it no gate could close"),
    "high": (number("a finite number above 1", lambda value: value > 1), "below it no gate could open fully"),
    "alpha": (number("a finite number"), "alpha is what the gates' parameters start at"),
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


def _check_density(density: float) -> None:
    check("density", density, *_RULES["density"])


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
    said = read_json(directory / "config.json").get("diff_pruning")
    if not isinstance(said, dict) or "density" not in said:
        raise RunError(f"'{shown}/config.json' has no 'diff_pruning' that states a density", hint=GIVE)
    weights = find_weights(directory)
    if weights is None:
        raise RunError(f"'{shown}' has no weights", hint=GIVE)
    file = TensorFile(weights)
    with stated_in(directory / "config.json"):
        config = Config(density=said["density"], structured=bool(said.get("structured", True)))
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
        self._head = [parameter for module in head_modules(model).values() for parameter in module.parameters()]
        of_head = {id(parameter) for parameter in self._head}
        users: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                users.setdefault(id(parameter), []).append(module)
        self._weights = [
            Weight(name, theta, theta.detach().clone(), users[id(theta)] if _look_up(name, users[id(theta)]) else [])
            for name, theta in model.named_parameters()
            if id(theta) not in of_head
        ]
        self.size = sum(weight.start.numel() for weight in self._weights)
        self._own = nn.Module()
        self.add(model, "diff_pruning", self._own)
        self._undo.append(self._restore)
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
        for part in {getattr(model, "base_model", model), *_encoder_of(model)} - {model}:  # called by themselves, too
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
        own = {id(gate) for gate in gates}
        others = [parameter for parameter in self.parameters() if id(parameter) not in own]
        groups = [{"params": others, "lr": lr, "weight_decay": 0.0}]
        rate = self.config.gate_lr
        return [*groups, {"params": gates, "lr": rate, "weight_decay": 0.0, _CONSTANT: rate}] if gates else groups

    def expected_l0(self) -> torch.Tensor:
        """Return how many of the `size` differences are expected not to be 0: a scalar, differentiable in stage 1."""
        return self._stage.expected_l0()

    def differences(self) -> dict[str, torch.Tensor]:
        """Return the differences by the names of the base's tensors, and the head's tensors as they are."""
        with torch.no_grad():
            own = {weight.name: self._stage.difference(i) for i, weight in enumerate(self._weights)}
        return own | self.head_tensors()

    def prune(self, density: float | None = None) -> None:
        """Keep the largest differences, round(density * size) of them, and begin stage 3 with what they are.

        `density` is the config's by default. Of equal differences the first are kept. What trains is new: make a new
        optimizer. Raises UsageError where the differences are not finite, or all 0.
        """
        density = self.config.density if density is None else density
        _check_density(density)
        self._follow()
        with torch.no_grad():
            flat = torch.cat([self._stage.difference(i).reshape(-1) for i in range(len(self._weights))])
            if not bool(torch.isfinite(flat).all()):
                raise UsageError("not all differences are finite", hint="train with a lower learning rate")
            if not bool(flat.any()):
                raise UsageError(
                    "all differences are 0: nothing was trained", hint="train in train mode: model.train()"
                )
            chosen = largest(flat.abs(), round(density * self.size))
            self._fix(density, chosen, self._starts()[chosen], flat[chosen])

    def take(self, file: TensorFile) -> None:
        """Begin stage 3 with the weights of a tuned model, named as in its state dict.

        Raises RunError where they are another model's, or change more of it than the density says.
        """
        for name, own in _untied(self.model).items():
            if (found := file.get(name, own.shape)).dtype != own.dtype:
                raise file.error(f"has '{name}' as {found.dtype}, but in the model it is {own.dtype}")
        with torch.no_grad():
            start = self._starts()
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
            raise RunError(f"'{printable(str(directory))}' has no weights", hint="give a Trainer's checkpoint")
        held = TensorFile(weights).tensors
        own = {name.removeprefix(_OWN): tensor for name, tensor in held.items() if name.startswith(_OWN)}
        if set(own) == _KEPT:
            own = {name: tensor.to(self.device) for name, tensor in own.items()}
            with torch.no_grad():
                self._fix(float(own["density"]), own["chosen"], own["start"], own["w"])
        try:
            self.model.load_state_dict(held, strict=False)
        except UsageError as error:
            raise RunError(f"'{printable(str(weights))}': {error.message}", hint=error.hint) from error

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the tuned model and a config that states the density; raises UsageError before `prune`."""
        if not isinstance(self._stage, Kept):
            raise UsageError(
                "nothing has been pruned yet: the differences of stage 1 are dense",
                hint="call prune() first, and train what it keeps",
            )
        said = {"density": self.density, "structured": self.config.structured}
        with self.writing(directory) as made:
            write_json(made / "config.json", self.config_json(diff_pruning=said))
            write_tensors(made / "model.safetensors", _untied(self.model))

    def _probe(self, run: Callable[[], Any]) -> None:
        """Show by a training step that the weights' gradients become those of differences and gates."""
        self._follow()
        self._note_tables(run)
        gates = self._stage if isinstance(self._stage, Gates) else None
        halfway = gates.halfway() if gates is not None and gates.is_new() else nullcontext()
        try:
            with running(self.model, training=True), halfway, _without_gradients(self.parameters()):
                self._backward(weighed(run()))
                stuck = [weight.name for weight in self._weights if weight.theta.grad is not None]
                if stuck:
                    raise no_effect(f"the gradient of '{stuck[0]}' does not reach its difference", self.model)
                if gates is not None and not gates.reached():
                    raise no_effect("no gradient reaches the differences and their gates", self.model)
        finally:
            self._restore()
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
                f"diff pruning runs in {processes} processes, which do not share gradients of differences and gates",
                hint="train it in one process",
            )

    def _backward(self, total: torch.Tensor | None) -> None:
        try:
            if total is not None:
                total.backward()
        except UsageError as error:  # from a hook
            raise no_effect(error.message, self.model) from error

    def forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the model's output with the weights as they are now, in stage 1 with the gates' cost in the loss."""
        self._follow()
        first = self._weights[0]
        if first.theta.dtype != first.start.dtype:
            raise UsageError(
                f"the model was cast from {first.start.dtype} to {first.theta.dtype} with diff pruning on it",
                hint="cast the model before attach",
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

    def _starts(self) -> torch.Tensor:
        return torch.cat([weight.start.reshape(-1) for weight in self._weights])

    def _fix(self, density: float, chosen: torch.Tensor, start: torch.Tensor, differences: torch.Tensor) -> None:
        for name, _ in [*self._own.named_parameters(), *self._own.named_buffers()]:
            delattr(self._own, name)
        self._restore()
        self._stage = Kept(self._weights, chosen, start, differences, self._own)
        self._own.register_buffer("density", torch.tensor(density, dtype=torch.float64))
        self._stage.write()
        self.note_own()

    def _check_state(self, _module: nn.Module, state: Mapping[str, Any], prefix: str, *_args: Any) -> None:
        """Raise UsageError for a state dict that is not of this stage."""
        whole = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        held = {name.removeprefix(_OWN): tensor for name, tensor in whole.items() if name.startswith(_OWN)}
        own = self._own.state_dict()
        if not held:
            raise UsageError(
                "the state dict has weights alone, without differences and gates",
                hint="give that of a model with diff pruning on it; what save() wrote is for load()",
            )
        if {name: tensor.shape for name, tensor in held.items()} != {name: own[name].shape for name in own}:
            raise UsageError(
                "the state dict is of another stage, density or model than the method's",
                hint="call method.resume(CHECKPOINT) first, and make the optimizer after it",
            )
        self._named = set(whole)

    def _take_state(self) -> None:
        """Write the weights that the state gives; raises UsageError where they are not those that came with it."""
        with torch.no_grad():
            loaded = [weight.theta.clone() for weight in self._weights]
            self._stage.taken()
            self._restore()
            self._stage.write()
        for weight, theta in zip(self._weights, loaded, strict=True):
            if weight.name in self._named and not torch.allclose(weight.theta, theta, rtol=1e-2, atol=1e-5):
                raise UsageError(
                    f"'{weight.name}' in the state dict is not the base plus its difference",
                    hint="attach to the base that the checkpoint was trained on",
                )

    def _follow(self) -> None:
        """Go to the device that the model went to."""
        device = self._weights[0].theta.device
        if self._weights[0].start.device != device:
            for weight in self._weights:
                weight.start = weight.start.to(device)
            self._stage.to(device)

    def _restore(self) -> None:
        with torch.no_grad():
            for weight in self._weights:
                weight.theta.copy_(weight.start)
                weight.theta.grad = None


_OWN = "diff_pruning."
"""What the names of differences, gates and kept positions begin with, in a model's state dict."""
_KEPT = {"w", "start", "chosen", "density"}
"""What stands there in stage 3."""
_CONSTANT = "constant_lr"
"""A rate that no schedule changes, in an optimizer's group."""


def _hold_rates(method: weakref.ref[DiffPruning], optimizer: torch.optim.Optimizer, *_args: Any) -> None:
    """Take back what a schedule made of the gates' rate; torch calls it before each step of any optimizer."""
    alive = method()
    gates = {id(gate) for gate in alive._stage.gates()} if alive is not None else set()
    for group in optimizer.param_groups:
        if _CONSTANT in group and any(id(parameter) in gates for parameter in group["params"]):
            group["lr"] = group[_CONSTANT]


@contextmanager
def _without_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Lay gradients aside for a while."""
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def largest(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """Return the positions of the `count` largest of a flat tensor, ascending; of equal ones the first."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=sizes.device)
    least = torch.topk(sizes, count, sorted=False).values.min()
    above, equal = (sizes > least).nonzero().reshape(-1), (sizes == least).nonzero().reshape(-1)
    return torch.cat([above, equal[: count - len(above)]]).sort().values


def _look_up(name: str, users: Sequence[nn.Module]) -> bool:
    """Tell whether all that use a weight look up those rows of it that they are called with; a subclass may not.

    One inside a layer, as T5's relative positions are, counts as used whole: where activations are checkpointed the
    layer is computed again, and nothing may be drawn in it.
    """
    inside = any(part.isdigit() for part in name.split("."))
    return not inside and all(type(user) is nn.Embedding and user.max_norm is None for user in users)


def _encoder_of(model: nn.Module) -> list[nn.Module]:
    """Return the encoder that `generate` calls by itself, where a model has one."""
    return [model.get_encoder()] if getattr(model.config, "is_encoder_decoder", False) else []


def _untied(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's state dict with each tensor once, under its first name."""
    first: dict[tuple[int, torch.Size], tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(_OWN):
            continue
        first.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
    return dict(first.values())
