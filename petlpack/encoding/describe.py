"""Step 4: what a pack says of a run: its template, where its tensors are found, what people are told."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.decoding.tensors import whole_sums
from petlpack.encoding.bind import Bound, plain_text
from petlpack.encoding.match import Matched
from petlpack.encoding.matching.sides import Content
from petlpack.encoding.prune import Loss
from petlpack.encoding.share import SharedTensors
from petlpack.errors import RefusedError, RunError, printable
from petlpack.layouts.run import Run
from petlpack.records.facts import Facts, Score
from petlpack.records.sources import Sources
from petlpack.records.template import NAME, Template, bind, unbind
from petlpack.rules.modules import Dense, Masked
from petlpack.store import MAX_SHARED
from petlpack.tensors.file_names import check_apart, check_file_name
from petlpack.tensors.pinned import State, open_regular, pin_of
from petlpack.tensors.safetensors_file import Header, build_header
from petlpack.tensors.tensor import Sums, Tensor

LARGEST_NAMED = 1 << 16
"""Bytes of a kept file in which the task's name is looked for: configs are smaller, tokenizers are not."""


@dataclass(frozen=True)
class Described:
    """What a task's file and its shared parts of bytes say."""

    template: Template
    sources: Sources
    sums: Sums
    """Of all that decodes."""
    contents: Mapping[str, bytes]
    """Shared parts of bytes by sha256, the template first."""
    facts: Facts

    @property
    def template_sha256(self) -> str:
        """The name of the template's shared part."""
        return next(iter(self.contents))

    @property
    def read_first(self) -> tuple[str, ...]:
        """The shared parts of bytes that a reader parses: the template, and the table of the base that it names."""
        table = self.template.base_table
        return self.template_sha256, *(() if table is None else (table,))


def describe(
    run: Run,
    matched: Matched,
    parts: tuple[SharedTensors, ...],
    rule: Mapping[str, Any] | None,
    loss: Loss | None,
    bound: Bound | None,
) -> Described:
    """Describe a run that was matched, pruned, shared and bound; raises RunError for a kept file that is too large."""
    template, name, contents = _template(run, matched, parts, rule, bound)
    sources = _sources(template, matched, name)
    return Described(
        template=template,
        sources=sources,
        sums=whole_sums([matched.sums[slot.name] for slot in template.slots]),
        contents=contents,
        facts=_facts(run, template.run_bytes(sources.aliases), loss, _figures(run, matched, template, bound)),
    )


def _template(
    run: Run,
    matched: Matched,
    parts: tuple[SharedTensors, ...],
    rule: Mapping[str, Any] | None,
    bound: Bound | None,
) -> tuple[Template, str | None, dict[str, bytes]]:
    """Return the template, the run's name where it is a parameter, and the shared parts of bytes by sha256."""
    tensors, refs = matched.tensors, matched.refs
    head = tensors.keys() - refs.keys() if isinstance(run.module, Dense) else run.module.head & tensors.keys()
    table = bound.table if bound is not None and refs else None
    _check_files(run)
    contents = _read_kept(run.kept)
    template = Template(
        headers={file: _header_of(header, tensors) for file, header in run.headers.items()},
        base_name=plain_text(run.base_name),
        origin=None if bound is None else bound.origin,
        base_table=None if bound is None or table is None else bound.origin.sha256,
        base=refs,
        adapts=None if bound is None else bound.adapts,
        head=frozenset(head),
        parts=tuple(part.names for part in parts),
        rule=rule,
        files=_digests(contents),
    )
    name = run.name if template.can_bind(run.name) else None
    if name is not None:
        template, contents = _with_named_files(template, contents, name, _common(run, name))
    texts = {hashlib.sha256(text).hexdigest(): text for text in (template.to_json(name), table) if text is not None}
    return template, name, texts | {template.files[file]: content for file, content in contents.items()}


def _digests(contents: Mapping[str, bytes]) -> dict[str, str]:
    """Return the sha256 of each content; what several names lead to is hashed once."""
    once = {id(content): content for content in contents.values()}
    digests = {key: hashlib.sha256(content).hexdigest() for key, content in once.items()}
    return {name: digests[id(content)] for name, content in contents.items()}


def _common(run: Run, name: str) -> set[str]:
    """Return the kept files that all tasks of a run have: with the name of one in them they would be one for each."""
    return {
        file for file, path in run.kept.items() if run.task and isinstance(path, Path) and unbind(file, name) == file
    }


