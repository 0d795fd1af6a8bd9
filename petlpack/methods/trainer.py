"""Several tasks in one run of the Trainer: batches of one task each, and the method switched to each batch's task.

    class TaskTrainer(SwitchTasks, Trainer):  # or another kind of Trainer
        pass

    TaskTrainer(model, arguments, train_dataset=Tasks({"sst2": sst2, "rte": rte})).train()

A callback cannot do it: the Trainer shows no callback its batches, and takes a sampler from a subclass only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from petlpack.errors import UsageError, printable
from petlpack.errors.arguments import NOT_NEGATIVE, Check, check, whole
from petlpack.methods.attachment import method_on

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # what `SwitchTasks` is mixed into; no library of models is imported here

_ROWS = Check("a mapping from task names to rows", lambda value: isinstance(value, Mapping))
_BY_TASK = 'pass rows by task: Tasks({"sst2": ..., "rte": ...})'

TASK = "task"
"""The key under which a row, and a batch of rows, says whose it is."""


class TaskData(Dataset):  # type: ignore[misc] # torch is Any here
    """The rows of one task, each of which says so."""

    def __init__(self, name: str, rows: Any) -> None:
        if not len(rows):
            raise UsageError(f"task '{printable(name)}' has no rows", hint="leave the task out, or give it rows")
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], TASK: self.name}


class Tasks(ConcatDataset):  # type: ignore[misc] # torch is Any here
    """The rows of several tasks, one task behind the other. Rows are mappings, as the Trainer takes them."""

    def __init__(self, rows: Mapping[str, Any]) -> None:
        if not rows:
            raise UsageError("no task has rows", hint=_BY_TASK)
        check("rows", rows, _ROWS, _BY_TASK)
        self.each = {name: TaskData(name, task_rows) for name, task_rows in rows.items()}
        """Every task by itself: what `eval_dataset` takes, and so each is evaluated alone."""
        self.epoch = 0
        super().__init__(self.each.values())

    def set_epoch(self, epoch: int) -> None:
        """Note the epoch that comes next, for the samplers. Accelerate tells a dataset, however it wraps a sampler."""
        self.epoch = epoch


class TaskBatches(Sampler[list[int]]):  # type: ignore[misc] # torch is Any here
    """A batch sampler over `Tasks`, each of whose batches is of one task.

    `exponent` says how often a task comes: with 1 in proportion to its size, with 0 as often as any other, in between
    its batches count as size ** exponent. An epoch has as many batches as pass over all rows once. A task goes on in
    the next epoch where it stopped, so that all of its rows come before one comes again, but for a pass's last batch,
    which is filled from the pass's first rows: all batches are full, and several processes share them without mixing.

    Which batches come is a matter of seed and epoch alone: a run that goes on from a checkpoint finds its place.
    """

    drop_last = False  # Accelerate asks

    def __init__(self, tasks: Tasks, batch_size: int, *, exponent: float = 1.0, seed: int = 0) -> None:
        check("batch_size", batch_size, whole(1), "batch_size is the number of rows in a batch")
        check("exponent", exponent, NOT_NEGATIVE, "1 samples tasks in proportion to their size, 0 equally often")
        self.tasks, self.batch_size, self.exponent, self.seed = tasks, batch_size, exponent, seed
        self.passes = [math.ceil(len(task) / batch_size) for task in tasks.each.values()]
        """How many batches a pass over each task has."""
        self.counts = _apportioned(sum(self.passes), [size**exponent for size in self.passes])
        """How many batches of each task an epoch has, of every task at least one."""

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.tasks.epoch  # now: an evaluation on the same rows may set it before the last batch
        batches = [batch for task in range(len(self.counts)) for batch in self._batches(task, epoch)]
        for place in np.random.default_rng((self.seed, epoch)).permutation(len(batches)):
            yield batches[place]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, as a plain loop does."""
        self.tasks.set_epoch(epoch)

    def _batches(self, task: int, epoch: int) -> Iterator[list[int]]:
        """Give a task's batches of an epoch."""
        count, length = self.counts[task], self.passes[task]
        rows = None
        for number in range(epoch * count, (epoch + 1) * count):
            done, place = divmod(number, length)
            if rows is None or place == 0:
                rows = self._pass(task, done)
            yield rows[place].tolist()

    def _pass(self, task: int, number: int) -> np.ndarray:
        """Return the rows of one pass over a task, batch by batch."""
        ends = [0, *self.tasks.cumulative_sizes]
        order = np.random.default_rng((self.seed, task, number)).permutation(np.arange(ends[task], ends[task + 1]))
        return np.resize(order, (self.passes[task], self.batch_size))  # begins anew where the rows end


