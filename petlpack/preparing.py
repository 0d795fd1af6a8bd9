"""A run made ready for a codec: matched with its base, digested once, its template and shared parts known."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.decoding import needed, whole_digest
from petlpack.errors import BaseError, RunError, printable
from petlpack.facts import Facts, Score
from petlpack.layouts.base import Run
from petlpack.modules import Dense, Masked
from petlpack.parallel import ordered_map
from petlpack.parts import MAX_SHARED, part_name
from petlpack.plans import Plan
from petlpack.pruning import Pruned, prune
from petlpack.template import NAME, Slot, Template, base_table_json, bind, texts_of, unbind
from petlpack.tensors.base import Base, BaseRef
from petlpack.tensors.casting import can_cast
from petlpack.tensors.names import match_names
from petlpack.tensors.safetensors_file import Header, build_header
from petlpack.tensors.tensor import Tensor

LARGEST_NAMED = 1 << 16
"""Bytes of a kept file in which the task's name is looked for: configs are smaller, tokenizers are not."""


@dataclass(frozen=True)
class SharedTensors:
    """What goes into one shared part of tensors: names (None for one that no file has), tensors, the part's name.

    `like` names for each a tensor of its kind, dtype and shape.
    """

    sha256: str
    names: tuple[str | None, ...]
    like: tuple[str, ...]
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Work:
    """A run made ready for a codec: its tensors, template, what need not be stored, and the digest of the whole."""

    run: Run
    tensors: dict[str, Tensor]
    base: Base | None
    template: Template
    plan: Plan
    decoded: str
    content: dict[str, bytes]
    """Shared parts of bytes by sha256, the template first."""
    parts: tuple[SharedTensors, ...]
    facts: Facts


class Digests:
    """The sha256 of tensors, each computed once: the tasks of one run have most tensors in common."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._known: dict[int, tuple[Tensor, str]] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the digest of each tensor by name."""
        new = [tensor for tensor in tensors.values() if id(tensor) not in self._known]
        for tensor, digest in zip(new, ordered_map(Tensor.sha256, new, self._jobs), strict=True):
            self._known[id(tensor)] = tensor, digest  # the tensor, too: an id is its own only while it lives
        return {name: self._known[id(tensor)][1] for name, tensor in tensors.items()}


def prepare(
    run: Run,
    base: Base | None,
    jobs: int = 1,
    *,
    rule: Mapping[str, Any] | None = None,
    density: float | None = None,
    digests: Digests | None = None,
    base_size: tuple[int, int] | None = None,
) -> Work:
    """Match the run with its base, and digest every tensor once: equal digests are tensors that need no bytes.

    `rule` is the codec's; without one, nothing is put into shared parts of tensors. `density` is as in `encode`,
    `base_size` are the float numbers and the bytes of a base that the run does not need, for the accounting.
    """
    tensors = dict(run.module.tensors)
    refs = _match(tensors, base, jobs) if base is not None else {}
    digests = digests or Digests(jobs)
    known = digests.of(tensors)
    pruned = None if density is None else prune(tensors, refs, needed(base), density, known)
    if pruned is not None:
        tensors = pruned.tensors
        known = digests.of(tensors)
    same = {name for name in refs if _equals_base(refs[name], known[name], tensors[name], needed(base))}
    if rule is not None and base is not None:
        _refuse_stranger(run, refs, base, same)
    if run.omits_base:
        frozen = {(tensors[name].dtype, tensors[name].shape, known[name]) for name in same}
        named = set(texts_of(rule))
        tied = {n for n, t in tensors.items() if (t.dtype, t.shape, known[n]) in frozen and n not in named}
        omitted = same | tied
        tensors = {name: tensor for name, tensor in tensors.items() if name not in omitted}
        refs = {name: ref for name, ref in refs.items() if name in tensors}
    parts: tuple[SharedTensors, ...] = ()
    if rule is not None:
        parts = _parts(run, tensors, digests, same)
        common = {name for part in run.parts for name in part}  # what all tasks of a run have, the base does not code
        refs = {name: ref for name, ref in refs.items() if name in same or name not in common}
    template, name, content = _template(run, tensors, refs, parts, rule, base, jobs)
    plan = _plan(template.slots, known, same, name)
    return Work(
        run=run,
        tensors=tensors,
        base=base,
        template=template,
        plan=plan,
        decoded=whole_digest([known[slot.name] for slot in template.slots]),
        content=content,
        parts=parts,
        facts=_facts(run, template, plan, pruned, base_size, _count_kept(run, tensors, known)),
    )


