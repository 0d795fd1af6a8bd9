"""Train the four methods on the tiny base of this folder, pack them, decode them, and compare the scores.

    python benchmarks/demo/train_methods.py [OUT]        (OUT: build/demo-train)

Trains PROPETL and PHA on three tasks at once, AdaMix and diff pruning on one each, writes OUT/runs, encodes them into
OUT/debian.pack, decodes every task, loads it into a fresh model and scores it again. Exits 1 where a score, or a bit of
any logit, differs. rebuild.py trains the same runs into `runs/` beside this
file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rebuild import BASE, ROOT, SEED, Tokens, load_rows, log, tokenize
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import petlpack
from petlpack.methods import adamix, diff_pruning, pha, propetl

OUT = Path("build/demo-train")
BATCH = 32
TOGETHER = ("use", "interface", "devel")

Model = Any
Scores = dict[str, tuple[float, torch.Tensor]]
"""By task: accuracy on the test rows, and all logits."""


@dataclass(frozen=True)
class Run:
    """One run: its directory, its tasks, how the method is put on a model, loaded and trained."""

    name: str
    tasks: tuple[str, ...]
    attach: Callable[[Model, dict[str, int]], Any]
    load: Callable[[Model, Path], Any]
    lr: float
    steps: int
    finish: int = 0
    """Diff pruning: steps with a fixed mask, after the others."""


RUNS = (
    Run(
        "propetl",
        TOGETHER,
        lambda model, labels: propetl.attach(
            model, propetl.Config(kind="adapter", keep=0.3, bottleneck=16), tasks=labels
        ),
        propetl.load,
        lr=2e-2,
        steps=500,
    ),
    Run(
        "use-adamix",
        ("use",),
        lambda model, _: adamix.attach(model, adamix.Config(bottleneck=16)),
        adamix.load,
        lr=2e-2,
        steps=500,
    ),
    Run(
        "devel-diff",
        ("devel",),
        lambda model, _: diff_pruning.attach(model, diff_pruning.Config(density=0.01)),
        diff_pruning.load,
        lr=1e-2,
        steps=800,
        finish=800,
    ),
    Run(
        "pha",
        TOGETHER,
        lambda model, labels: pha.attach(model, pha.Config(bottleneck=8, code=16, trunk=32), tasks=labels),
        pha.load,
        lr=1e-2,
        steps=500,
    ),
)


@dataclass(frozen=True)
class Task:
    """A task's token ids."""

    labels: int
    train: list[Tokens]
    test: list[Tokens]


def read_tasks() -> dict[str, Task]:
    """Return the tasks that some run trains on."""
    rows, tokenizer = load_rows(), AutoTokenizer.from_pretrained(BASE)
    tasks = {}
    for name in sorted({task for run in RUNS for task in run.tasks}):
        own = [row for row in rows if row["task"] == name]
        labels = sorted({row["label"] for row in own})
        split = {
            part: tokenize(tokenizer, ((r["text"], labels.index(r["label"])) for r in own if r["split"] == part))
            for part in ("train", "test")
        }
        tasks[name] = Task(len(labels), split["train"], split["test"])
    return tasks


def fresh(labels: int) -> Model:
    """Return the base in float32 with a new head."""
    return AutoModelForSequenceClassification.from_pretrained(BASE.as_posix(), num_labels=labels, dtype=torch.float32)


def fit(model: Model, method: Any, run: Run, tasks: dict[str, Task], collate: Any, steps: int) -> None:
    """Train a method with a plain loop: AdamW, the rate falling to zero, the tasks in turn."""
    groups = method.groups(run.lr)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    feeds = {name: batches(tasks[name].train) for name in run.tasks}
    model.train()
    for step in range(steps):
        name = run.tasks[step % len(run.tasks)]
        if len(run.tasks) > 1:
            method.switch(name)
        model(**collate(next(feeds[name]))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def batches(tokens: Sequence[Tokens]) -> Iterator[list[Tokens]]:
    """Draw batches for ever."""
    while True:
        order = torch.randperm(len(tokens)).tolist()
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield [tokens[i] for i in order[start : start + BATCH]]


def score(model: Model, method: Any, names: Sequence[str], tasks: dict[str, Task], collate: Any) -> Scores:
    """Return accuracy and logits on the test rows of some tasks."""
    scores = {}
    model.eval()
    for name in names:
        if name in method.tasks:
            method.switch(name)
        logits, labels = [], []
        with torch.inference_mode():
            for start in range(0, len(tasks[name].test), 64):
                batch = collate(tasks[name].test[start : start + 64])
                labels.append(batch.pop("labels"))
                logits.append(model(**batch).logits)
        found = torch.cat(logits)
        scores[name] = float((found.argmax(-1) == torch.cat(labels)).float().mean()), found
    return scores


def train(run: Run, out: Path, tasks: dict[str, Task], collate: Any) -> Scores:
    """Train a run, save it with its scores, and return them."""
    torch.manual_seed(SEED)
    model = fresh(tasks[run.tasks[0]].labels)
    method = run.attach(model, {name: tasks[name].labels for name in run.tasks})
    fit(model, method, run, tasks, collate, run.steps * len(run.tasks))
    if run.finish:
        method.prune()
        fit(model, method, run, tasks, collate, run.finish)
    method.save(out)
    scores = score(model, method, run.tasks, tasks, collate)
    accuracy = {name: round(found, 4) for name, (found, _) in scores.items()}
    said = {"test_accuracy": accuracy[run.tasks[0]]} if len(accuracy) == 1 else {"test_accuracies": accuracy}
    result = {"tasks": run.tasks, "seed": SEED, "steps": run.steps, **said}
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return scores


def train_all(out: Path) -> None:
    """Train every run into `out`."""
    tasks, collate = read_tasks(), DataCollatorWithPadding(AutoTokenizer.from_pretrained(BASE))
    for run in RUNS:
        scores = train(run, out / run.name, tasks, collate)
        log(f"{run.name}: {', '.join(f'{name} {accuracy:.4f}' for name, (accuracy, _) in scores.items())}")


def main() -> None:
    """Train, encode, decode, compare."""
    os.chdir(ROOT)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    out, started = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT, time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    tasks, collate = read_tasks(), DataCollatorWithPadding(AutoTokenizer.from_pretrained(BASE))
    different = 0
    print(f"{'run':<12} {'task':<10} {'score':>7} {'decoded':>8}  {'same logits':<11} {'bytes of the task':>17}")
    for run in RUNS:
        trained = train(run, out / "runs" / run.name, tasks, collate)
        encoded = petlpack.encode(out / "runs" / run.name, out / "debian.pack")
        pack = petlpack.open(out / "debian.pack")
        for name, one in zip(run.tasks, encoded, strict=True):
            run_dir = out / "decoded" / one.name
            pack[one.name].decode(run_dir)
            model = fresh(tasks[name].labels)
            method = run.load(model, run_dir)
            (accuracy, logits), (before, expected) = score(model, method, [name], tasks, collate)[name], trained[name]
            same = torch.equal(logits, expected) and accuracy == before
            different += not same
            print(
                f"{run.name:<12} {name:<10} {before:7.4f} {accuracy:8.4f}  "
                f"{'yes' if same else 'NO':<11} {one.nbytes:17,}",
                flush=True,
            )
    log(f"{time.monotonic() - started:.0f} s")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
