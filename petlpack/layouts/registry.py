"""The table of layouts, asked in order: the first that knows a directory reads it."""

from __future__ import annotations

import functools
import importlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from petlpack.errors import RunError, UsageError, printable
from petlpack.errors.arguments import check_mapping, path_of
from petlpack.errors.foreign import errors_of_run
from petlpack.layouts.components import as_weights
from petlpack.layouts.files import check_links, settled, some
from petlpack.layouts.foreign import is_shard, refuse_file, refuse_foreign, refuse_state
from petlpack.layouts.layout import Layout
from petlpack.layouts.options import Options, Setting
from petlpack.layouts.results import stated_score
from petlpack.layouts.run import Run
from petlpack.layouts.selection import Selection
from petlpack.layouts.ties import with_ties
from petlpack.store import SUFFIX, is_pack, pack_above
from petlpack.tensors.content import LARGEST_POINTER, pointer_of
from petlpack.tensors.hub_cache import snapshot_of

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
    return _class_at(LAYOUTS[layout_id])()


@functools.lru_cache
def _class_at(place: str) -> type[Layout]:
    """Return the class at `module:name`; every run asks for all of them."""
    module, _, name = place.partition(":")
    found: type[Layout] = getattr(importlib.import_module(module), name)
    return found


def settings() -> dict[str, Setting]:
    """Return every setting that some layout may need, by name."""
    return {setting.name: setting for layout_id in LAYOUTS for setting in layout(layout_id).settings}


def known_settings() -> tuple[Setting, ...]:
    """Return every setting that a caller may say of a run, by name, with what it is."""
    return tuple(setting for _, setting in sorted(settings().items()))


def options_of(values: Mapping[str, object] | None, selection: Selection | None = None) -> Options:
    """Return what a caller says of a run; raises UsageError for a setting that no layout knows, and for no mapping."""
    values = {} if values is None else values
    known = settings()
    check_mapping("settings", values, "for example settings={'combine': 'or'}, which is --set combine=or")
    for name in values:
        if name not in known:
            raise UsageError(
                f"unknown setting '{printable(name)}'",
                hint=f"settings are {', '.join(sorted(known))}",
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
    path, options = path_of("run", path), options or Options()
    shown = printable(str(path))
    if not path.exists():
        raise RunError(f"no run at '{shown}'", hint="pass a run directory, or a .safetensors file")
    _refuse_pack(path)
    path = snapshot_of(path)
    for layout_id in LAYOUTS:
        reader = layout(layout_id)
        if reader.detect(path):
            with errors_of_run(path):
                runs = _read(reader, path, options)
            stated = stated_score(path) if len(runs) == 1 else None  # of several tasks, nobody says whose it is
            score = None if stated is None else (stated.metric, stated.value)
            unused = options.unused()
            return [
                settled(replace(run, warnings=(*run.warnings, *_pointers(run), *unused), score=score)) for run in runs
            ]
    raise _no_run(path)


def _no_run(path: Path) -> RunError:
    """Return what to say of a path that no layout knows: what it holds instead, or where the runs in it are."""
    shown = printable(str(path))
    if not path.is_dir():
        refuse_file(path)
        return RunError(f"'{shown}' is not a run", hint="pass a run directory, or a .safetensors file")
    check_links(path)
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return RunError(f"'{shown}' is empty", hint="pass the directory that a training run wrote")
    whole = (path / "modules.json").exists()  # a model in parts: none of them is a run by itself
    inside = [] if whole else _runs_inside(path)
    files = [name for name in names if name.endswith(".safetensors") and not is_shard(name)]
    if not inside:
        refuse_foreign(path)
    runs = inside or (files if len(files) > 1 else [])
    return RunError(
        f"'{shown}' is not a run directory: it contains {some(names)}",
        hint=f"encode the runs inside it: {some(runs)}"
        if runs
        else "a run has model.safetensors, adapter_config.json with its adapter, or a checkpoint-N directory",
    )


def _pointers(run: Run) -> list[str]:
    """Return a warning for each kept file that only stands for another one: what comes back does not load."""
    files = {name: file for name, file in run.kept.items() if isinstance(file, Path)}
    small = {name: file for name, file in files.items() if 0 < file.stat().st_size <= LARGEST_POINTER}
    kinds = {name: pointer_of(file) for name, file in small.items()}
    return [f"'{printable(name)}' is {kind.what}: {kind.hint}" for name, kind in kinds.items() if kind]


def _read(reader: Layout, path: Path, options: Options) -> Sequence[Run]:
    """Read a run; where that fails because its states were never merged, say so."""
    try:
        runs = reader.read(path, options)
        empty = any(run.whole and run.headers and not run.module.tensors for run in runs)
        if reader.components:
            runs = [as_weights(run, options.selection) for run in runs]
        runs = [run if run.task else with_ties(run) for run in runs]  # several tasks of a run have one template
        if empty or not all(run.module.tensors for run in runs):
            raise RunError(
                f"'{printable(str(path))}' has a weight file without tensors",
                hint="the run was not saved correctly: save it again",
            )
        return runs
    except RunError:
        if path.is_dir():
            refuse_state(path)
        raise


def _refuse_pack(path: Path) -> None:
    """Raise RunError for a pack, what is in one, and files that were copied out of one: none of them is a run."""
    shown = printable(str(path))
    if is_pack(path):
        quoted = printable(shlex.quote(str(path)))
        raise RunError(
            f"'{shown}' is a pack, expected a run",
            hint=f"`petlpack list {quoted}` shows its tasks, `petlpack decode {quoted} TASK OUT` makes a run of one",
        )
    hint = "`petlpack decode PACK TASK OUT` makes a run of a task"
    if path.is_file():
        if path.name.endswith(SUFFIX) or pack_above(path) is not None:
            raise RunError(f"'{shown}' is a file of a pack, expected a run", hint=hint)
        return
    names = [file.name for file in path.glob("*.safetensors")]
    if pack_above(path) is not None or (names and all(name.endswith(SUFFIX) for name in names)):
        raise RunError(f"'{shown}' holds files of a pack, expected a run", hint=hint)


def _runs_inside(path: Path) -> list[str]:
    """Return the names of the directories in another that are runs; raises RunError where all of them are broken."""
    runs, broken = [], []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        try:
            if any(layout(layout_id).detect(folder) for layout_id in LAYOUTS):
                runs.append(folder.name)
        except RunError as error:
            broken.append(error)
        except OSError:  # nobody may look into it
            continue
    if broken and not runs:
        raise broken[0]
    return runs
