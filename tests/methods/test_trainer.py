"""Methods under the Trainer: several tasks in one run, going on from a checkpoint, accumulation of gradients."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from petlpack.errors import UsageError
from petlpack.methods import adamix, diff_pruning, pha, propetl
from petlpack.methods.trainer import SwitchTasks, TaskBatches, TaskCollator, Tasks
from tests.support.families import METHODS, opened, write_base
from tests.support.faults import SAVED_NORMS, skip_where

LABELS = {"one": 2, "two": 3}
quiet = pytest.mark.filterwarnings(
    "ignore:mtime may not be reliable:UserWarning",  # Transformers 5.0 and 5.1, of its own files
    "ignore:.*gradient_checkpointing.*:FutureWarning",
)


class TaskTrainer(SwitchTasks, transformers.Trainer):  # type: ignore[misc] # transformers is Any here
    """What users write."""


class TaskSeq2SeqTrainer(SwitchTasks, transformers.Seq2SeqTrainer):  # type: ignore[misc]
    """With predict_with_generate."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    for family in ("bert", "distilbert", "gpt2", "llama", "t5"):
        write_base(directory, family)
    return directory


def rows_of(task: str, count: int) -> list[dict[str, Any]]:
    """Return a task's rows: those of the first have odd tokens, those of the second even ones."""
    odd = int(task == "one")
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(2, 20, (count, 6), generator=generator) * 2 - odd
    labels = ids[:, 0] % 5 % LABELS[task]
    return [
        {"input_ids": row, "labels": label.item(), "text": "what no model takes", "number": 1}
        for row, label in zip(ids, labels, strict=True)
    ]


def tasks_of(one: int = 10, two: int = 5) -> Tasks:
    return Tasks({"one": rows_of("one", one), "two": rows_of("two", two)})


def arguments_of(directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(directory), "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "save_strategy": "no",
        "logging_strategy": "no", **more,
    }  # fmt: skip


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert not different


# Which batches come


def task_of(batch: Sequence[int], tasks: Tasks) -> str:
    (task,) = {tasks[row]["task"] for row in batch}
    return str(task)


def test_by_size_every_row_comes_in_every_epoch() -> None:
    tasks = tasks_of(12, 5)
    batches = TaskBatches(tasks, 4)
    seen = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        found = list(batches)
        assert len(found) == len(batches) == 5
        assert collections.Counter(task_of(batch, tasks) for batch in found) == {"one": 3, "two": 2}
        assert {len(batch) for batch in found} == {4}
        times = collections.Counter(itertools.chain(*found))
        assert times.keys() == set(range(17))
        assert all(times[row] == 1 for row in range(12))
        seen.append(found)
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize(
    ("exponent", "counts"), [(1.0, [16, 4, 1]), (0.5, [12, 6, 3]), (0.0, [7, 7, 7]), (9.0, [19, 1, 1])]
)
def test_the_exponent_says_how_often_a_task_comes(exponent: float, counts: list[int]) -> None:
    rows = [{"x": 0}]
    batches = TaskBatches(Tasks({"a": rows * 32, "b": rows * 8, "c": rows}), 2, exponent=exponent)
    assert batches.counts == counts
    assert len(batches) == len(list(batches)) == 21


def test_a_task_goes_on_where_the_epoch_before_left_it() -> None:
    tasks = tasks_of(16, 4)
    batches = TaskBatches(tasks, 2, exponent=0.0)  # 5 batches of each: 16 rows take 8
    rows = []
    for epoch in range(8):
        batches.set_epoch(epoch)
        rows.append([row for batch in batches for row in batch if row < 16])
    assert collections.Counter(itertools.chain(*rows)) == dict.fromkeys(range(16), 5)
    assert len({*rows[0]}) == 10
    assert {*rows[0], *rows[1]} == set(range(16))


def test_batches_are_those_of_the_seed_and_the_epoch() -> None:
    tasks = tasks_of()
    first = list(TaskBatches(tasks, 2, seed=3))
    assert list(TaskBatches(tasks, 2, seed=3)) == first
    assert list(TaskBatches(tasks, 2, seed=4)) != first
    batches = TaskBatches(tasks, 2, seed=3)
    batches.set_epoch(5)
    later = list(batches)
    running = iter(batches)
    begun = [next(running)]
    batches.set_epoch(0)  # as an evaluation on the same rows does
    assert begun + list(running) == later
    assert list(batches) == first


