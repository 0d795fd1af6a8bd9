"""The bases that the tensors of runs are compared with: the one that is given, or those that runs name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petlpack.analyze.survey.chosen import FoundRun
from petlpack.analyze.survey.equality import PAGE, Span
from petlpack.analyze.survey.tree import File, Key, Tree, key_of
from petlpack.encoding.matching.names import match_names
from petlpack.errors import BaseError, Problem, problem_of
from petlpack.tensors.base import Base, Bases, is_model, open_bases
from petlpack.tensors.safetensors_file import Header, MalformedError, read_header


@dataclass(frozen=True)
class BaseFiles:
    """The tensors of a base by name, and its files; the shapes are by component and own name."""

    path: Path
    spans: Mapping[str, Span]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    keys: frozenset[Key]

    def namesakes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Return {name: name here} in the component that has most of them.

        Empty where the names have nothing to do with the base's.
        """
        best: dict[str, str] = {}
        for prefix, known in self.shapes.items():
            try:
                names = match_names(shapes, known)
            except BaseError:  # an adapter's own tensors, or another model's: none of them is the base's
                continue
            if len(names) > len(best):
                best = {name: prefix + namesake for name, namesake in names.items()}
        return best


@dataclass(frozen=True)
class ComparedBases:
    """The base that is given for all runs, or one for each: of several the nearest, else the one that it names.

    A base's own files have none.
    """

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


def compared_bases(given: Sequence[BaseFiles], runs: Sequence[FoundRun], tree: Tree) -> ComparedBases:
    """Return the base of each run: the one that is given, of several the nearest; without any, the one that it names.

    Those that runs name are opened each once, where they are directories here.
    """
    if given:
        keys = frozenset(key for base in given for key in base.keys)
        if len(given) == 1:
            return ComparedBases(given[0], {}, {}, keys)
        chosen = {run.path: base for run in runs if (base := _nearest(run, given, tree)) is not None}
        return ComparedBases(None, chosen, {}, keys)
    names = {run.path: run.base_name for run in runs if run.base_name is not None}
    opened: dict[str, BaseFiles] = {}
    unreadable: dict[str, Problem] = {}
    for name in dict.fromkeys(names.values()):
        try:
            if is_model(name):
                opened[name] = _files_of(Base(name, pickles=False))
        except BaseError as error:
            unreadable[name] = problem_of(error)
    keys = frozenset(key for base in opened.values() for key in base.keys)
    return ComparedBases(None, {path: opened[name] for path, name in names.items() if name in opened}, unreadable, keys)


NEARLY = 0.9
"""Share of what most of a run meets with which another base may still be its own: it lacks the run's head."""

MOST_SAMPLED = 8
"""Tensors of which a page is compared to tell bases of one architecture apart: the largest ones."""


def _nearest(run: FoundRun, bases: Sequence[BaseFiles], tree: Tree) -> BaseFiles | None:
    """Return the base that most of a run meets by names and shapes, of those that do the one with most equal bytes."""
    spans: dict[str, Span] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in run.weights:
        header = tree.header(file) if file.suffix == ".safetensors" else None
        if isinstance(header, Header):
            spans |= tensor_spans(file, header)
            shapes |= {name: entry.shape for name, entry in header.entries.items()}
    pairs = [_pairs(spans, base, base.namesakes(shapes)) for base in bases]
    sizes = [sum(span.nbytes for span, _ in met) for met in pairs]
    tied = [i for i, size in enumerate(sizes) if size and size >= NEARLY * max(sizes)]
    return bases[max(tied, key=lambda i: _likeness(pairs[i]))] if tied else None


def _pairs(spans: Mapping[str, Span], base: BaseFiles, names: Mapping[str, str]) -> list[tuple[Span, Span]]:
    met = ((span, base.spans.get(names.get(name, ""))) for name, span in spans.items())
    return [(span, other) for span, other in met if other is not None and other.nbytes == span.nbytes]


def _likeness(pairs: Sequence[tuple[Span, Span]]) -> float:
    """Return the share of equal bytes in the first pages of the largest pairs; what cannot be read says nothing."""
    largest = sorted(pairs, key=lambda pair: -pair[0].nbytes)[:MOST_SAMPLED]
    try:
        pages = [tuple(np.frombuffer(_first_page(span), np.uint8) for span in pair) for pair in largest]
    except OSError:
        return 0.0
    return float(np.mean([np.mean(own == other) for own, other in pages if own.shape == other.shape] or [0.0]))


def _first_page(span: Span) -> bytes:
    with span.path.open("rb") as file:
        file.seek(span.start)
        return file.read(min(PAGE, span.nbytes))


def given_bases(bases: Bases | None) -> list[BaseFiles]:
    """Open the bases that are given, as `encode` does; raises BaseError where one is none, or is pickled."""
    several = bases if isinstance(bases, Sequence) and not isinstance(bases, str) else [] if bases is None else [bases]
    paths = [base.path if isinstance(base, Base) else base for base in several]
    return [_files_of(base) for base in open_bases(paths, pickles=False)]


def _files_of(base: Base) -> BaseFiles:
    """Return where the tensors of a base stand in its files; raises BaseError."""
    try:
        keys = frozenset(key_of(source.stat()) for source in base.sources)
        spans: dict[str, Span] = {}
        for source, header in zip(base.sources, base.headers.values(), strict=True):
            inside = tensor_spans(source, read_header(source))
            spans |= {header.prefix + name: inside[name] for name in header.entries if name in inside}
    except (MalformedError, OSError) as error:
        problem = problem_of(error)
        raise BaseError(f"base: {problem.message}", hint=problem.hint, code=problem.code) from error
    shapes = {
        prefix: {name: tensor.shape for name, tensor in part.tensors.items()} for prefix, part in base.parts.items()
    }
    return BaseFiles(base.path, spans, shapes, keys)


def tensor_spans(path: Path, header: Header) -> dict[str, Span]:
    """Return where the tensors of a safetensors file are, those without a byte left out."""
    return {
        name: Span(path, header.data_start + entry.start, entry.stop - entry.start, (entry.dtype, entry.shape))
        for name, entry in header.entries.items()
        if entry.stop > entry.start
    }
