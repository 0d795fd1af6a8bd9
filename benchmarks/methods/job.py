"""One job of the experiment: train a row at one seed or rate, score it, pack it, decode it, score it again."""

from __future__ import annotations

import gc
import hashlib
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from data import BATCH, TASKS, Data, Example, batches, collate, load
from rows import Row, all_rows
from train import base_dir

import petlpack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; it falls to zero over the others."""
CLIP = 1.0
FINISH = 10.0
"""How much larger diff pruning's rate is once the mask is fixed: half a per cent of the weights have to do it all."""
HEAD_RATE = 5e-2
"""The heads' learning rate in every row: at the rates that methods bear, the head of a task with one frequent label
never leaves the constant answer in 300 steps, and the method learns nothing either."""
HEADS = ("classifier", "task_heads")
DROPOUT, DECAY = 0.1, 0.1
"""What the scripts of AdaMix train with (bert_base_mnli_expert_soup.sh, and BERT's own dropout)."""
LOOK = 50
"""Steps from one look at the held-out rows to the next, where the best step is taken."""
SEARCH_TASKS = ("use", "role")
SEARCH_SEED = 100
SEARCH_SHARE = 1 / 3
"""Rates are chosen by runs of so many of a row's steps, on two tasks."""


@dataclass(frozen=True)
class Job:
    """Train row `row`: with `rate` alone to try that rate, with `seed` to measure it on `task` (or all tasks)."""

    row: str
    rate: float
    seed: int
    task: str
    """A task, or "all" for a row that trains them together, or "search"."""


def run(job: Job, cache: Path) -> dict[str, Any]:
    """Do one job; returns what results.json keeps of it."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))
    row = next(row for row in all_rows() if row.id == job.row)
    gc.collect()  # the last job's model: its hooks refer to it, and few objects are made that would call for it
    started = time.perf_counter()
    done: dict[str, Any] = {"row": row.id, "rate": job.rate}
    if job.task == "search":
        done["dev"] = _search(row, job.rate)
    else:
        tasks = TASKS if row.multi else (job.task,)
        done |= {"seed": job.seed, "task": job.task, "scores": _measure(row, job, tasks, cache)}
    return {**done, "seconds": round(time.perf_counter() - started, 1)}


WORKERS = 1 if DEVICE == "cuda" else 2


def _search(row: Row, rate: float) -> float:
    """Return the mean accuracy on the held-out train rows of two tasks."""
    sets = [load(task) for task in SEARCH_TASKS]
    groups = [sets] if row.multi else [[data] for data in sets]
    hits: list[float] = []
    for group in groups:
        train = {d.name: d.search if row.examples is None else d.few(row.examples, SEARCH_SEED) for d in group}
        model, method = _trained(row, rate, SEARCH_SEED, group, train, SEARCH_SHARE)
        hits += [_score(model, method, data, data.dev)[0] for data in group]
    return sum(hits) / len(hits)


def _measure(row: Row, job: Job, tasks: Sequence[str], cache: Path) -> list[dict[str, Any]]:
    """Train, score, encode, decode, score again; one record for each task."""
    group = [load(task) for task in tasks]
    whole = {d.name: d.search if row.recipe else d.train for d in group}
    train = whole if row.examples is None else {d.name: d.few(row.examples, job.seed) for d in group}
    notes: dict[str, float] = {}
    model, method = _trained(row, job.rate, job.seed, group, train, 1.0, notes)
    before = {data.name: _score(model, method, data, data.test) for data in group}
    trained = sum(parameter.numel() for parameter in method.parameters())
    pack = pack_of(cache, row.id, job.seed)
    with tempfile.TemporaryDirectory(prefix="run-") as scratch:
        method.save(Path(scratch) / "run")
        name = "all" if row.multi else job.task
        encoded = petlpack.encode(Path(scratch) / "run", pack, base_dir(), task=name, replace=True, jobs=1)
    opened = petlpack.open(pack)
    records = []
    for data, one in zip(group, encoded, strict=True):
        with tempfile.TemporaryDirectory(prefix="decoded-") as scratch:
            run_dir = Path(scratch) / "run"
            opened[one.name].decode(run_dir, base_dir(), jobs=1)
            after = _score(*_loaded(row, run_dir, data), data, data.test)
        records.append(
            {
                "task": data.name,
                "accuracy": before[data.name][0],
                "decoded": after[0],
                "same_logits": before[data.name][1] == after[1],
                "trained": trained,
                "rows": len(data.test),
                "codec": one.codec,
                "exact": one.exact,
                **notes,
            }
        )
    return records


def pack_of(cache: Path, row: str, seed: int) -> Path:
    """Return the pack of all tasks of one row at one seed."""
    return cache / "packs" / f"{row}-{seed}.pack"


def fresh(labels: int, dropout: float = 0.0) -> Any:
    """Return the base with a new head; without dropout, which costs a fifth of the time and which no row needs."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        base_dir(), num_labels=labels, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    ).to(DEVICE)


