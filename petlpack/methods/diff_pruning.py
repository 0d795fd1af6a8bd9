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

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petlpack.errors import RunError, UsageError, printable
from petlpack.layouts.base import read_json
from petlpack.methods.files import TensorFile, write_json, write_tensors
from petlpack.methods.method import Method, loading, loss_of, put_on, with_loss
from petlpack.methods.places import head_of, in_front_of_head
from petlpack.methods.probe import no_effect, running, weighed
from petlpack.tensors.checkpoint import find_weights

EDGE = 1e-4
"""How near u may come to 0 and 1 (DiffPruning run_glue_diffpruning.py:122)."""

_NUDGE = 1e-3
"""A difference, for the probe."""
_OPEN = 20.0
"""The parameter of a gate that is open, whatever is drawn."""

PIECE = 1 << 17
"""Numbers to compute with at a time, so that they stay in a core's cache."""


@dataclass(frozen=True)
class Config:
    """What the paper's section 3 and its code leave to choose; the defaults are those of its scripts."""

    density: float = 0.005
    """Share of the base's weights that keep a difference: the target sparsity of section 3.2."""
    structured: bool = True
    """Whether the differences of a tensor have a gate in common, too (section 3.3)."""
    l0: float = 1.25e-7
    """lambda: what an open gate costs, for tens of thousands of steps; shorter trainings need more."""
    gate_lr: float = 0.1
    """The learning rate of the gates."""
    low: float = -1.5
    high: float = 1.5
    """The interval (l, r) that the concrete distribution is stretched to."""
    alpha: float = 5.0
    """What the gates' parameters begin with: almost open."""

    def __post_init__(self) -> None:
        """Check the values; raises UsageError."""
        _check_density(self.density)
        rules = {
            "l0": (0 <= self.l0 < math.inf, "what an open gate costs, 0 or more"),
            "gate_lr": (0 < self.gate_lr < math.inf, "a learning rate, above 0"),
            "low": (-math.inf < self.low < 0, "below 0, so that a gate can be closed"),
            "high": (1 < self.high < math.inf, "above 1, so that a gate can be open"),
            "alpha": (math.isfinite(self.alpha), "a finite number"),
        }
        for name, (holds, what) in rules.items():
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint=f"it is {what}")

    @property
    def shift(self) -> float:
        """log(-l / r), for P(z > 0) = sigmoid(alpha - shift)."""
        return math.log(-self.low / self.high)


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise UsageError(f"density is {density!r}", hint="it is the share of the weights to change, above 0, at most 1")


def attach(model: nn.Module, config: Config | None = None, *, probe: Mapping[str, Any] | None = None) -> DiffPruning:
    """Give every weight of a model's base a difference and a gate, and begin stage 1; the head trains as it is.

    `probe` is a batch to probe it with (`Method.probe`).
    """
    return put_on(model, lambda: DiffPruning(model, config or Config()), probe)


def load(model: nn.Module, directory: str | os.PathLike[str], *, probe: Mapping[str, Any] | None = None) -> DiffPruning:
    """Give a model that holds the base what the run in `directory` trained; the method is in stage 3.

    Kept are the positions whose bits changed. Raises RunError that names the file and what does not fit.
    """
    directory = Path(directory)
    shown = printable(str(directory))
    said = read_json(directory / "config.json").get("diff_pruning")
    if not isinstance(said, dict) or not isinstance(said.get("density"), float | int):
        raise RunError(
            f"'{shown}/config.json' states no 'diff_pruning' with its density",
            hint="give a directory that save() or petlpack decode wrote",
        )
    weights = find_weights(directory)
    if weights is None:
        raise RunError(f"'{shown}' has no weights", hint="give a directory that save() or petlpack decode wrote")
    file = TensorFile(weights)
    method = attach(model, Config(density=said["density"], structured=bool(said.get("structured", True))), probe=probe)
    with loading(method):
        method.take(file)
    return method


