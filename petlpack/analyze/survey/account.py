"""What runs take that were never packed: every byte of a tree by kind and by run, and what of it nobody needs.

Names, small JSON files and the headers of safetensors files are read, and of tensors and files no more than it takes to
know which are equal. No pickle is ever opened as one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from petlpack.analyze.survey.bases import ComparedBases, compared_bases, given_bases
from petlpack.analyze.survey.chosen import FoundRun
from petlpack.analyze.survey.copies import Copies, Equal, Looked, equal_files, look_into, read_headers
from petlpack.analyze.survey.equality import equal_spans
from petlpack.analyze.survey.kinds import KINDS, PICKLED, WEIGHT_KINDS
from petlpack.analyze.survey.runs import find_runs, sort_files
from petlpack.analyze.survey.tree import PATH_HINT, File, Key, Tree, given_roots, walk
from petlpack.errors import Problem, RunError, UsageError, printable, problem_of
from petlpack.layouts.results import stated_score
from petlpack.parallel import Progress, count_jobs
from petlpack.records.facts import Score
from petlpack.tensors.base import Bases


@dataclass(frozen=True)
class KindRow:
    """What all files of one kind take."""

    kind: str
    bytes: int
    files: int


@dataclass(frozen=True)
class RunRow:
    """One run: what it is, what it takes by kind, what of its weights stands elsewhere, what it says it reached.

    Its names are as they are, as all of a survey's: who shows them escapes them.
    """

    path: str
    layout: str | None
    method: str | None
    total_bytes: int
    bytes: dict[str, int]
    """Bytes by kind; a file that is hard-linked into several runs is the first one's."""
    checkpoints: int
    base: str | None
    """The directory or file of the base that its tensors were compared with."""
    is_base: bool
    """Whether it is itself the base that others were compared with."""
    equal_to_base_bytes: int
    duplicated_bytes: int
    score: Score | None
    problem: Problem | None
    """What in it cannot be read; the rest is counted all the same."""

    def to_json(self) -> dict[str, Any]:
        """Return the run as `petlpack survey --json` prints it."""
        return {**asdict(self), "problem": self.problem and self.problem.to_json()}


@dataclass(frozen=True)
class PackRow:
    """A pack in the tree: nothing in it is looked into."""

    path: str
    bytes: int


@dataclass(frozen=True)
class EqualTensor:
    """Tensors of one name that equal the base's, bit for bit: what all of them take, and how many there are."""

    name: str
    bytes: int
    copies: int
    in_adapters: int
    """How many of them stand in runs such as PEFT adapters, whose loaders take them from the base anyway."""


@dataclass(frozen=True)
class TensorRow:
    """The tensors of all safetensors weight files, and what could not be looked into."""

    bytes: int
    equal_to_base_bytes: int
    """Bytes of tensors that are their namesakes' in the base, to the bit and of the same dtype."""
    duplicated_bytes: int
    """Bytes that all but one of each set of equal tensors take, those equal to the base not counted again."""
    pickled_bytes: int
    """Bytes of pickled weight files, which are not opened."""
    other_format_bytes: int
    """Bytes of weight files in formats that are not read: ONNX, HDF5, msgpack, GGUF."""
    equal: tuple[EqualTensor, ...]
    """Those equal to the base's by name, the biggest first: they add up to `equal_to_base_bytes`."""


@dataclass(frozen=True)
class DuplicateRow:
    """Files that are equal byte for byte and no hard links of each other; the first is the one to keep."""

    file_bytes: int
    extra_bytes: int
    """What all but one of them take."""
    files: tuple[str, ...]


@dataclass(frozen=True)
class Savings:
    """Bytes that need not be kept, without packing anything; each figure leaves out what stands in those before it."""

    training_state: int
    duplicate_files: int
    equal_to_base: int
    duplicate_tensors: int
    other_checkpoints: int
    """What is left of the weights of checkpoints that are not the run's: no part of `total`, for only those who want
    nothing but the best can do without."""

    @property
    def total(self) -> int:
        """All of them but the checkpoints: none counts a byte of another."""
        return self.training_state + self.duplicate_files + self.equal_to_base + self.duplicate_tensors