def _template(
    run: Run,
    tensors: Mapping[str, Tensor],
    refs: dict[str, BaseRef],
    parts: tuple[SharedTensors, ...],
    rule: Mapping[str, Any] | None,
    base: Base | None,
    jobs: int,
) -> tuple[Template, str | None, dict[str, bytes]]:
    """Return the template, the run's name where it is a parameter, and the shared parts of bytes by sha256."""
    head = tensors.keys() - refs.keys() if isinstance(run.module, Dense) else run.module.head & tensors.keys()
    table = _table(base, jobs) if base is not None and refs else None
    contents = {name: _read_kept(path) for name, path in run.kept.items()}
    template = Template(
        headers={file: _header_of(header, tensors) for file, header in run.headers.items()},
        base_name=_plain_text(run.base_name),
        base_table=None if table is None else hashlib.sha256(table).hexdigest(),
        base=refs,
        head=frozenset(head),
        parts=tuple(part.names for part in parts),
        rule=rule,
        files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )
    name = run.name if template.can_bind(run.name) else None
    if name is not None:
        template, contents = _with_named_files(template, contents, name)
    shared = [template.to_json(name), *([] if table is None else [table]), *contents.values()]
    return template, name, {hashlib.sha256(content).hexdigest(): content for content in shared}


def _facts(
    run: Run, template: Template, plan: Plan, pruned: Pruned | None, base_size: tuple[int, int] | None, kept: int | None
) -> Facts:
    """Return what people are told about the task."""
    parameters, nbytes = base_size or (None, None)
    figures = {**run.figures, "kept": kept, "base": parameters, "base_bytes": nbytes}
    return Facts(
        layout=run.layout,
        method=run.method,
        whole=run.whole,
        exact=run.exact and pruned is None,
        run_bytes=template.run_bytes(plan.aliases),
        task=run.task,
        score=None if run.score is None else Score(*run.score),
        note=run.note,
        density=None if pruned is None else pruned.density,
        errors=None if pruned is None else pruned.error,
        figures={name: count for name, count in figures.items() if count is not None},
    )


def _count_kept(run: Run, tensors: Mapping[str, Tensor], digests: Mapping[str, str]) -> int | None:
    """Return how many entries the masks keep, each mask once; None where there is none."""
    masks = {
        (tensor.shape, digests[name]): tensor
        for name, tensor in tensors.items()
        if tensor.dtype.name == "BOOL" and isinstance(run.module, Masked) and name not in run.module.head
    }
    return sum(int(np.count_nonzero(mask.bits())) for mask in masks.values()) if masks else None


def _table(base: Base, jobs: int) -> bytes:
    """Return the table of a base: all its tensors, so that it is one table whatever tasks use of it."""
    return base_table_json(dict(zip(base.tensors, ordered_map(base.ref, base.tensors, jobs), strict=True)))


def _header_of(header: Header, tensors: Mapping[str, Tensor]) -> Header:
    """Return the header of a weight file, without the tensors that are left out of it."""
    if header.entries.keys() <= tensors.keys():
        return header
    rows = {n: (tensors[n].dtype.name, tensors[n].shape, tensors[n].nbytes) for n in header.entries if n in tensors}
    return build_header(rows, header.metadata)


def _parts(
    run: Run, tensors: Mapping[str, Tensor], digests: Digests, same: Collection[str]
) -> tuple[SharedTensors, ...]:
    """Return the shared parts of tensors, without those that equal the base's or an earlier one: they are aliases."""
    known = digests.of(tensors)

    def key(name: str) -> tuple[object, ...]:
        return tensors[name].dtype, tensors[name].shape, known[name]

    seen = {key(name) for name in same if name in tensors}
    parts = []
    for number, part in enumerate(run.parts):
        names: list[str] = []
        for name in part:
            if name and name in tensors and tensors[name].size and key(name) not in seen:
                seen.add(key(name))
                names.append(name)
        hidden = run.hints if number == 0 else {}
        held = [*(tensors[name] for name in names), *hidden.values()]
        if held:
            shas = digests.of({str(i): tensor for i, tensor in enumerate(held)}).values()
            sha256 = part_name([(tensor.dtype, tensor.shape, sha) for tensor, sha in zip(held, shas, strict=True)])
            parts.append(SharedTensors(sha256, (*names, *(None for _ in hidden)), (*names, *hidden), tuple(held)))
    return tuple(parts)