@dataclass
class _Weight:
    """A tensor of the base: its name, the model's own parameter, and p0, what that was before."""

    name: str
    theta: nn.Parameter
    start: torch.Tensor
    tables: list[nn.Module]
    """The embeddings that look up rows of it, where nothing else uses it."""


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
        self.density = config.density
        head = head_of(model)
        of_head_modules = [head[1], *in_front_of_head(model).values()] if head else []
        self._head = [parameter for module in of_head_modules for parameter in module.parameters()]
        of_head = {id(parameter) for parameter in self._head}
        users: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                users.setdefault(id(parameter), []).append(module)
        self._weights = [
            _Weight(name, theta, theta.detach().clone(), users[id(theta)] if _look_up(users[id(theta)]) else [])
            for name, theta in model.named_parameters()
            if id(theta) not in of_head
        ]
        self.size = sum(weight.start.numel() for weight in self._weights)
        self._own = _Own()
        self.add(model, "diff_pruning", self._own)
        self._undo.append(self._restore)
        self._stage: _Gates | _Kept = _Gates(self._weights, config, self._own)
        for i, weight in enumerate(self._weights):
            weight.theta.requires_grad_(True)
            self.hook(weight.theta.register_post_accumulate_grad_hook(self._turn(i)))
            for table in weight.tables:
                self.hook(table.register_forward_pre_hook(self._look(i)))
        self.hook(model.register_state_dict_pre_hook(lambda *_args: self._write()))
        self.hook(model.register_load_state_dict_pre_hook(_refuse_state))
        self._inside = False
        self._called: set[int] = set()
        for part in {getattr(model, "base_model", model), *_encoder_of(model)} - {model}:  # called by themselves, too
            self.hook(part.register_forward_pre_hook(lambda *_args: None if self._inside else self._write()))

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains: differences, gates and head."""
        return [*self._own.parameters(), *self._head]

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups: differences and head at `lr`, gates at `gate_lr`; nothing decays."""
        gates = self._stage.gates()
        own = {id(gate) for gate in gates}
        others = [parameter for parameter in self.parameters() if id(parameter) not in own]
        groups = [{"params": others, "lr": lr, "weight_decay": 0.0}]
        return [*groups, {"params": gates, "lr": self.config.gate_lr, "weight_decay": 0.0}] if gates else groups

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
                raise UsageError("not all differences are finite", hint="train with lower learning rates")
            if not bool(flat.any()):
                raise UsageError(
                    "all differences are 0: nothing was trained", hint="train in train mode: model.train()"
                )
            chosen = largest(flat.abs(), round(density * self.size))
            self._fix(chosen, flat[chosen])
        self.density = density

    def take(self, file: TensorFile) -> None:
        """Begin stage 3 with the weights of a tuned model, named as in its state dict.

        Raises RunError where they are another model's, or change more of it than the density says.
        """
        for name, own in _untied(self.model).items():
            if (found := file.get(name, own.shape)).dtype != own.dtype:
                raise file.error(f"has '{name}' as {found.dtype}, in the model it is {own.dtype}")
        with torch.no_grad():
            start = torch.cat([weight.start.reshape(-1) for weight in self._weights])
            flat = torch.cat([file.tensors[weight.name].reshape(-1) for weight in self._weights]).to(start.device)
            chosen = (_bits(flat) != _bits(start)).nonzero().reshape(-1)
            allowed = round(self.density * self.size)
            if len(chosen) > allowed:
                at_most = f"a density of {self.density:g} changes {allowed}"
                raise file.error(f"has {len(chosen)} weights that are not the model's, {at_most}")
            self._fix(chosen, flat[chosen], whole=True)
            for name, buffer in self.model.named_buffers():
                if name in file.tensors:  # what norms counted in training
                    buffer.copy_(file.get(name, buffer.shape))
        file.copy_head(self)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the tuned model and a config that states the density; raises UsageError before `prune`."""
        if not isinstance(self._stage, _Kept):
            raise UsageError(
                "the differences of stage 1 are dense: there is nothing pruned to save",
                hint="call prune(), and train what it keeps",
            )
        said = {"density": self.density, "structured": self.config.structured}
        with self.writing(directory) as made:
            write_json(made / "config.json", self.config_json(diff_pruning=said))
            write_tensors(made / "model.safetensors", _untied(self.model))

    def _probe(self, run: Callable[[], Any]) -> None:
        """Show by a training step that the weights' gradients become those of differences and gates."""
        self._follow()
        self._note_tables(run)
        gates = self._stage if isinstance(self._stage, _Gates) else None
        halfway = gates.halfway() if gates is not None and gates.is_new() else nullcontext()
        try:
            with running(self.model, training=True), halfway, _without_gradients(self.parameters()):
                self._backward(weighed(run()))
                stuck = [weight.name for weight in self._weights if weight.theta.grad is not None]
                if stuck:
                    raise no_effect(f"the gradient of '{stuck[0]}' does not become its difference's", self.model)
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
                f"diff pruning in {processes} processes: gradients of differences and gates do not leave their process",
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
        gates = self._stage if self.model.training and isinstance(self._stage, _Gates) else None
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
            if isinstance(self._stage, _Gates) and self._stage.drawing:
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

    def _fix(self, chosen: torch.Tensor, values: torch.Tensor, *, whole: bool = False) -> None:
        for name in [name for name, _ in self._own.named_parameters()]:
            delattr(self._own, name)
        self._restore()
        self._stage = _Kept(self._weights, chosen, values, self._own, whole=whole)
        self._stage.write()
        self.note_own()

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