def _loaded(row: Row, run_dir: Path, data: Data) -> tuple[Any, Any]:
    """Return a model that a decoded run was loaded into, and its method, if it has one."""
    if row.load is None:
        return transformers.AutoModelForSequenceClassification.from_pretrained(run_dir).to(DEVICE), None
    model = fresh(data.labels)
    return model, row.load(model, run_dir)


def _trained(
    row: Row,
    rate: float,
    seed: int,
    group: Sequence[Data],
    train: Mapping[str, Sequence[Example]],
    share: float,
    notes: dict[str, float] | None = None,
) -> tuple[Any, Any]:
    """Train a row for a share of its steps; returns the model and what was put on it.

    In `notes` stands afterwards what pruning did: the share of the gates expected to be open at the end of stage 1, and
    the accuracy before and after it.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = fresh(group[0].labels, DROPOUT if row.recipe else 0.0)
    method = row.attach(model, {data.name: data.labels for data in group})
    streams = {name: batches(examples, rng) for name, examples in train.items()}
    turns = _turns(list(streams), rng)
    feed = ((task if row.multi else None, batch) for task, batch in ((task, next(streams[task])) for task in turns))
    steps = round(row.steps * share) * len(group)
    finish = round(row.finish * share)
    look = (lambda: _score(model, method, group[0], group[0].dev)[0]) if row.recipe else None
    _train(model, method, rate, steps - finish, feed, DECAY if row.recipe else 0.0, look)
    if row.density is not None:
        if notes is not None:
            notes["open"] = method.expected_l0().item() / method.size
            notes["gated"] = _score(model, method, group[0], group[0].test)[0]
        method.prune(row.density)
        if notes is not None:
            notes["pruned"] = _score(model, method, group[0], group[0].test)[0]
        _train(model, method, FINISH * rate, finish, feed)
    return model, method


def _with_head_rate(model: Any, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the heads' parameters a group of their own, at HEAD_RATE; where nothing else trains, the rate is theirs."""
    heads = {id(p): p for name, p in model.named_parameters() if name.startswith(HEADS) and p.requires_grad}
    others = [{**group, "params": [p for p in group["params"] if id(p) not in heads]} for group in groups]
    others = [group for group in others if group["params"]]
    return [*others, {"params": list(heads.values()), "lr": HEAD_RATE}] if others else groups


def _turns(tasks: list[str], rng: random.Random) -> Iterator[str]:
    """Give tasks for ever: each once in every round, in random order."""
    return itertools.chain.from_iterable(rng.sample(tasks, len(tasks)) for _ in itertools.count())


def _train(
    model: Any,
    method: Any,
    rate: float,
    steps: int,
    feed: Iterator[tuple[str | None, list[Example]]],
    decay: float = 0.0,
    look: Callable[[], float] | None = None,
) -> None:
    """Train; where `look` tells how good the model is, leave it as it was at the best of the steps looked at."""
    groups = _with_head_rate(model, method.groups(rate))
    optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=True)
    rise = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))
    )
    trained = [parameter for group in groups for parameter in group["params"]]
    best, kept = -1.0, list[Any]()
    model.train()
    for step, (task, batch) in enumerate(itertools.islice(feed, steps), 1):
        if task is not None:
            method.switch(task)
        model(**collate(batch, DEVICE)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if look is not None and (step % LOOK == 0 or step == steps):
            if (found := look()) > best:
                best, kept = found, [parameter.detach().clone() for parameter in trained]
            model.train()
    if kept:
        with torch.no_grad():
            for parameter, one in zip(trained, kept, strict=True):
                parameter.copy_(one)
    model.eval()


def _score(model: Any, method: Any, data: Data, examples: Sequence[Example]) -> tuple[float, str]:
    """Return the accuracy, and the sha256 of all logits: equal digests are equal bits."""
    if method is not None and data.name in getattr(method, "tasks", {}):
        method.switch(data.name)
    model.eval()
    order = sorted(examples, key=lambda example: len(example[0]))
    hits, digest = 0, hashlib.sha256()
    with torch.inference_mode():
        for start in range(0, len(order), 4 * BATCH):
            inputs = collate(order[start : start + 4 * BATCH], DEVICE)
            labels = inputs.pop("labels")
            logits = model(**inputs).logits
            hits += int((logits.argmax(-1) == labels).sum())
            digest.update(logits.float().cpu().numpy().tobytes())
    return hits / len(order), digest.hexdigest()