def _refuse_stranger(run: Run, refs: Mapping[str, BaseRef], base: Base, same: Collection[str]) -> None:
    """Raise BaseError where a method's run does not have most of the base, which a method leaves frozen."""
    whole = sum(tensor.size for tensor in base.tensors.values())
    frozen = sum(base.tensors[name].size for name in {refs[name].name for name in same if name in refs})
    if 2 * frozen < whole:
        other = next((name for name in refs if name not in same), "what is not in both")
        raise BaseError(
            f"'{printable(str(run.path))}': {run.method} leaves its base as it is, and the run has only {frozen:,} of "
            f"the {whole:,} weights of '{printable(str(base.path))}'; '{printable(other)}' differs",
            hint="give as base the checkpoint that the run was trained from",
        )


def _with_named_files(template: Template, contents: dict[str, bytes], name: str) -> tuple[Template, dict[str, bytes]]:
    """Return the template and the kept files with the task's name as a parameter of every file that says it."""
    parametric = {file: _without_name(content, name) for file, content in contents.items()}
    named = frozenset(file for file, content in parametric.items() if content is not None)
    contents = {file: parametric[file] or content for file, content in contents.items()}
    files = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    return replace(template, files=files, named=named), contents


def _without_name(content: bytes, name: str) -> bytes | None:
    """Return a text file with the parameter in the place of the name; None where it has none, or would not come back.

    Large files are data, in which a name is a word like any other.
    """
    if len(content) > LARGEST_NAMED or name.encode() not in content or NAME.encode() in content:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    parametric = unbind(text, name)
    return parametric.encode() if parametric != text and bind(parametric, name) == text else None


def _match(tensors: dict[str, Tensor], base: Base, jobs: int) -> dict[str, BaseRef]:
    """Return the base tensor of every tensor that has one; those whose dtypes cannot be compared have none."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    matches = match_names(shapes, {name: tensor.shape for name, tensor in base.tensors.items()})
    usable = {
        name: other
        for name, other in matches.items()
        if tensors[name].size and can_cast(base.tensors[other].dtype, tensors[name].dtype)
    }
    return dict(zip(usable, ordered_map(base.ref, usable.values(), jobs), strict=True))


def _plain_text(name: str | None) -> str | None:
    """Return a base's name as a template keeps it: none where it is no text, for it is only a hint to people."""
    return name if name is not None and name.isprintable() else None


def _read_kept(path: Path | bytes) -> bytes:
    if isinstance(path, bytes):
        return path
    size = path.stat().st_size
    if size > MAX_SHARED:
        raise RunError(f"'{printable(str(path))}' is {size:,} bytes, a kept file has at most {MAX_SHARED:,}")
    return path.read_bytes()


def _plan(slots: tuple[Slot, ...], digests: Mapping[str, str], same: Collection[str], name: str | None) -> Plan:
    """Find the tensors that are the `same` as the base's, and those that equal another of the run (tied weights)."""
    unchanged = {i for i, slot in enumerate(slots) if slot.base is not None and slot.name in same}

    def cheapest_first(i: int) -> tuple[bool, bool, bool, int]:
        return i not in unchanged, slots[i].part is None, slots[i].base is None, i

    aliases: dict[int, int] = {}
    first: dict[tuple[object, ...], int] = {}
    for i in sorted(range(len(slots)), key=cheapest_first):
        other = first.setdefault((slots[i].dtype, slots[i].shape, digests[slots[i].name]), i)
        if other != i and slots[i].size and i not in unchanged and slots[i].part is None:
            aliases[i] = other
    return Plan(slots, frozenset(unchanged), aliases, name)


def _equals_base(ref: BaseRef, digest: str, tensor: Tensor, base: Base) -> bool:
    """Tell whether a tensor is the base's, bit for bit, after rounding to its dtype."""
    if ref.shape != tensor.shape:
        return False
    if ref.dtype == tensor.dtype:
        return ref.sha256 == digest
    start = 0
    for piece in tensor.pieces():
        if not np.array_equal(piece, base.predict(ref, tensor.dtype, start, start + len(piece))):
            return False
        start += len(piece)
    return True
