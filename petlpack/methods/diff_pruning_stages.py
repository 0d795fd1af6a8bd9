"""Diff pruning's stages: gates that learn to close (1), the differences that are left of them (3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from petlpack.errors import UsageError

if TYPE_CHECKING:
    from petlpack.methods.diff_pruning import Config

EDGE = 1e-4
"""How near u may come to 0 and 1 (DiffPruning run_glue_diffpruning.py:122)."""

_NUDGE = 1e-3
"""A difference, for the probe."""
_OPEN = 20.0
"""The parameter of a gate that is open, whatever is drawn."""

PIECE = 1 << 17
"""Numbers to compute with at a time, so that they stay in a core's cache."""


@dataclass
class Weight:
    """A tensor of the base: its name, the model's own parameter, and p0, what that was before."""

    name: str
    theta: nn.Parameter
    start: torch.Tensor
    tables: list[nn.Module]
    """The embeddings that look up rows of it, where nothing else uses it."""


def weights_of(model: nn.Module, excluded: Iterable[nn.Parameter]) -> list[Weight]:
    """Return all of a model's parameters but these; a tied one counts once."""
    excluded_ids = set(map(id, excluded))
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    return [
        Weight(name, theta, theta.detach().clone(), users[id(theta)] if _look_up(name, users[id(theta)]) else [])
        for name, theta in model.named_parameters()
        if id(theta) not in excluded_ids
    ]


def _look_up(name: str, users: Sequence[nn.Module]) -> bool:
    """Tell whether all that use a weight look up those rows of it that they are called with; a subclass may not.

    One inside a layer, as T5's relative positions are, counts as used whole: where activations are checkpointed the
    layer is computed again, and nothing may be drawn in it.
    """
    inside = any(part.isdigit() for part in name.split("."))
    return not inside and all(type(user) is nn.Embedding and user.max_norm is None for user in users)


def starts_of(weights: Sequence[Weight]) -> torch.Tensor:
    """Return p0 of all weights, flat."""
    return torch.cat([weight.start.reshape(-1) for weight in weights])


def restore(weights: Sequence[Weight]) -> None:
    """Write p0 into the model."""
    with torch.no_grad():
        for weight in weights:
            weight.theta.copy_(weight.start)
            weight.theta.grad = None


