"""The bases that the tensors of runs are compared with: the one that is given, or those that runs name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from petlpack.analyze.survey.chosen import FoundRun
from petlpack.analyze.survey.equality import Span
from petlpack.analyze.survey.kinds import PICKLED
from petlpack.analyze.survey.tree import File, Key, key_of
from petlpack.errors import BaseError, Problem, RunError, printable, problem_of
from petlpack.tensors.base import is_model
from petlpack.tensors.checkpoint import Checkpoint, open_checkpoint
from petlpack.tensors.components import by_component, find_components, is_in_parts, with_components
from petlpack.tensors.places import find_main
from petlpack.tensors.safetensors_file import Header

_READ = ".safetensors"
"""How the names of files end that are opened: no pickle is."""


@dataclass(frozen=True)
class BaseFiles:
    """The tensors of a base by name, and its files; the shapes are by component and own name."""

    path: Path
    spans: Mapping[str, Span]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    keys: frozenset[Key]


@dataclass(frozen=True)
class ComparedBases:
    """The base that is given for all runs, or those that they name; a base's own files have none."""

    given: BaseFiles | None
    named: Mapping[Path, BaseFiles]
    """By run."""
    unreadable: Mapping[str, Problem]
    keys: frozenset[Key]
    """The files of all of them."""

    def of(self, file: File) -> BaseFiles | None:
        """Return what a file's tensors are compared with."""
        base = self.given or (self.named.get(file.run) if file.run is not None else None)
        return None if base is None or file.key in self.keys else base


def open_bases(for_all: BaseFiles | None, runs: Iterable[FoundRun]) -> ComparedBases:
    """Open the bases that runs name, each once, where they are directories here; none where one is given for all."""
    names = {run.path: run.base_name for run in runs if run.base_name is not None} if for_all is None else {}
    opened: dict[str, BaseFiles] = {}
    unreadable: dict[str, Problem] = {}
    for name in dict.fromkeys(names.values()):
        try:
            if is_model(name):
                opened[name] = open_base(Path(name))
        except BaseError as error:
            unreadable[name] = problem_of(error)
    bases = opened.values() if for_all is None else [for_all]
    keys = frozenset(key for base in bases for key in base.keys)
    return ComparedBases(
        for_all, {path: opened[name] for path, name in names.items() if name in opened}, unreadable, keys
    )


def open_base(path: Path) -> BaseFiles:
    """Read the headers of a base; raises BaseError where there is none, or it is pickled."""
    weights = find_main(path) if path.is_dir() else path
    shown = printable(str(path))
    if not (weights.is_file() if weights is not None else is_in_parts(path)):
        raise BaseError(
            f"no base at '{shown}'",
            hint="give --base the directory of the pretrained model (with model.safetensors), or its weight file",
            code="base-missing",
        )
    if weights is not None and weights.name.removesuffix(".index.json").endswith(PICKLED):
        raise BaseError(
            f"base '{shown}' is pickled, and pickles are never opened", hint="save the base as safetensors first"
        )
    try:
        main = Checkpoint({}, {}, ()) if weights is None else open_checkpoint(weights)
        parts = find_components(path, main.sources) if path.is_dir() else {}
        checkpoint, _ = with_components(main, {name: part for name, part in parts.items() if name.endswith(_READ)})
        keys = frozenset(key_of(source.stat()) for source in checkpoint.sources)
    except RunError as error:
        raise BaseError(f"base: {error.message}", hint=error.hint, code=error.own_code) from error
    spans: dict[str, Span] = {}
    for source, header in zip(checkpoint.sources, checkpoint.headers.values(), strict=True):
        spans |= {header.prefix + name: span for name, span in tensor_spans(source, header).items()}
    components = by_component(checkpoint.tensors, checkpoint.headers.values())
    shapes = {
        prefix: {name: tensor.shape for name, tensor in tensors.items()} for prefix, tensors in components.items()
    }
    return BaseFiles(path, spans, shapes, keys)


def tensor_spans(path: Path, header: Header) -> dict[str, Span]:
    """Return where the tensors of a safetensors file are, those without a byte left out."""
    return {
        name: Span(path, header.data_start + entry.start, entry.stop - entry.start, (entry.dtype, entry.shape))
        for name, entry in header.entries.items()
        if entry.stop > entry.start
    }