def test_a_task_smaller_than_a_batch_fills_one() -> None:
    tasks = tasks_of(8, 3)
    batches = [batch for batch in TaskBatches(tasks, 4) if task_of(batch, tasks) == "two"]
    assert len(batches) == 1
    assert {*batches[0]} == {8, 9, 10}
    assert len(batches[0]) == 4


def test_processes_share_whole_batches_and_know_the_epoch() -> None:
    tasks = tasks_of(10, 5)  # 5 and 3 batches, which 3 processes do not share evenly
    shares = []
    for process in range(3):
        loader = accelerate.data_loader.prepare_data_loader(
            DataLoader(tasks, batch_sampler=TaskBatches(tasks, 2), collate_fn=TaskCollator(list_of)),
            num_processes=3, process_index=process, put_on_device=False,
        )  # fmt: skip
        epochs = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            epochs.append([batch["rows"] for batch in loader])
        skipping = accelerate.skip_first_batches(loader, 1)
        skipping.set_epoch(1)
        assert [batch["rows"] for batch in skipping] == epochs[1][1:]
        assert epochs[0] != epochs[1]
        shares.append(epochs[0])
    assert [len(share) for share in shares] == [3, 3, 3]


def list_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": [row["input_ids"].tolist() for row in rows]}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Tasks({}), "no task has rows"),
        (lambda: Tasks({"one": []}), "task 'one' has no rows"),
        (lambda: TaskBatches(tasks_of(), 0), r"batch_size must be .*, got 0"),
        (lambda: TaskBatches(tasks_of(), 2, exponent=-1.0), r"exponent must be .*, got -1\.0"),
        (lambda: TaskBatches(tasks_of(), 2, exponent=float("nan")), r"exponent must be .*, got nan"),
        (lambda: TaskCollator(list_of)([tasks_of()[0], tasks_of()[-1]]), "rows of several tasks: one, two"),
        (lambda: TaskCollator(list_of)(rows_of("one", 2)), "rows lack 'task'"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        make()
    assert caught.value.hint


# The Trainer switches


def attached(bases: Path, name: str, family: str = "bert") -> Any:
    torch.manual_seed(2)
    return METHODS[name][1](opened(bases, family), family)


def plain_loop(method: Any, tasks: Tasks, batches: TaskBatches, epochs: int, accumulate: int, optimizer: Any) -> None:
    """Train as docs/training.md shows it, with accumulation."""
    loader = DataLoader(tasks, batch_sampler=batches, collate_fn=TaskCollator(collate))
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for number, batch in enumerate(loader, 1):
            method.switch(batch.pop("task"))
            rest = len(batches) % accumulate
            size = rest if rest and number > len(batches) - rest else accumulate
            (method.model(**batch).loss / size).backward()
            if number % accumulate == 0 or number == len(batches):
                optimizer.step()
                optimizer.zero_grad()


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ids = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": torch.tensor([row["labels"] for row in rows])}


@quiet
@pytest.mark.parametrize("name", ["propetl lora of tasks", "pha"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 2, "checkpointing": True},
        {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4},
    ],
)
def test_a_trainer_of_tasks_trains_as_a_plain_loop_does(
    name: str, more: dict[str, Any], bases: Path, tmp_path: Path
) -> None:
    states = []
    for plain in (True, False):
        tasks, method = tasks_of(), attached(bases, name)
        optimizer = torch.optim.SGD(method.groups(0.1))
        if plain:
            batches = TaskBatches(tasks, 2, exponent=0.5, seed=7)
            plain_loop(method, tasks, batches, 2, more.get("gradient_accumulation_steps", 1), optimizer)
        else:
            if more.get("checkpointing"):
                method.model.gradient_checkpointing_enable({"use_reentrant": False})
            settings = {key: value for key, value in more.items() if key != "checkpointing"}
            trainer = TaskTrainer(
                method.model,
                transformers.TrainingArguments(
                    **arguments_of(tmp_path, num_train_epochs=2, max_grad_norm=0.0, data_seed=7,
                                   lr_scheduler_type="constant", **settings)
                ),
                train_dataset=tasks,
                eval_dataset=tasks.each,
                optimizers=(optimizer, None),
                exponent=0.5,
            )  # fmt: skip
            trainer.train()
        states.append(state_of(method.model))
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        assert torch.allclose(tensor, states[1][key], atol=1e-5), key


