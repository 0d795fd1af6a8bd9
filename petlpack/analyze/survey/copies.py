"""Which files of a tree are there twice, which tensors are, and which of these are their base's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from petlpack.analyze.survey.bases import ComparedBases, tensor_spans
from petlpack.analyze.survey.equality import Span
from petlpack.analyze.survey.kinds import KINDS, WEIGHT_KINDS
from petlpack.analyze.survey.tree import File, Key, Tree
from petlpack.errors import Problem
from petlpack.tensors.safetensors_file import Header

Equal = Callable[[Sequence[Span]], list[list[int]]]
"""Returns the spans that are equal, as lists of indices."""


@dataclass(frozen=True)
class Copies:
    """Groups of equal files, the one to keep first, and for each of the others which that is."""

    groups: tuple[tuple[File, ...], ...]
    kept: Mapping[Key, Key]


@dataclass(frozen=True)
class Looked:
    """What was found in the tensors of one file, in bytes."""

    nbytes: int
    equal: tuple[tuple[str, int], ...]
    """The tensors that equal the base's, with their bytes."""
    duplicated: int

    @property
    def equal_bytes(self) -> int:
        """Bytes of the tensors that equal the base's."""
        return sum(nbytes for _, nbytes in self.equal)


@dataclass(frozen=True)
class _Member:
    """A tensor of the tree, and its namesake in the base if that has the same dtype and shape."""

    file: Key
    name: str
    span: Span
    namesake: Span | None


def equal_files(files: Iterable[File], equal: Equal, bases: ComparedBases) -> Copies:
    """Find files that are equal; of each group the one to keep is the base's, else a run's weights, else the first."""
    compared = [file for file in files if file.nbytes and file.kind not in ("pack", "cache")]
    groups = []
    for group in equal([Span(file.path, 0, file.nbytes) for file in compared]):
        order = sorted(group, key=lambda i: (compared[i].key not in bases.keys, _rank(compared[i].kind), i))
        groups.append(tuple(compared[i] for i in order))
    groups.sort(key=lambda group: -group[0].nbytes * (len(group) - 1))
    return Copies(tuple(groups), {file.key: group[0].key for group in groups for file in group[1:]})


def _rank(kind: str) -> int:
    """Order kinds by how much a file of them is worth keeping: training state goes first, then other checkpoints."""
    return {"training state": len(KINDS) + 1, "other checkpoints": len(KINDS)}.get(kind, KINDS.index(kind))


def read_headers(files: Iterable[File], tree: Tree) -> tuple[dict[Key, Header], dict[Key, Problem]]:
    """Return the headers of safetensors weight files, and what is wrong with those that are broken."""
    headers: dict[Key, Header] = {}
    broken: dict[Key, Problem] = {}
    for file in files:
        if file.kind in WEIGHT_KINDS and file.path.suffix == ".safetensors":
            header = tree.header(file.path)
            if isinstance(header, Problem):
                broken[file.key] = header
            else:
                headers[file.key] = header
    return headers, broken


def look_into(
    files: Mapping[Key, File], headers: Mapping[Key, Header], copies: Copies, equal: Equal, bases: ComparedBases
) -> dict[Key, Looked]:
    """Compare the tensors of safetensors files with each other and with their bases.

    What equals a tensor that is in a base is a duplicate of that; of others one is kept, if it can be one outside of
    other checkpoints. A file that is a copy of another is not read again: what of it does not equal the base is
    duplicated.
    """
    again = {key: kept for key, kept in copies.kept.items() if key in headers and kept in headers}
    compared = sorted((files[key] for key in headers if key not in again), key=lambda file: _rank(file.kind))
    members = _members(compared, headers, bases)
    same, duplicated = _verdicts(members, equal, bases)
    by_file: dict[Key, list[int]] = {key: [] for key in headers}
    for i, member in enumerate(members):
        by_file[member.file].append(i)
    looked = {
        key: Looked(
            nbytes=sum(members[i].span.nbytes for i in rows),
            equal=tuple((members[i].name, members[i].span.nbytes) for i in rows if i in same),
            duplicated=sum(members[i].span.nbytes for i in rows if i in duplicated),
        )
        for key, rows in by_file.items()
    }
    for key, kept in again.items():
        looked[key] = replace(looked[kept], duplicated=looked[kept].nbytes - looked[kept].equal_bytes)
    return looked


def _members(files: Sequence[File], headers: Mapping[Key, Header], bases: ComparedBases) -> list[_Member]:
    """List the tensors of some files; the names of all files of a directory are matched with the base's together."""
    folders: dict[Path, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for file in files:
        shapes = {name: entry.shape for name, entry in headers[file.key].entries.items()}
        folders[file.path.parent].update(shapes)
    known: dict[Hashable, dict[str, str]] = {}
    """Runs of one kind have the same names, which take longer to match than to compare."""
    members = []
    for file in files:
        base = bases.of(file)
        spans = tensor_spans(file.path, headers[file.key])
        if base is None:
            members += [_Member(file.key, name, span, None) for name, span in spans.items()]
            continue
        shapes = folders[file.path.parent]
        alike = (base.path, tuple(shapes.items()))
        if alike not in known:
            known[alike] = base.namesakes(shapes)
        for name, span in spans.items():
            namesake = base.spans.get(known[alike].get(name, ""))
            if namesake is not None and (namesake.nbytes, namesake.like) != (span.nbytes, span.like):
                namesake = None
            members.append(_Member(file.key, name, span, namesake))
    return members


def _verdicts(members: Sequence[_Member], equal: Equal, bases: ComparedBases) -> tuple[set[int], set[int]]:
    """Return which tensors equal their namesakes in the base, and which of the others stand elsewhere, too."""
    namesakes = list(dict.fromkeys(member.namesake for member in members if member.namesake is not None))
    same: set[int] = set()
    duplicated: set[int] = set()
    for group in equal([*(member.span for member in members), *namesakes]):
        members_in_group = [i for i in group if i < len(members)]
        based = {namesakes[i - len(members)] for i in group if i >= len(members)}
        same.update(i for i in members_in_group if members[i].namesake in based)
        rest = [i for i in members_in_group if i not in same and members[i].file not in bases.keys]
        duplicated.update(rest if len(rest) < len(members_in_group) else rest[1:])
    return same, duplicated