class _Gates:
    """Stage 1: a difference w and a gate for every weight, and with `structured` a gate for every tensor."""

    def __init__(self, weights: Sequence[_Weight], config: Config, own: nn.Module) -> None:
        self.weights, self.config = weights, config
        self.drawing = False
        self.w = [nn.Parameter(torch.zeros_like(weight.start)) for weight in weights]
        self.alpha = [nn.Parameter(torch.full_like(weight.start, config.alpha)) for weight in weights]
        first = weights[0].start
        self.groups = nn.Parameter(first.new_full((len(weights),), config.alpha)) if config.structured else None
        for i in range(len(weights)):
            own.register_parameter(f"w{i}", self.w[i])
            own.register_parameter(f"alpha{i}", self.alpha[i])
        own.register_parameter("groups", self.groups)
        # of the last training forward: s of equation 4 and z = clamp(l + (r - l) s, 0, 1), by tensor and for the groups
        self.s: list[Any] = [None] * len(weights)
        self.z: list[Any] = [None] * len(weights)
        self.rows: list[Any] = [None] * len(weights)
        self.group_s = self.group_z = first.new_ones(len(weights))
        self.buffer = first.new_empty(max(weight.start.numel() for weight in weights))

    def gates(self) -> list[nn.Parameter]:
        return [*self.alpha, *([] if self.groups is None else [self.groups])]

    def is_new(self) -> bool:
        """Tell whether nothing was trained yet."""
        trained = any(bool(w.any()) for w in self.w)
        return not trained and all(bool((gate == self.config.alpha).all()) for gate in self.gates())

    @contextmanager
    def halfway(self) -> Iterator[None]:
        """Let the probe pass through small differences and half-open gates, where nothing was trained yet."""
        half = math.log((0.5 - self.config.low) / (self.config.high - 0.5))
        self._fill(_NUDGE, half, _OPEN)
        try:
            yield
        finally:
            self._fill(0.0, self.config.alpha, self.config.alpha)

    def _fill(self, difference: float, alpha: float, group: float) -> None:
        groups = [] if self.groups is None else [self.groups]
        with torch.no_grad():
            for parameters, value in ((self.w, difference), (self.alpha, alpha), (groups, group)):
                for parameter in parameters:
                    parameter.fill_(value)

    def forget(self) -> None:
        """Forget what was drawn, so that a gradient of it is refused."""
        self.s, self.z, self.rows = ([None] * len(self.weights) for _ in range(3))

    def reached(self) -> bool:
        """Tell whether the last backward left gradients for differences and gates."""
        return all(_reached(parameters) for parameters in (self.w, self.alpha))

    def to(self, device: torch.device) -> None:
        self.forget()
        self.group_s, self.group_z = self.group_s.to(device), self.group_z.to(device)
        self.buffer = self.buffer.to(device)

    def expected_l0(self) -> torch.Tensor:
        """Sum P(z > 0) over all weights (equation 6), times that of their group's gate."""
        open_ = torch.stack([_Open.apply(alpha, self.config.shift) for alpha in self.alpha])
        return (open_ if self.groups is None else open_ * torch.sigmoid(self.groups - self.config.shift)).sum()

    def difference(self, i: int) -> torch.Tensor:
        difference = self._stretch(torch.sigmoid(self.alpha[i])).mul_(self.w[i])
        return difference if self.groups is None else difference.mul_(self._stretch(self.groups[i].sigmoid()))

    def write(self) -> None:
        for i, weight in enumerate(self.weights):
            torch.add(weight.start, self.difference(i), out=weight.theta)

    def draw(self) -> None:
        """Draw the gates and write theta; of a tensor that only embeddings use, nothing yet."""
        self.drawing = True
        if self.groups is not None:
            self.group_s, self.group_z = self._gate(self.groups)
        for i, weight in enumerate(self.weights):
            if weight.tables:
                self.rows[i] = self.s[i] = self.z[i] = None
            else:
                self.s[i], self.z[i] = self._gate(self.alpha[i], self.s[i], self.z[i])
                self._theta(i, self.z[i], self.w[i], weight.start, weight.theta)

    def draw_rows(self, i: int, wanted: torch.Tensor) -> None:
        """Draw the gates of those rows that were not drawn yet: the loss does not depend on any other row."""
        rows = torch.unique(wanted)
        if self.rows[i] is not None:
            rows = rows[~torch.isin(rows, self.rows[i])]
        s, z = self._gate(self.alpha[i][rows])
        theta = torch.empty_like(z)
        self._theta(i, z, self.w[i][rows], self.weights[i].start[rows], theta)
        self.weights[i].theta[rows] = theta
        for drawn, new in ((self.rows, rows), (self.s, s), (self.z, z)):
            drawn[i] = new if drawn[i] is None else torch.cat([drawn[i], new])

    def turn(self, i: int, gradient: torch.Tensor) -> None:
        """Add to the gradients of w, alpha and the group's alpha, by theta = p0 + z_group z w.

        dz / dalpha = (r - l) s (1 - s) inside (0, 1), and 0 where z is 0 or 1.
        """
        if self.z[i] is None:
            raise UsageError(
                f"a gradient of '{self.weights[i].name}', whose gates were not drawn",
                hint="train in train mode, through the model's own forward",
            )
        rows = slice(None) if self.rows[i] is None else self.rows[i]
        stretch, group = self.config.high - self.config.low, float(self.group_z[i])
        part, w = gradient[rows], self.w[i].detach()[rows]
        of_alpha = self.buffer[: w.numel()].view_as(w)  # new memory costs as much as the arithmetic
        torch.mul(part, w, out=of_alpha)
        torch.ops.aten.hardtanh_backward.grad_input(of_alpha, self.z[i], 0, 1, grad_input=of_alpha)
        torch.ops.aten.sigmoid_backward.grad_input(of_alpha, self.s[i], grad_input=of_alpha)
        alpha = _gradient_of(self.alpha[i])
        if self.rows[i] is None:
            alpha.add_(of_alpha, alpha=stretch * group)
        else:
            alpha.index_add_(0, rows, of_alpha, alpha=stretch * group)
        part.mul_(self.z[i])
        if self.groups is not None:
            if 0 < group < 1:
                s = float(self.group_s[i])
                _gradient_of(self.groups)[i] += stretch * s * (1 - s) * (part * w).sum()
            part.mul_(group)
        if self.rows[i] is not None:
            gradient[rows] = part  # in all others it is 0
        if self.w[i].grad is None:
            self.w[i].grad = gradient
        else:
            self.w[i].grad += gradient

    def _gate(self, alpha: torch.Tensor, s: Any = None, z: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw s = sigmoid(logit u + alpha) and z of it (equation 4), into the memory of the last ones."""
        s = (torch.empty_like(alpha) if s is None else s).uniform_().logit_(EDGE).add_(alpha).sigmoid_()
        return s, self._stretch(s, z)

    def _stretch(self, s: torch.Tensor, out: Any = None) -> torch.Tensor:
        """Return clamp(l + (r - l) s, 0, 1) (equation 5)."""
        return torch.mul(s, self.config.high - self.config.low, out=out).add_(self.config.low).clamp_(0, 1)

    def _theta(self, i: int, z: torch.Tensor, w: torch.Tensor, start: torch.Tensor, out: torch.Tensor) -> None:
        torch.mul(z, w, out=out)
        if self.groups is not None:
            out.mul_(self.group_z[i])
        out.add_(start)


class _Kept:
    """Stage 3: differences at `chosen`, flat positions in all of the base's tensors, ascending; theta = p0 + w there.

    With `whole` the values are not differences but theta itself, whose every bit comes back.
    """

    def __init__(
        self, weights: Sequence[_Weight], chosen: torch.Tensor, values: torch.Tensor, own: nn.Module, *, whole: bool
    ) -> None:
        ends = torch.tensor([0, *(weight.start.numel() for weight in weights)], device=chosen.device).cumsum(0)
        cuts = torch.searchsorted(chosen, ends).tolist()
        self.theta = [weight.theta for weight in weights]
        self.part = [slice(first, last) for first, last in itertools.pairwise(cuts)]
        self.places = [chosen[part] - end for part, end in zip(self.part, ends, strict=False)]
        found = zip(weights, self.places, strict=True)
        self.start = torch.cat([weight.start.reshape(-1)[places] for weight, places in found])
        differences = values.clone()
        if whole:
            differences -= self.start
            odd = _bits(self.start + differences) != _bits(values)  # no difference was found that gives this theta
            self.start[odd], differences[odd] = -0.0, values[odd]
        self.w = nn.Parameter(differences)
        own.register_parameter("w", self.w)
        for theta, places in zip(self.theta, self.places, strict=True):
            theta.requires_grad_(len(places) > 0)

    def gates(self) -> list[nn.Parameter]:
        return []

    def to(self, device: torch.device) -> None:
        self.start = self.start.to(device)
        self.places = [places.to(device) for places in self.places]

    def expected_l0(self) -> torch.Tensor:
        return (self.w.detach() != 0).sum()

    def difference(self, i: int) -> torch.Tensor:
        difference = torch.zeros_like(self.theta[i])
        difference.view(-1)[self.places[i]] = self.w[self.part[i]]
        return difference

    def write(self) -> None:
        values = self.start + self.w
        for theta, places, part in zip(self.theta, self.places, self.part, strict=True):
            if len(places):
                theta.view(-1)[places] = values[part].to(theta.dtype)  # T5 keeps some in single precision

    def turn(self, i: int, gradient: torch.Tensor) -> None:
        _gradient_of(self.w)[self.part[i]] += gradient.reshape(-1)[self.places[i]]


class _Own(nn.Module):  # type: ignore[misc]
    """What trains in the place of the base's weights; state dicts are the model's, so none of it is in them."""

    def _save_to_state_dict(self, *_args: Any) -> None:
        pass

    def _load_from_state_dict(self, *_args: Any) -> None:
        pass


class _Open(torch.autograd.Function):  # type: ignore[misc]
    """The sum of P(z > 0) = sigmoid(alpha - log(-l / r)) over a tensor."""

    @staticmethod
    def forward(ctx: Any, alpha: torch.Tensor, shift: float) -> torch.Tensor:
        ctx.save_for_backward(alpha)
        ctx.shift = shift
        return torch.stack([(piece - shift).sigmoid_().sum() for piece in alpha.reshape(-1).split(PIECE)]).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (alpha,) = ctx.saved_tensors
        slope = torch.empty_like(alpha)
        for piece, out in zip(alpha.reshape(-1).split(PIECE), slope.view(-1).split(PIECE), strict=True):
            torch.sub(piece, ctx.shift, out=out).sigmoid_()
            out.addcmul_(out, out, value=-1).mul_(gradient)
        return slope, None


def _reached(parameters: Sequence[nn.Parameter]) -> bool:
    return any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)


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


def _look_up(users: Sequence[nn.Module]) -> bool:
    """Tell whether all that use a weight look up those rows of it that they are called with; a subclass may not."""
    return all(type(user) is nn.Embedding and user.max_norm is None for user in users)


def _gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    """Return a parameter's gradient to add to."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _encoder_of(model: nn.Module) -> list[nn.Module]:
    """Return the encoder that `generate` calls by itself, where a model has one."""
    return [model.get_encoder()] if getattr(model.config, "is_encoder_decoder", False) else []


def _refuse_state(*_args: Any) -> None:
    raise UsageError(
        "diff pruning takes no state dict: checkpoints hold weights, and neither differences nor gates",
        hint="leave out load_best_model_at_end and resume_from_checkpoint; save() and load() after prune()",
    )


def _untied(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's state dict with each tensor once, under its first name."""
    first: dict[tuple[int, torch.Size], tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        first.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
    return dict(first.values())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of numbers as integers of their width."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