def _with_named_files(
    template: Template, contents: dict[str, bytes], name: str, common: Collection[str]
) -> tuple[Template, dict[str, bytes]]:
    """Return the template and the kept files with the name as a parameter of each file of its own that says it."""
    parametric = {file: None if file in common else _without_name(content, name) for file, content in contents.items()}
    named = frozenset(file for file, content in parametric.items() if content is not None)
    contents = {file: parametric[file] or content for file, content in contents.items()}
    return replace(template, files=_digests(contents), named=named), contents


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


def _check_files(run: Run) -> None:
    """Raise RunError for files that a directory cannot have everywhere under their names."""
    try:
        for file, header in run.headers.items():
            check_file_name(file)
            if header.prefix:
                check_file_name(header.prefix.removesuffix("/"))
        for file in run.kept:
            check_file_name(file)
        check_apart([*run.headers, *run.kept])
    except RefusedError as error:
        raise RunError(
            f"'{printable(str(run.path))}' cannot come back everywhere: {error}",
            hint="rename the file; one beside the weights can also be left out with --drop GLOB (drop= in Python)",
            code=error.code,
        ) from error


def _read_kept(kept: Mapping[str, Path | bytes]) -> dict[str, bytes]:
    """Return the contents of kept files; what several names lead to is in memory once, as it is on the disk."""
    known: dict[State, bytes] = {}
    return {name: of if isinstance(of, bytes) else _read_once(of, known) for name, of in kept.items()}


def _read_once(path: Path, known: dict[State, bytes]) -> bytes:
    with open_regular(path) as file:
        pin = pin_of(path, file)
        size = pin.state.nbytes
        if size > MAX_SHARED:
            raise RunError(
                f"'{printable(str(path))}' is {size:,} bytes, a kept file can have at most {MAX_SHARED:,}",
                hint=f"leave it out with --drop {printable(shlex.quote(path.name))}",
            )
        if pin.state not in known:
            known[pin.state] = pin.read_of(file, 0, size).tobytes()
        return known[pin.state]


def _header_of(header: Header, tensors: Mapping[str, Tensor]) -> Header:
    """Return the header of a weight file, without the tensors that are left out of it."""
    if header.tensors.keys() <= tensors.keys():
        return header
    held = {name: tensors[header.prefix + name] for name in header.entries if header.prefix + name in tensors}
    rows = {name: (tensor.dtype.name, tensor.shape, tensor.nbytes) for name, tensor in held.items()}
    return replace(build_header(rows, header.metadata), prefix=header.prefix)


def _sources(template: Template, matched: Matched, name: str | None) -> Sources:
    """Find the tensors that are the base's, and those that equal another of the run (tied weights)."""
    slots = template.slots
    unchanged = {i for i, slot in enumerate(slots) if slot.base is not None and slot.name in matched.unchanged}

    def cheapest_first(i: int) -> tuple[bool, bool, bool, int]:
        return i not in unchanged, slots[i].part is None, slots[i].base is None, i

    aliases: dict[int, int] = {}
    first: dict[Content, int] = {}
    for i in sorted(range(len(slots)), key=cheapest_first):
        other = first.setdefault(matched.content(slots[i].name), i)
        if other != i and slots[i].size and i not in unchanged and slots[i].part is None:
            aliases[i] = other
    return Sources(slots, frozenset(unchanged), aliases, name)


def _facts(run: Run, run_bytes: int, loss: Loss | None, figures: Mapping[str, int]) -> Facts:
    """Return what people are told about the task."""
    return Facts(
        layout=run.layout,
        method=run.method,
        whole=run.whole,
        exact=run.exact and (loss is None or loss.exact),
        run_bytes=run_bytes,
        task=run.task,
        score=None if run.score is None else Score(*run.score),
        note=run.note,
        density=None if loss is None else loss.density,
        errors=None if loss is None else loss.errors,
        figures={**run.figures, **figures},
    )


def _figures(run: Run, matched: Matched, template: Template, bound: Bound | None) -> dict[str, int]:
    """Count what only the encoder knows: entries that masks keep, and the size of a base that no template names."""
    kept = _count_kept(run, matched)
    figures = {} if kept is None else {"kept": kept}
    if bound is not None and template.base_table is None:
        figures |= {"base": bound.parameters, "base_bytes": bound.nbytes}
    return figures


def _count_kept(run: Run, matched: Matched) -> int | None:
    """Return how many entries the masks keep, each mask once; None where there is none."""
    masks = {
        matched.content(name): tensor
        for name, tensor in matched.tensors.items()
        if tensor.dtype.name == "BOOL" and isinstance(run.module, Masked) and name not in run.module.head
    }
    return sum(int(np.count_nonzero(mask.bits())) for mask in masks.values()) if masks else None
