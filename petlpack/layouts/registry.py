"""The table of layouts, asked in order: the first that knows a directory reads it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from petlpack.errors import RunError, UsageError, printable
from petlpack.layouts.checkpoints import sharded_state
from petlpack.layouts.components import as_weights
from petlpack.layouts.files import check_links, settled, some
from petlpack.layouts.layout import Layout
from petlpack.layouts.options import Options, Setting
from petlpack.layouts.results import stated_score
from petlpack.layouts.run import Run
from petlpack.layouts.selection import Selection

LAYOUTS = {
    "propetl": "petlpack.layouts.propetl:PropetlLayout",
    "propetl-t5": "petlpack.layouts.propetl_t5:PropetlT5Layout",
    "adamix": "petlpack.layouts.adamix:AdamixLayout",
    "diff-pruning": "petlpack.layouts.diff_pruning:DiffPruningLayout",
    "pha": "petlpack.layouts.pha:PhaLayout",
    "hyperformer": "petlpack.layouts.hyperformer:HyperformerLayout",
    "adapterhub": "petlpack.layouts.adapterhub:AdapterhubLayout",
    "peft": "petlpack.layouts.peft:PeftLayout",
    "diffusers": "petlpack.layouts.diffusers:DiffusersLayout",
    "transformers": "petlpack.layouts.transformers:TransformersLayout",
    "safetensors": "petlpack.layouts.bare:BareLayout",
}


def layout(layout_id: str) -> Layout:
    """Return the layout of an id of the table."""
    module, _, name = LAYOUTS[layout_id].partition(":")
    loaded: Layout = getattr(importlib.import_module(module), name)()
    return loaded


def settings() -> dict[str, Setting]:
    """Return every setting that some layout may need, by name."""
    return {setting.name: setting for layout_id in LAYOUTS for setting in layout(layout_id).settings}


def options_of(values: Mapping[str, object], selection: Selection | None = None) -> Options:
    """Return what a caller says of a run; raises UsageError for a setting that no layout knows."""
    known = settings()
    for name in values:
        if name not in known:
            raise UsageError(
                f"unknown setting '{printable(name)}'",
                hint=f"settings are {', '.join(sorted(known))} (see --set in the help)",
            )
    return Options.of(values, selection)


def options_in(facts: Mapping[str, object], selection: Selection | None = None) -> Options:
    """Return the options that a manifest keeps; what it says that no layout knows is ignored."""
    known = settings()
    values = {name: value for name, value in facts.items() if name in known}
    return Options.of(
        {name: value for name, value in values.items() if not known[name].flag or value is True}, selection
    )


def read_run(path: str | Path, options: Options | None = None) -> Sequence[Run]:
    """Read the tasks of a run by the first layout that knows it.

    Raises RunError that says what the directory holds instead, or what the run does not say of itself.
    """
    path, options = Path(path), options or Options()
    shown = printable(str(path))
    if not path.exists():
        raise RunError(f"no run at '{shown}'", hint="pass a run directory, or a .safetensors file")
    for layout_id in LAYOUTS:
        reader = layout(layout_id)
        if reader.detect(path):
            runs = _read(reader, path, options)
            stated = stated_score(path) if len(runs) == 1 else None  # of several tasks, nobody says whose it is
            score = None if stated is None else (stated.metric, stated.value)
            return [settled(replace(run, warnings=(*run.warnings, *options.unused()), score=score)) for run in runs]
    if path.is_file():
        raise RunError(f"'{shown}' is not a run", hint="pass a run directory, or a .safetensors file")
    state = sharded_state(path)
    if state is not None:
        raise RunError(f"'{shown}' contains {state}", hint="then encode the merged model")
    check_links(path)
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        raise RunError(f"'{shown}' is empty", hint="pass the directory that a training run wrote")
    whole = (path / "modules.json").exists()  # a model in parts: none of them is a run by itself
    inside = [name for name in names if not whole and (path / name).is_dir() and _knows(path / name)]
    raise RunError(
        f"'{shown}' is not a run directory: it contains {some(names)}",
        hint=f"encode the runs inside it: {some(inside)}"
        if inside
        else "a run has model.safetensors, adapter_config.json with its adapter, or a checkpoint-N directory",
    )


def _read(reader: Layout, path: Path, options: Options) -> Sequence[Run]:
    """Read a run; where that fails because its states were never merged, say so."""
    try:
        runs = reader.read(path, options)
        empty = any(run.headers and not run.module.tensors for run in runs)
        if reader.components:
            runs = [as_weights(run, options.selection) for run in runs]
        if empty or not all(run.module.tensors for run in runs):
            raise RunError(
                f"'{printable(str(path))}' has a weight file without tensors",
                hint="the run was not saved correctly: save it again",
            )
        return runs
    except RunError as error:
        state = sharded_state(path)
        if state is None:
            raise
        raise RunError(f"'{printable(str(path))}' contains {state}", hint="then encode the merged model") from error


def _knows(path: Path) -> bool:
    return any(layout(layout_id).detect(path) for layout_id in LAYOUTS)
