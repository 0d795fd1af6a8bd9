"""The rows of the experiment's table: what is trained, how it is put on a model, how a decoded run is loaded again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ADAPTER = 32
"""The bottleneck of every adapter: width 384 / 12, the reduction factor of PROPETL's settings."""

ALONE = 4e-6
"""Diff pruning's lambda without groups, 32 times that of its scripts: by theirs 99 % of the gates are open after 200
steps. Groups close by the cost of all their weights, and theirs will do."""

FEW = (100, 500)
"""Train rows a task, where examples are few."""
FEW_STEPS = 100

Labels = Mapping[str, int]
"""How many labels each task has, in the order of the tasks."""


@dataclass(frozen=True)
class Row:
    """One row. `attach` puts it on a fresh model, `load` puts a saved or decoded run on a fresh model."""

    id: str
    title: str
    rate: float
    """Where the search for a learning rate starts."""
    attach: Callable[[Any, Labels], Any]
    load: Callable[[Any, Path], Any] | None = None
    """None: the run is a whole model, which Transformers loads."""
    multi: bool = False
    """One run of all tasks, or a run for each."""
    examples: int | None = None
    """Train rows of a task; None for all."""
    steps: int = 300
    """Steps of a task."""
    density: float | None = None
    """Diff pruning: the share of the weights that keep a difference."""
    finish: int = 0
    """Diff pruning: how many of the steps train on with a fixed mask."""
    recipe: bool = False
    """Trained as the AdaMix scripts do: with dropout and weight decay, and the best step by held-out rows is taken."""
    seeds: int = 2
    check: str = ""
    """Of a row that looks for the reason of another one's result: the row whose rate it takes."""


def _baselines() -> list[Row]:
    import baselines as b

    def attach_adapter(model: Any, labels: Labels) -> Any:
        return b.Adapter(model, ADAPTER)

    def load_adapter(model: Any, run: Path) -> Any:
        return b.load_adapter(model, run, ADAPTER)

    def attach_lora(model: Any, labels: Labels) -> Any:
        return b.Lora(model)

    rows = [
        Row("full", "full fine-tuning", 1e-4, lambda model, labels: b.full(model)),
        Row("last-layer", "last layer only", 1e-1, lambda model, labels: b.last_layer(model)),
        Row("bitfit", "BitFit", 1e-3, lambda model, labels: b.bitfit(model)),
        Row("adapter", f"bottleneck adapter, {ADAPTER}", 1e-3, attach_adapter, load_adapter),
        Row("lora", "LoRA, rank 8", 1e-3, attach_lora, b.load_lora),
    ]
    for examples in FEW:
        rows += [
            Row(
                f"{kind}-{examples}",
                f"{title}, {examples} examples",
                rate,
                attach,
                load,
                examples=examples,
                steps=FEW_STEPS,
            )
            for kind, title, rate, attach, load in (
                ("adapter", "bottleneck adapter", 1e-3, attach_adapter, load_adapter),
                ("lora", "LoRA", 1e-3, attach_lora, b.load_lora),
            )
        ]
    return rows


def _propetl() -> list[Row]:
    from petlpack.methods import propetl

    kinds: dict[str, tuple[str, float, dict[str, Any]]] = {
        "adapter": ("adapter", 3e-3, {"bottleneck": ADAPTER, "keep": 0.5}),
        "lora": ("LoRA, rank 32", 3e-3, {"rank": 32, "alpha": 48, "keep": 0.1}),
        "prefix": ("prefix, 32", 3e-3, {"length": 32, "hidden": 128, "keep": 0.1}),
    }
    rows = []
    for kind, (title, rate, settings) in kinds.items():
        single, multi = propetl.Config(kind=kind, **settings), propetl.Config(kind=kind, **settings | {"keep": 0.3})

        def attach(model: Any, labels: Labels, config: Any = single) -> Any:
            return propetl.attach(model, config, task="task")

        def attach_all(model: Any, labels: Labels, config: Any = multi) -> Any:
            return propetl.attach(model, config, tasks=labels)

        rows += [
            Row(f"propetl-{kind}", f"PROPETL {title}, keep {settings['keep']}", rate, attach, propetl.load),
            Row(f"propetl-{kind}-all", f"PROPETL {title}, all tasks", 3e-3, attach_all, propetl.load, multi=True),
        ]
    return sorted(rows, key=lambda row: row.multi)