class Gates:
    """Stage 1: a difference w and a gate for every weight, and with `structured` a gate for every tensor."""

    def __init__(self, weights: Sequence[Weight], config: Config, holder: nn.Module) -> None:
        self.weights, self.config = weights, config
        self.drawing = False
        # a rate of 0.1, and steps of a millionth, are lost in the few bits of a base in half precision
        first = weights[0].start.new_empty(0, dtype=_single(weights[0].start.dtype))
        zeros = [torch.zeros_like(weight.start, dtype=_single(weight.start.dtype)) for weight in weights]
        self.w = [nn.Parameter(zero) for zero in zeros]
        self.alpha = [nn.Parameter(torch.full_like(zero, config.alpha)) for zero in zeros]
        self.groups = nn.Parameter(first.new_full((len(weights),), config.alpha)) if config.structured else None
        for i in range(len(weights)):
            holder.register_parameter(f"w{i}", self.w[i])
            holder.register_parameter(f"alpha{i}", self.alpha[i])
        holder.register_parameter("groups", self.groups)
        # of the last training forward: s of equation 4 and z = clamp(l + (r - l) s, 0, 1), by tensor and for the groups
        self.s: list[Any] = [None] * len(weights)
        self.z: list[Any] = [None] * len(weights)
        self.rows: list[Any] = [None] * len(weights)
        self.group_s = self.group_z = first.new_ones(len(weights))
        self.buffer = first.new_empty(max(weight.start.numel() for weight in weights))

    def gates(self) -> list[nn.Parameter]:
        """Return the gates' parameters."""
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

    def taken(self) -> None:
        """Forget what was drawn before a state dict was loaded."""
        self.forget()

    def to(self, device: torch.device) -> None:
        """Go to another device."""
        self.forget()
        self.group_s, self.group_z = self.group_s.to(device), self.group_z.to(device)
        self.buffer = self.buffer.to(device)

    def expected_l0(self) -> torch.Tensor:
        """Sum P(z > 0) over all weights (equation 6), times that of their group's gate."""
        open_ = torch.stack([_Open.apply(alpha, self.config.shift) for alpha in self.alpha])
        return (open_ if self.groups is None else open_ * torch.sigmoid(self.groups - self.config.shift)).sum()

    def difference(self, i: int) -> torch.Tensor:
        """Return the differences of a tensor, its gates at their median."""
        difference = self._stretch(torch.sigmoid(self.alpha[i])).mul_(self.w[i])
        return difference if self.groups is None else difference.mul_(self._stretch(self.groups[i].sigmoid()))

    def write(self) -> None:
        """Write theta, the gates at their median."""
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
        self.weights[i].theta[rows] = theta.to(self.weights[i].theta.dtype)
        for drawn, new in ((self.rows, rows), (self.s, s), (self.z, z)):
            drawn[i] = new if drawn[i] is None else torch.cat([drawn[i], new])

    def turn(self, i: int, gradient: torch.Tensor) -> None:
        """Add to the gradients of w, alpha and the group's alpha, by theta = p0 + z_group z w.

        dz / dalpha = (r - l) s (1 - s) inside (0, 1), and 0 where z is 0 or 1.
        """
        if self.z[i] is None:
            raise UsageError(
                f"'{self.weights[i].name}' got a gradient, but its gates were not sampled",
                hint="put the model in train mode, and call the whole model, not a submodule",
            )
        rows = slice(None) if self.rows[i] is None else self.rows[i]
        stretch, group = self.config.high - self.config.low, float(self.group_z[i])
        w = self.w[i].detach()[rows]
        part = gradient[rows].to(w.dtype)
        of_alpha = self.buffer[: w.numel()].view_as(w)  # new memory costs as much as the arithmetic
        torch.mul(part, w, out=of_alpha)
        torch.ops.aten.hardtanh_backward.grad_input(of_alpha, self.z[i], 0, 1, grad_input=of_alpha)
        torch.ops.aten.sigmoid_backward.grad_input(of_alpha, self.s[i], grad_input=of_alpha)
        alpha = gradient_of(self.alpha[i])
        if self.rows[i] is None:
            alpha.add_(of_alpha, alpha=stretch * group)
        else:
            alpha.index_add_(0, rows, of_alpha, alpha=stretch * group)
        part.mul_(self.z[i])
        if self.groups is not None:
            if 0 < group < 1:
                s = float(self.group_s[i])
                gradient_of(self.groups)[i] += stretch * s * (1 - s) * (part * w).sum()
            part.mul_(group)
        if self.rows[i] is not None:
            gradient_of(self.w[i])[rows] += part  # in all others it is 0
        elif self.w[i].grad is None:
            self.w[i].grad = part
        else:
            self.w[i].grad += part

    def _gate(self, alpha: torch.Tensor, s: Any = None, z: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw s = sigmoid(logit u + alpha) and z of it (equation 4), into the memory of the last ones."""
        s = (torch.empty_like(alpha) if s is None else s).uniform_().logit_(EDGE).add_(alpha).sigmoid_()
        return s, self._stretch(s, z)

    def _stretch(self, s: torch.Tensor, out: Any = None) -> torch.Tensor:
        """Return clamp(l + (r - l) s, 0, 1) (equation 5)."""
        return torch.mul(s, self.config.high - self.config.low, out=out).add_(self.config.low).clamp_(0, 1)

    def _theta(self, i: int, z: torch.Tensor, w: torch.Tensor, start: torch.Tensor, out: torch.Tensor) -> None:
        difference = out if out.dtype == w.dtype else self.buffer[: w.numel()].view_as(w)
        torch.mul(z, w, out=difference)
        if self.groups is not None:
            difference.mul_(self.group_z[i])
        torch.add(difference, start, out=out)


class Kept:
    """Stage 3: differences at `chosen`, ascending flat positions in all of the base's tensors; theta = start + w there.

    `start` is p0 at these positions; see `exactly` for where it is not.
    """

    def __init__(
        self, weights: Sequence[Weight], chosen: torch.Tensor, start: torch.Tensor, w: torch.Tensor, holder: nn.Module
    ) -> None:
        self.theta = [weight.theta for weight in weights]
        self.w = nn.Parameter(w.clone())
        self.holder = holder
        holder.register_parameter("w", self.w)
        holder.register_buffer("chosen", chosen)
        holder.register_buffer("start", start.clone())
        self.taken()

    def taken(self) -> None:
        """Find the places in each tensor of what was chosen, or of what a state dict says."""
        chosen = self.holder.chosen
        ends = torch.tensor([0, *(theta.numel() for theta in self.theta)], device=chosen.device).cumsum(0)
        cuts = torch.searchsorted(chosen, ends).tolist()
        self.part = [slice(first, last) for first, last in itertools.pairwise(cuts)]
        self.places = [chosen[part] - end for part, end in zip(self.part, ends, strict=False)]
        for theta, places in zip(self.theta, self.places, strict=True):
            theta.requires_grad_(len(places) > 0)

    def gates(self) -> list[nn.Parameter]:
        """Return none."""
        return []

    def to(self, device: torch.device) -> None:
        """Go to another device."""
        self.holder.to(device)
        self.taken()

    def expected_l0(self) -> torch.Tensor:
        """Return how many differences are not 0."""
        return (self.w.detach() != 0).sum()

    def difference(self, i: int) -> torch.Tensor:
        """Return the differences of a tensor."""
        difference = torch.zeros_like(self.theta[i], dtype=self.w.dtype)
        difference.view(-1)[self.places[i]] = self.w[self.part[i]]
        return difference

    def write(self) -> None:
        """Write theta."""
        values = self.holder.start + self.w
        for theta, places, part in zip(self.theta, self.places, self.part, strict=True):
            if len(places):
                theta.view(-1)[places] = values[part].to(theta.dtype)  # T5 keeps some in single precision

    def turn(self, i: int, gradient: torch.Tensor) -> None:
        """Add to the gradient of w."""
        gradient_of(self.w)[self.part[i]] += gradient.reshape(-1)[self.places[i]]


def largest(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """Return the positions of the `count` largest of a flat tensor, ascending; of equal ones the first."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=sizes.device)
    least = torch.topk(sizes, count, sorted=False).values.min()
    above, equal = (sizes > least).nonzero().reshape(-1), (sizes == least).nonzero().reshape(-1)
    return torch.cat([above, equal[: count - len(above)]]).sort().values


def exactly(values: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return starts and differences whose sum is every bit of `values`: where none is, -0 and the value itself."""
    w = values.to(_single(values.dtype))
    differences = w - start
    odd = bits((start + differences).to(values.dtype)) != bits(values)
    return start.masked_fill(odd, -0.0), torch.where(odd, w, differences)


def _single(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of what trains on a base of a dtype: single, or double where the base is."""
    return torch.promote_types(dtype, torch.float32)


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


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    """Return a parameter's gradient to add to."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of numbers as integers of their width."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