def _apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """Return whole numbers with this sum, as near to the weights as can be, and none below 1."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    nearest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in nearest[: total - sum(counts)]:
        counts[i] += 1
    for i in range(len(counts)):
        if counts[i] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts


class TaskCollator:
    """Make a batch of rows of one task as another collator does, and let it say the task."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch; raises UsageError for rows of several tasks, and such that say none."""
        tasks = {str(row.get(TASK, "")) for row in rows}
        if "" in tasks:
            raise UsageError(f"rows lack '{TASK}', the name of their task", hint=_BY_TASK)
        if len(tasks) > 1:
            raise UsageError(
                f"a batch has rows of several tasks: {printable(', '.join(sorted(tasks)))}",
                hint="train with TaskBatches or SwitchTasks, and evaluate task by task: eval_dataset=Tasks(...).each",
            )
        batch = self.collate([{key: value for key, value in row.items() if key != TASK} for row in rows])
        return {**batch, TASK: tasks.pop()}


class SwitchTasks(Trainer):  # type: ignore[misc] # transformers is Any here
    """What a Trainer of several tasks has in front of it: `class TaskTrainer(SwitchTasks, Trainer): pass`.

    It trains on `Tasks`, a batch of one task after the other, and before each step, also of evaluation and prediction,
    switches the method on the model to the batch's task. `exponent` is that of `TaskBatches`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse `class TaskTrainer(Trainer, SwitchTasks)`: the Trainer's methods would come first."""
        super().__init_subclass__(**kwargs)
        before = (
            parent for parent in cls.__mro__[: cls.__mro__.index(SwitchTasks)] if not issubclass(parent, SwitchTasks)
        )
        if first := next((parent for parent in before if "training_step" in vars(parent)), None):
            raise UsageError(
                f"{cls.__name__} lists {first.__name__} before SwitchTasks, whose methods then do not run",
                hint=f"swap the two: class {cls.__name__}(SwitchTasks, {first.__name__})",
            )

    def __init__(self, *args: Any, exponent: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        method = method_on(self.model)
        if method is None or not method.tasks:
            raise UsageError(
                f"{type(self.model).__name__} has no method for several tasks attached",
                hint="attach one first: attach(model, config, tasks={...})",
            )
        self.method, self.exponent = method, exponent
        self.data_collator: Any = TaskCollator(self.data_collator)

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's own loader, with batches of one task each."""
        if not isinstance(self.train_dataset, Tasks):
            raise UsageError(f"train_dataset must be Tasks, got a {type(self.train_dataset).__name__}", hint=_BY_TASK)
        loader = super().get_train_dataloader()
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batches = TaskBatches(self.train_dataset, loader.batch_sampler.batch_size, exponent=self.exponent, seed=seed)
        settings = {name: getattr(loader, name) for name in _SETTINGS}
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_sampler=batches, **settings))

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Switch, and take a step; its backward, which may compute the forward again, comes before the next switch."""
        return super().training_step(model, self._switched(inputs), *args, **kwargs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Switch, and predict: by a forward, or by generating."""
        return super().prediction_step(model, self._switched(inputs), *args, **kwargs)

    def _switched(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Switch to a batch's task, and return what of it the model takes."""
        self.method.switch(inputs[TASK])
        return {name: value for name, value in inputs.items() if name != TASK}

    def _set_signature_columns_if_needed(self) -> None:
        """Let the Trainer keep the task when it takes away what the model's forward does not know."""
        super()._set_signature_columns_if_needed()
        if TASK not in self._signature_columns:
            self._signature_columns.append(TASK)


_SETTINGS = (
    "collate_fn",
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "multiprocessing_context",
    "prefetch_factor",
    "in_order",
    "worker_init_fn",
)
"""What of the Trainer's own loader stays."""