@dataclass(frozen=True)
class Survey:
    """What a tree of runs takes. The rows of `kinds` add up to `disk_bytes`, the sizes of its files, to the byte."""

    disk_bytes: int
    linked_bytes: int
    """Those of `disk_bytes` that stand outside the given paths, where links inside lead."""
    files: int
    kinds: tuple[KindRow, ...]
    runs: tuple[RunRow, ...]
    """The biggest first."""
    packs: tuple[PackRow, ...]
    tensors: TensorRow
    duplicates: tuple[DuplicateRow, ...]
    duplicate_bytes: int
    """What all but one of each set of equal files take."""
    savings: Savings
    unreadable: dict[str, Problem]
    """Files and directories that could not be read, or bases not compared with, each with the reason."""
    paths: tuple[str, ...]
    """The paths that were asked about."""

    @property
    def error(self) -> RunError | None:
        """The error that there is neither a run nor a pack; None where there is any."""
        if self.runs or self.packs:
            return None
        names = ", ".join(f"'{printable(path)}'" for path in self.paths)
        return RunError(
            f"no pack or run in {names}",
            hint="a run has model.safetensors, adapter_config.json with its adapter, or a checkpoint-N",
        )

    @property
    def unreadable_outside(self) -> dict[str, Problem]:
        """Those of `unreadable` that are in no run."""
        runs = {row.path for row in self.runs}
        return {
            path: why
            for path, why in self.unreadable.items()
            if runs.isdisjoint(map(str, (Path(path), *Path(path).parents)))
        }

    @property
    def problems(self) -> int:
        """Runs that cannot be read, or not in full, and what cannot be read besides: 0 where all was looked into."""
        return sum(row.problem is not None for row in self.runs) + len(self.unreadable_outside)

    def bytes_of(self, kind: str) -> int:
        """Return what the files of a kind take."""
        return next(row.bytes for row in self.kinds if row.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack survey --json` prints."""
        table = {name: value for name, value in asdict(self).items() if name != "paths"}
        table["runs"] = [row.to_json() for row in self.runs]
        table["savings"]["total"] = self.savings.total
        table["unreadable"] = {path: problem.to_json() for path, problem in self.unreadable.items()}
        table["problems"] = self.problems
        table["error"] = self.error and problem_of(self.error).to_json()
        return table


def survey(
    paths: str | Path | Sequence[str | Path],
    base: Bases | None = None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Account for every byte of runs, or of trees of runs at any depth; one broken run never stops the rest.

    A regular file counts its size, once however many hard links or given paths lead to it. Links to directories are not
    followed. A link to a file counts nothing where the file stands below the given paths, too, which then is of the
    kind that the link's name says if its own says nothing (the hub's `snapshots` and `blobs`); else it counts that
    file's size, once. `base` is what tensors are compared with, of several the nearest to each run, by default the
    directory that each run's config names. Files in packs and caches are not compared. `progress` starts anew for each
    step of comparing. Raises UsageError where a path is missing or in a pack, or nothing is there, and BaseError where
    `base` is none or is pickled.
    """
    roots, threads = given_roots(paths), count_jobs(jobs)
    given = given_bases(base)
    tree = walk(roots)
    if not tree.files and not tree.unreadable:
        raise UsageError(f"'{printable(str(roots[0]))}' is empty", hint=PATH_HINT)
    owners = find_runs(tree)
    files = sort_files(tree, owners)
    runs = list(dict.fromkeys(owners.values()))
    bases = compared_bases(given, runs, tree)
    equal = partial(equal_spans, unreadable=tree.unreadable, jobs=threads, progress=progress)
    account = _account(tree, files, runs, bases, _compare(tree, files, bases, equal))
    return replace(account, paths=tuple(map(str, roots)))


@dataclass(frozen=True)
class _Compared:
    """What comparing the files of a tree showed: their copies, what is in their tensors, and which are broken."""

    copies: Copies
    looked: Mapping[Key, Looked]
    broken: Mapping[Key, Problem]


def _compare(tree: Tree, files: Mapping[Key, File], bases: ComparedBases, equal: Equal) -> _Compared:
    """Compare all files, then the tensors of those that have any."""
    copies = equal_files(files.values(), equal, bases)
    headers, broken = read_headers(files.values(), tree)
    return _Compared(copies, look_into(files, headers, copies, equal, bases), broken)


def _account(
    tree: Tree, files: Mapping[Key, File], runs: Sequence[FoundRun], bases: ComparedBases, compared: _Compared
) -> Survey:
    """Add up what was found."""
    loose = {str(files[key].path): why for key, why in compared.broken.items() if files[key].run is None}
    by_run: dict[Path | None, list[File]] = defaultdict(list)
    for file in files.values():
        by_run[file.run].append(file)
    rows = [_run_row(run, by_run[run.path], tree.unreadable, compared, bases) for run in runs]
    return Survey(
        disk_bytes=_total(files.values()),
        linked_bytes=_total(file for file in files.values() if file.linked),
        files=len(files),
        kinds=_kind_rows(files.values()),
        runs=tuple(sorted(rows, key=lambda row: (-row.total_bytes, row.path))),
        packs=tuple(_pack_row(path, files.values()) for path in tree.packs),
        tensors=_tensor_row(files, compared.looked, {run.path for run in runs if run.loads_base}),
        duplicates=tuple(_duplicate_row(group) for group in compared.copies.groups),
        duplicate_bytes=_total(files[key] for key in compared.copies.kept),
        savings=_savings(files, compared),
        unreadable={**tree.unreadable, **loose, **bases.unreadable},
        paths=(),
    )


def _savings(files: Mapping[Key, File], compared: _Compared) -> Savings:
    """Return what need not be kept; a file that is a copy of another counts as that alone."""
    twice, looked = compared.copies.kept.keys(), compared.looked
    once = {key: row for key, row in looked.items() if key not in twice}
    return Savings(
        training_state=_total(file for file in files.values() if file.kind == "training state"),
        duplicate_files=_total(files[key] for key in twice if files[key].kind != "training state"),
        equal_to_base=sum(row.equal_bytes for row in once.values()),
        duplicate_tensors=sum(row.duplicated for row in once.values()),
        other_checkpoints=sum(
            file.nbytes - (once[key].equal_bytes + once[key].duplicated if key in once else 0)
            for key, file in files.items()
            if file.kind == "other checkpoints" and key not in twice
        ),
    )


def _total(files: Iterable[File]) -> int:
    return sum(file.nbytes for file in files)


def _kind_rows(files: Iterable[File]) -> tuple[KindRow, ...]:
    nbytes, count = Counter[str](), Counter[str]()
    for file in files:
        nbytes[file.kind] += file.nbytes
        count[file.kind] += 1
    return tuple(KindRow(kind, nbytes[kind], count[kind]) for kind in KINDS)


def _run_row(
    run: FoundRun,
    files: Sequence[File],
    unreadable: Mapping[str, Problem],
    compared: _Compared,
    bases: ComparedBases,
) -> RunRow:
    """Add up a run; its problem is what keeps `encode` from it, else a broken file, else a closed directory."""
    looked = compared.looked
    inside = [file for file in files if file.key in looked]
    base = next(filter(None, map(bases.of, inside)), None)
    closed = (
        replace(why, message=f"'{printable(path)}': {why.message}")
        for path, why in unreadable.items()
        if Path(path).is_relative_to(run.path)
    )
    problems = (run.problem, *(compared.broken.get(file.key) for file in files), *closed)
    return RunRow(
        path=str(run.path),
        layout=run.layout,
        method=run.method,
        total_bytes=_total(files),
        bytes={row.kind: row.bytes for row in _kind_rows(files)},
        checkpoints=run.checkpoints,
        base=None if base is None else str(base.path),
        is_base=any(file.key in bases.keys for file in files),
        equal_to_base_bytes=sum(looked[file.key].equal_bytes for file in inside),
        duplicated_bytes=sum(looked[file.key].duplicated for file in inside),
        score=stated_score(run.path),
        problem=next(filter(None, problems), None),
    )


def _pack_row(path: Path, files: Iterable[File]) -> PackRow:
    return PackRow(str(path), _total(file for file in files if file.path.is_relative_to(path)))


def _tensor_row(files: Mapping[Key, File], looked: Mapping[Key, Looked], on_base: Set[Path]) -> TensorRow:
    nbytes, copies, adapters = Counter[str](), Counter[str](), Counter[str]()
    for key, row in looked.items():
        for name, size in row.equal:
            nbytes[name] += size
            copies[name] += 1
            adapters[name] += files[key].run in on_base
    closed = [file for file in files.values() if file.kind in WEIGHT_KINDS and file.path.suffix != ".safetensors"]
    return TensorRow(
        bytes=sum(row.nbytes for row in looked.values()),
        equal_to_base_bytes=sum(nbytes.values()),
        duplicated_bytes=sum(row.duplicated for row in looked.values()),
        pickled_bytes=_total(file for file in closed if file.path.suffix in PICKLED),
        other_format_bytes=_total(file for file in closed if file.path.suffix not in PICKLED),
        equal=tuple(
            EqualTensor(name, nbytes[name], copies[name], adapters[name])
            for name in sorted(nbytes, key=lambda name: (-nbytes[name], name))
        ),
    )


def _duplicate_row(group: Sequence[File]) -> DuplicateRow:
    size = group[0].nbytes
    return DuplicateRow(size, size * (len(group) - 1), tuple(str(file.path) for file in group))
