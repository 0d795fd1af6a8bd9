"""How a pack grows: what n tasks like those it holds take, what the next one takes, from where on it pays.

The model is stated in docs/accounting.md. A task's own file costs its mean, every time. A shared part costs once, and
new tasks bring new parts at the rate at which the parts of the tasks so far were new:

* up to the tasks there are, the expected bytes of n tasks drawn from them, exactly (rarefaction: Hurlbert 1971, eq. 3);
* beyond, each role that parts play goes on from the slope that this curve ends with, which is the Good-Turing rate
  (bytes of parts that one task alone uses / tasks), and the slope falls by the power by which it fell between half of
  the tasks and all: what all tasks share never grows, what each has for itself grows as the tasks do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_TASKS = 10**12
"""Tasks beyond which nothing is foretold, and no break-even is looked for."""

FIRST_COUNTS = 10_000
"""Amortised bytes are told up to so many tasks, and for the tasks that there are."""

DEVIATIONS = 1.96
"""Standard errors to both sides of a mean that hold 95 % of the means of other samples."""


@dataclass(frozen=True)
class PartRole:
    """The parts of one role (the template, the file config.json, ...): bytes of them by the number of their tasks."""

    name: str
    bytes_by_users: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the role's parts."""
        return sum(nbytes for _, nbytes in self.bytes_by_users)

    @property
    def alone(self) -> int:
        """Bytes of the parts that one task alone uses."""
        return sum(nbytes for users, nbytes in self.bytes_by_users if users == 1)

    def at(self, count: int, tasks: int) -> float:
        """Return the expected bytes of the parts that `count` tasks need, where `tasks` are known."""
        if count <= tasks:
            return sum(nbytes * (1 - _none_drawn(tasks, users, count)) for users, nbytes in self.bytes_by_users)
        rest = 1 - self._fall(tasks)
        times = count / tasks
        grown = math.log(times) if abs(rest) < 1e-9 else (times**rest - 1) / rest
        return self.nbytes + self.alone * grown

    def _fall(self, tasks: int) -> float:
        """Return the power by which the bytes of new parts fell off between half of the tasks and all."""
        half = tasks // 2
        if not half or not self.alone:
            return 0.0
        slope = self.at(half, tasks) - self.at(half - 1, tasks)
        return max(0.0, math.log(slope * tasks / self.alone) / math.log(tasks / half))


@dataclass(frozen=True)
class Growth:
    """The bytes of a pack as a function of its tasks."""

    tasks: int
    """Tasks that the model was made from; at least one."""
    fixed: float
    """Bytes that do not depend on the tasks: pack.json, or a base that is counted once."""
    own: tuple[int, ...]
    """Bytes of each task's own file."""
    roles: tuple[PartRole, ...] = ()

    def at(self, count: int) -> float:
        """Return the expected bytes of a pack of so many tasks of the same mix."""
        shared = sum(role.at(count, self.tasks) for role in self.roles)
        return self.fixed + count * sum(self.own) / self.tasks + shared

    @property
    def marginal(self) -> float:
        """Expected bytes of one more task: a file of its own, and the parts that nobody had before (Good-Turing)."""
        return (sum(self.own) + sum(role.alone for role in self.roles)) / self.tasks

    @property
    def least_marginal(self) -> float:
        """Bytes of one more task that brings no new part."""
        return sum(self.own) / self.tasks

    @property
    def error(self) -> float:
        """How far the mean of the tasks' own files may be from that of all such tasks, as a share of it (95 %).

        Infinite for a single task, of which nothing is known.
        """
        if self.tasks == 1:
            return math.inf
        mean = sum(self.own) / self.tasks
        variance = sum((nbytes - mean) ** 2 for nbytes in self.own) / (self.tasks - 1)
        return DEVIATIONS * math.sqrt(variance / self.tasks) / mean if mean else 0.0


def break_even(mine: Callable[[int], float], other: Callable[[int], float]) -> int | None:
    """Return the smallest number of tasks from which on `mine` takes fewer bytes than `other`; None if it never does.

    Looked for is the last crossing between two of the counts 1, 2, 5, ...; costs like these have no two in between.
    """
    if mine(MOST_TASKS) >= other(MOST_TASKS):
        return None
    counts = counts_up_to(MOST_TASKS)
    dearer = max((count for count in counts if mine(count) >= other(count)), default=0)
    cheaper = next(count for count in counts if count > dearer)
    while cheaper - dearer > 1:
        middle = (dearer + cheaper) // 2
        dearer, cheaper = (dearer, middle) if mine(middle) < other(middle) else (middle, cheaper)
    return cheaper


def linear(bytes_per_task: float, once: float = 0.0) -> Callable[[int], float]:
    """Return the cost of storage that takes the same for every task, beside what it takes once."""
    return lambda count: once + count * bytes_per_task


def counts_up_to(most: int, also: Sequence[int] = ()) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50, ... up to `most`, and those that are asked for, rising."""
    steps = (digit * 10**power for power in range(13) for digit in (1, 2, 5))
    return sorted({*(step for step in steps if step <= most), *also})


def _none_drawn(tasks: int, users: int, count: int) -> float:
    """Return the probability that none of a part's users is among `count` tasks drawn from `tasks`."""
    if users + count > tasks:
        return 0.0
    lgamma = math.lgamma
    return math.exp(
        lgamma(tasks - users + 1) - lgamma(tasks - users - count + 1) + lgamma(tasks - count + 1) - lgamma(tasks + 1)
    )