@quiet
@pytest.mark.parametrize("name", ["propetl lora of tasks", "pha"])
def test_every_task_is_evaluated_and_predicted_with_what_is_its_own(name: str, bases: Path, tmp_path: Path) -> None:
    tasks, method = tasks_of(), attached(bases, name)
    trainer = TaskTrainer(
        method.model,
        transformers.TrainingArguments(**arguments_of(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2)),
        train_dataset=tasks,
        eval_dataset=tasks.each,
        compute_metrics=lambda found: {"width": found.predictions.shape[-1]},
    )
    trainer.train()
    said = trainer.evaluate()
    for task, width in LABELS.items():
        method.switch(task)
        batch = collate(tasks.each[task].rows)
        with torch.no_grad():
            output = method.model.eval()(**batch)
        assert said[f"eval_{task}_loss"] == pytest.approx(output.loss.item(), rel=1e-4)
        assert said[f"eval_{task}_width"] == width
        method.switch("one")
        found = trainer.predict(tasks.each[task]).predictions
        assert torch.allclose(torch.from_numpy(found), output.logits, atol=1e-5)
    with pytest.raises(UsageError, match="rows of several tasks"):
        trainer.predict(Tasks({"one": rows_of("one", 3), "two": rows_of("two", 3)}))


@quiet
def test_what_is_generated_is_of_the_batch_s_task(bases: Path, tmp_path: Path) -> None:
    method = attached(bases, "propetl lora of tasks", "t5")
    with torch.no_grad():
        for scores in method.network.tasks["two"].values():
            scores.normal_()
        for weight in method.network.prototype.values():
            weight.normal_()
    ids = torch.randint(3, 40, (3, 6), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = TaskSeq2SeqTrainer(
        method.model,
        transformers.Seq2SeqTrainingArguments(
            **arguments_of(tmp_path), predict_with_generate=True, generation_max_length=8
        ),
    )
    expected = {}
    for task in ("one", "two"):
        method.switch(task)
        expected[task] = method.model.eval().generate(input_ids=ids, max_length=8)
    assert not torch.equal(expected["one"], expected["two"])
    for task, tokens in expected.items():
        found = trainer.predict(Tasks({task: rows}).each[task]).predictions
        assert torch.equal(torch.from_numpy(found)[:, : tokens.shape[1]], tokens)


def test_a_trainer_in_front_of_what_switches_is_refused() -> None:
    with pytest.raises(UsageError, match="lists Trainer before SwitchTasks"):
        type("Turned", (transformers.Trainer, SwitchTasks), {})


def test_a_trainer_without_tasks_is_refused(bases: Path, tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(**arguments_of(tmp_path))
    with pytest.raises(UsageError, match="no method for several tasks"):
        TaskTrainer(opened(bases, "bert"), arguments)
    with pytest.raises(UsageError, match="no method for several tasks"):
        TaskTrainer(attached(bases, "propetl adapter").model, arguments)
    trainer = TaskTrainer(attached(bases, "pha").model, arguments, train_dataset=rows_of("one", 4))
    with pytest.raises(UsageError, match="train_dataset must be Tasks, got a list"):
        trainer.train()
    trainer = TaskTrainer(attached(bases, "pha").model, arguments, train_dataset=Tasks({"other": rows_of("one", 4)}))
    with pytest.raises(UsageError, match="no task 'other'"):
        trainer.train()


# Going on from a checkpoint

_REFUSED = [
    *(("gpt2", name) for name in ("propetl lora", "propetl lora of tasks", "adamix lora")),
    *(("distilbert", name) for name in ("propetl lora of tasks", "pha")),
]
RESUMED = [
    (family, name)
    for family in ("bert", "llama", "gpt2", "distilbert")
    for name in ("propetl adapter", "propetl lora", "propetl lora of tasks", "adamix adapter", "adamix lora", "pha")
    if (family, name) not in _REFUSED
]


@quiet
@pytest.mark.exhaustive(5)
@pytest.mark.parametrize(("family", "name"), RESUMED)
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_cut(
    family: str, name: str, bases: Path, tmp_path: Path
) -> None:
    """The cut is in the second epoch, and dropout draws random numbers."""
    several = name in ("propetl lora of tasks", "pha")
    states = []
    for resume in (False, True):
        method = attached(bases, name, family)
        for module in method.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        rows = tasks_of(6, 4)
        if family in ("llama", "gpt2"):
            own = {task: [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in each.rows]
                   for task, each in rows.each.items()}  # fmt: skip
            rows = Tasks(own)
        trainer = (TaskTrainer if several else transformers.Trainer)(
            method.model,
            transformers.TrainingArguments(
                **{**arguments_of(tmp_path, num_train_epochs=3), "save_strategy": "steps", "save_steps": 7}
            ),
            train_dataset=rows if several else rows.each["one"].rows * 2,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7") if resume else None)
        assert trainer.state.global_step > 12
        states.append(state_of(method.model))
        if name == "pha":
            saved = load_file(tmp_path / "checkpoint-7" / "model.safetensors")
            skip_where(SAVED_NORMS, partial(saved.__getitem__, f"{method.stack}.param_gen.decoder.LayerNorm.weight"))
    assert_equal(*states)


def test_what_pha_remembers_is_in_the_model_s_state(bases: Path) -> None:
    method = attached(bases, "pha")
    for task in ("one", "two", "one"):
        method.switch(task)
        method.model(**collate(rows_of(task, 3))).loss.backward()
    memory = method.memory.vectors
    assert {row: len(vectors) for row, vectors in memory.items()} == {0: 6, 1: 3}
    other = attached(bases, "pha")
    assert not other.model.load_state_dict(method.model.state_dict()).missing_keys
    assert {row: vectors.tolist() for row, vectors in other.memory.vectors.items()} == {
        row: vectors.tolist() for row, vectors in memory.items()
    }


# Accumulation: a loop says how many labels its batches have

ACCUMULATED: dict[str, Any] = {
    "propetl": lambda model, tasks: propetl.attach(model, propetl.Config(bottleneck=4)),
    "propetl lora": lambda model, tasks: propetl.attach(model, propetl.Config(kind="lora", rank=4, keep=0.5)),
    "adamix": lambda model, tasks: adamix.attach(model, adamix.Config(bottleneck=4)),
    "diff pruning": lambda model, tasks: diff_pruning.attach(model, diff_pruning.Config(density=0.05, l0=0.1)),
    "pha": lambda model, tasks: pha.attach(model, pha.Config(bottleneck=4, code=8, trunk=8), tasks),
}


def _same_draws(*_: Any) -> None:
    """Let every batch draw what the first did."""
    torch.manual_seed(0)


class LikeSft(transformers.Trainer):  # type: ignore[misc] # transformers is Any here
    """A Trainer that looks at logits and labels beside the loss, as TRL's do."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["return_outputs"] = True
        loss, outputs = super().compute_loss(model, inputs, *args, **kwargs)
        assert outputs.logits.shape[:2] == inputs["labels"].shape
        return loss


@quiet
@pytest.mark.exhaustive(5)
@pytest.mark.parametrize(
    ("family", "name"),
    [(f, n) for f in ("llama", "gpt2", "bert") for n in ACCUMULATED if not (f == "gpt2" and n == "propetl lora")],
)
def test_accumulated_gradients_are_those_of_one_batch(
    family: str, name: str, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what a method adds to the loss, and where batches have labels of other numbers."""
    generates = family != "bert"
    ids = torch.randint(3, 40, (8, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.clone() if generates else ids[:, 0] % 2
    if generates and name != "pha":  # whose losses are of the examples, not of the tokens
        for row in range(8):
            labels[row, : (row * 5) % 6] = -100
    rows = [{"input_ids": one, "labels": own} for one, own in zip(ids, labels, strict=True)]
    learned = []
    for size in (2, 8):
        torch.manual_seed(2)
        method = ACCUMULATED[name](opened(bases, family), {"one": 0 if generates else 2, "two": 0 if generates else 3})
        if method.tasks:
            method.switch("one")
        method.model.register_forward_pre_hook(_same_draws)
        monkeypatch.setattr(torch.Tensor, "uniform_", lambda gates, *_: gates.fill_(0.7))  # drawn by diff pruning
        arguments = arguments_of(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, max_steps=1,
            max_grad_norm=0.0,
        )  # fmt: skip
        before = [parameter.detach().clone() for parameter in method.parameters()]
        (LikeSft if generates else transformers.Trainer)(
            method.model,
            transformers.TrainingArguments(**arguments),
            train_dataset=rows,
            optimizers=(torch.optim.SGD(method.parameters(), lr=1.0), None),
        ).train()
        monkeypatch.undo()
        learned.append([own.detach() - old for own, old in zip(method.parameters(), before, strict=True)])
    assert sum(bool(step.any()) for step in learned[0]) >= 2
    for step, whole in zip(*learned, strict=True):
        assert torch.allclose(step, whole, atol=2e-6 + 1e-4 * float(whole.abs().max()))