def _adamix() -> list[Row]:
    from petlpack.methods import adamix

    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "adapter": (f"adapter, {ADAPTER}", {"bottleneck": ADAPTER}),
        "lora": ("LoRA, rank 8", {"rank": 8, "alpha": 16}),
    }
    rows = []
    for kind, (title, settings) in kinds.items():
        for experts, suffix, said in ((4, "", "4 experts, merged"), (1, "-one", "1 expert")):
            attach = _attaching(adamix, adamix.Config(kind=kind, experts=experts, **settings))
            rows.append(Row(f"adamix-{kind}{suffix}", f"AdaMix {title}: {said}", 1e-3, attach, adamix.load))
    return rows


def _diff_pruning() -> list[Row]:
    from petlpack.methods import diff_pruning

    return [
        Row(
            f"{name}-{100 * density:g}",
            f"{title}, {100 * density:g} %",
            1e-3,
            _attaching(diff_pruning, diff_pruning.Config(structured=name == "diff-structured", l0=l0)),
            diff_pruning.load,
            density=density,
            finish=100,
        )
        for name, title, l0 in (
            ("diff", "diff pruning", ALONE),
            ("diff-structured", "diff pruning, structured", diff_pruning.Config.l0),
        )
        for density in (0.005, 0.001)
    ]


def _attaching(method: Any, config: Any) -> Callable[[Any, Labels], Any]:
    return lambda model, labels: method.attach(model, config)


def _pha() -> list[Row]:
    from petlpack.methods import pha

    def attach(model: Any, labels: Labels) -> Any:
        return pha.attach(model, pha.Config(bottleneck=ADAPTER), tasks=labels)

    rows = [Row("pha", "PHA, all tasks", 3e-3, attach, pha.load, multi=True)]
    for examples in FEW:
        title = f"PHA, {examples} examples"
        rows.append(
            Row(f"pha-{examples}", title, 3e-3, attach, pha.load, multi=True, examples=examples, steps=FEW_STEPS)
        )
    return rows


CLOSE = (
    *("adapter", "lora", "propetl-adapter", "propetl-adapter-all", "propetl-lora", "propetl-lora-all"),
    *("adamix-adapter", "adamix-adapter-one", "pha", "adapter-100", "adapter-500", "pha-100", "pha-500"),
)
"""Rows that a claim sets a point apart or less, ahead on some tasks and behind on others, or level: three seeds."""

FIRMER = 4
"""How many times lambda, where it is asked whether the gates of groups close too little."""
LONGER = 3
LONG = ("pha-100", "adapter-100")
UPDATED = 1 - 0.75**2
"""Share of the steps in which each of four experts is drawn by one of the two passes."""


def _checks(rows: Mapping[str, Row]) -> list[Row]:
    from petlpack.methods import diff_pruning

    found = []
    for name, share in (("adamix-adapter-one", UPDATED), ("adamix-lora-one", UPDATED), ("adamix-adapter", 1 / UPDATED)):
        row, steps = rows[name], round(share * rows[name].steps)
        title, seeds = f"{row.title}, {steps} steps", 2 if share < 1 else 1
        found.append(replace(row, id=f"{name}-updates", title=title, check=name, steps=steps, seeds=seeds))
    for name in ("adamix-adapter", "adamix-adapter-one"):
        title = f"{rows[name].title}, recipe of its scripts"
        found.append(replace(rows[name], id=f"{name}-recipe", title=title, check=name, recipe=True, seeds=1))
    groups = rows["diff-structured-0.5"]
    config = diff_pruning.Config(structured=True, l0=FIRMER * diff_pruning.Config.l0)
    title, attach = f"{groups.title}, {FIRMER} times lambda", _attaching(diff_pruning, config)
    found.append(replace(groups, id=f"{groups.id}-lambda", title=title, check=groups.id, attach=attach, seeds=1))
    for row in (rows[name] for name in LONG):
        found.append(
            replace(
                row,
                id=f"{row.id}-long",
                title=f"{row.title}, {LONGER * row.steps} steps",
                check=row.id,
                steps=LONGER * row.steps,
                finish=LONGER * row.finish,
                seeds=1,
            )
        )
    return found


def all_rows() -> list[Row]:
    """Return every row, in the order of the tables; checks come last."""
    rows = [*_baselines(), *_propetl(), *_adamix(), *_diff_pruning(), *_pha()]
    rows = [replace(row, seeds=3) if row.id in CLOSE else row for row in rows]
    return [*rows, *_checks({row.id: row for row in rows})]
