"""What tasks of one kind have in common: weight files, tensor names, shapes, base, rule, kept files.

A template is written once per pack and named by its sha256, so a task says 32 bytes instead of kilobytes. The task's
own name inside keys and files is a parameter. Its JSON is laid down in formats/template.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from petlpack.errors import DamageError, RefusedError, printable, reason
from petlpack.records.base_table import BaseTable, parameters
from petlpack.records.canonical import canonical_json, parse_sha256, read_canonical
from petlpack.records.slot import Slot, kind_of
from petlpack.records.template_parts import (
    Adapts,
    Origin,
    parse_adapts,
    parse_file_name,
    parse_names,
    parse_origin,
    parse_text,
    parse_weights_header,
)
from petlpack.records.views import parse_view, view_json
from petlpack.tensors.casting import can_cast
from petlpack.tensors.file_names import check_apart
from petlpack.tensors.safetensors_file import Entry, Header, MalformedError
from petlpack.tensors.views import BaseRef, View

NAME = "{name}"
"""What stands in a template for the task's own name."""

PICKLED = (".bin", ".pt", ".pth")
"""Weight files with these endings are state dicts as torch saves them; all others are safetensors."""

_TASK_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")

_FIELDS = {"weights", "base_name", "origin", "base", "adapts", "head", "parts", "rule", "files", "named"}


@dataclass(frozen=True)
class Template:
    """The common part of tasks. `headers` holds the safetensors header of each weight file, verbatim."""

    headers: Mapping[str, Header]
    base_name: str | None = None
    origin: Origin | None = None
    base_table: str | None = None
    """sha256 of the shared part that holds the base's tensors and their digests."""
    base: Mapping[str, View] = field(default_factory=dict)
    """What of the base predicts a tensor, for those tensors that have something there."""
    base_parameters: int | None = None
    """Numbers of the whole base, for accounting."""
    adapts: Adapts | None = None
    head: frozenset[str] = frozenset()
    parts: tuple[tuple[str | None, ...], ...] = ()
    """The tensors that stand in shared parts, in the parts' order; None for one that only helps to decode others."""
    rule: Mapping[str, Any] | None = None
    """How dense modules are rebuilt from the tensors; its codec reads it."""
    files: Mapping[str, str] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    """Kept files in which the task's name is a parameter."""

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every tensor, in the order of the weight files and of the bytes in them."""
        return tuple(self._slots())

    @property
    def entries(self) -> dict[str, Entry]:
        """What the header of its weight file says of each tensor."""
        return {name: entry for header in self.headers.values() for name, entry in header.tensors.items()}

    @property
    def needs_base(self) -> bool:
        """Whether tasks of this template need their base: exactly if it says of a tensor that the base predicts it.

        Whether a task stores that tensor, has it unchanged, or as one that equals another, makes no difference, and no
        base that an adapter only adapts is needed.
        """
        return bool(self.base)

    @property
    def base_refs(self) -> tuple[BaseRef, ...]:
        """The tensors of the base that decoding needs, each once, by name."""
        return tuple(sorted({ref for view in self.base.values() for ref in view.refs}, key=lambda ref: ref.name))

    def _slots(self) -> Iterator[Slot]:
        places = {name: (k, i) for k, part in enumerate(self.parts) for i, name in enumerate(part) if name is not None}
        for header in self.headers.values():
            for name, entry in sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
                size = (entry.stop - entry.start) // entry.held_as.itemsize
                yield Slot(
                    name,
                    entry.held_as,
                    entry.held_shape,
                    size,
                    self.base.get(name),
                    name in self.head,
                    places.get(name),
                    kind_of(name),
                )

    def ties(self, aliases: Mapping[int, int]) -> dict[str, str]:
        """Return the tensors of pickled files that are one with another, which has the same bytes.

        Where a rule made the tensors, it is all that are equal by `aliases`; else the files' headers say it.
        """
        if self.rule is not None:
            slots = self.slots
            return {slots[i].name: slots[one].name for i, one in aliases.items() if max(i, one) < len(slots)}
        pickled = [header for file, header in self.headers.items() if file.endswith(PICKLED)]
        return {h.prefix + name: h.prefix + one for h in pickled for name, one in h.ties.items()}

    def run_bytes(self, aliases: Mapping[int, int]) -> int:
        """Return the bytes of the run's tensors; in a pickled file, those that are one stand once."""
        ties, total = self.ties(aliases), 0
        for file, header in self.headers.items():
            sizes = {name: entry.stop - entry.start for name, entry in header.tensors.items()}
            if file.endswith(PICKLED):
                sizes = {ties.get(name, name): size for name, size in sizes.items()}
            total += sum(sizes.values())
        return total

    @property
    def needs(self) -> list[str]:
        """The shared parts that this template names: the base's table and the kept files."""
        return [*([self.base_table] if self.base_table else []), *self.files.values()]

    def to_json(self, name: str | None = None) -> bytes:
        """Return the canonical JSON of this template, with the task's `name` as a parameter."""

        def text(value: str) -> str:
            return value if name is None else unbind(value, name)

        views = sorted(((text(name), view) for name, view in self.base.items()), key=lambda pair: pair[0])
        base = {"table": self.base_table, "tensors": [[name, view_json(view)] for name, view in views]}
        table = {
            "weights": [
                [text(file), text(header.text if name is None else header.text.rstrip(" ")), text(header.prefix)]
                for file, header in self.headers.items()
            ],
            "base_name": self.base_name,
            "origin": None if self.origin is None else vars(self.origin),
            "base": base if self.base_table else None,
            "adapts": None if self.adapts is None else {**vars(self.adapts), "tensors": list(self.adapts.tensors)},
            "head": sorted(map(text, self.head)),
            "parts": _each_text([list(part) for part in self.parts], text),
            "rule": _each_text(self.rule, text),
            "files": {text(file): digest for file, digest in self.files.items()},
            "named": sorted(map(text, self.named)),
        }
        return canonical_json(table)

    def can_bind(self, name: str | None) -> bool:
        """Tell whether the template comes back from its JSON with `name` as a parameter."""
        if name is None or not _TASK_NAME.fullmatch(name) or NAME.encode() in self.to_json():
            return False
        return all(header.text == _padded(header.text.rstrip(" ")) for header in self.headers.values())


def unbind(text: str, name: str) -> str:
    """Return a text with the parameter in the place of the task's name, where that stands by itself."""
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", NAME, text)


def bind(text: str, name: str) -> str:
    """Return a text with the task's name in the place of the parameter."""
    return text.replace(NAME, name)


def parse_template(text: bytes, where: str, name: str | None, read_table: Callable[[str], BaseTable]) -> Template:
    """Parse and check the JSON of a template read from `where`, for the task called `name`; raises DamageError.

    `read_table` gives the table of a base by its sha256.
    """
    try:
        table, canonical = _parse_json(text)
        if not isinstance(table, dict):
            raise RefusedError(f"expected an object, got {type(table).__name__}", code="template-fields")
        if set(table) != _FIELDS:
            odd = min(map(str, set(table) ^ _FIELDS))
            raise RefusedError(f"missing or unexpected field '{odd}'", code="template-fields")
        if canonical != text:
            raise RefusedError("not canonical JSON", code="template-canonical")
        _check_lists(table)
        if name is not None:
            _check_task_name(name)
            _check_growth(text, name)
            table = _bound(table, name)
        template = _from_table(table)
        if table["base"] is not None:
            sha256 = parse_sha256(table["base"]["table"])
            refs = read_table(sha256)
            rows = table["base"]["tensors"]
            base = {parse_text(tensor): parse_view(view, refs) for tensor, view in rows}
            if len(base) != len(rows) or set(table["base"]) != {"table", "tensors"}:
                code = "template-twice" if len(base) != len(rows) else "template-fields"
                twice = "a tensor is predicted by two views of the base"
                raise RefusedError(
                    twice if len(base) != len(rows) else "base must have the fields table and tensors", code=code
                )
            template = replace(template, base_table=sha256, base=base, base_parameters=parameters(refs))
        _check(template)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MalformedError) as error:
        code = reason(error, "template-fields")
        raise DamageError(f"{where} is not a valid template: {printable(str(error))}", code=code) from error
    return template


def _parse_json(text: bytes) -> tuple[Any, bytes]:
    """Return a value with its canonical JSON, which floats and half a character do not have."""
    try:
        return read_canonical(text)
    except ValueError as error:
        raise RefusedError(str(error), code="template-json") from error


def _from_table(table: Mapping[str, Any]) -> Template:
    base_name, rule = table["base_name"], table["rule"]
    if rule is not None and not isinstance(rule, dict):
        raise RefusedError(f"rule must be an object or null, got {type(rule).__name__}", code="template-fields")
    weights = [(parse_file_name(file), parse_weights_header(text, prefix)) for file, text, prefix in table["weights"]]
    template = Template(
        headers=dict(weights),
        base_name=None if base_name is None else parse_text(base_name),
        origin=parse_origin(table["origin"]),
        adapts=parse_adapts(table["adapts"]),
        head=frozenset(parse_names(table["head"])),
        parts=tuple(tuple(None if name is None else parse_text(name) for name in part) for part in table["parts"]),
        rule=rule,
        files={parse_file_name(name): parse_sha256(digest) for name, digest in table["files"].items()},
        named=frozenset(parse_names(table["named"])),
    )
    if len(weights) != len(template.headers):
        raise RefusedError("two weight files have the same name", code="template-twice")
    return template


def _check_lists(table: Mapping[str, Any]) -> None:
    """Check that lists are lists, and sorted where they stand for sets: a template has one text."""
    pairs = [] if table["base"] is None else table["base"]["tensors"]
    if not all(isinstance(rows, list) for rows in (table["weights"], table["parts"], pairs)):
        raise RefusedError("weights, parts and the base's tensors must be lists", code="template-fields")
    if not all(isinstance(row, list) for row in [*table["parts"], *pairs]):
        raise RefusedError("each row of parts and of the base's tensors must be a list", code="template-fields")
    adapts = table["adapts"]
    names: Any = adapts.get("tensors") if isinstance(adapts, dict) else []
    for rows in (table["head"], table["named"], [row[:1] for row in pairs], names):
        if rows != sorted(rows):
            code = "template-canonical" if isinstance(rows, list) else "template-fields"
            wrong = "not sorted" if isinstance(rows, list) else "not a list"
            raise RefusedError(f"head, named, adapts or the base's tensors: {wrong}", code=code)


def _check(template: Template) -> None:
    names = [slot.name for slot in template.slots]
    if len(set(names)) != len(names):
        raise RefusedError("two weight files have a tensor of the same prefix and name", code="template-twice")
    if template.headers.keys() & template.files.keys():
        twice = min(template.headers.keys() & template.files.keys())
        raise RefusedError(f"'{twice}' is both a weight file and a kept file", code="template-twice")
    check_apart([*template.headers, *template.files])
    if template.named - template.files.keys():
        odd = min(template.named - template.files.keys())
        raise RefusedError(f"'{odd}' is in named, but is not a kept file", code="template-reference")
    shared = [name for part in template.parts for name in part if name is not None]
    if len(set(shared)) != len(shared) or set(shared) - set(names) or "" in shared:
        code = "template-twice" if len(set(shared)) != len(shared) else "template-reference"
        twice = "a tensor is in the shared parts twice"
        raise RefusedError(
            twice if len(set(shared)) != len(shared) else "a shared part has a tensor that no weight file has",
            code=code,
        )
    for slot in template.slots:
        base = slot.base
        if base is None:
            continue
        resized = len(base.shape) == len(slot.shape) >= 2 and base.shape[1:] == slot.shape[1:]
        if base.shape != slot.shape and not resized:
            raise RefusedError(
                f"tensor '{slot.name}' is {list(slot.shape)}, its base tensor {list(base.shape)}",
                code="template-base-shape",
            )
        if not can_cast(base.dtype, slot.dtype):
            raise RefusedError(
                f"tensor '{slot.name}' is {slot.dtype.name}, to which its base's {base.dtype.name} cannot be cast",
                code="template-base-shape",
            )
        if slot.part is not None:
            raise RefusedError(f"tensor '{slot.name}' is both in a shared part and in the base", code="part-elsewhere")


_AS_IT_IS = ("base_name", "origin", "base", "adapts", "files")
"""Fields in whose values the task's name is no parameter."""


def _bound(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the fields of a template with the task's name in them; headers get their spaces back."""

    def text(value: str) -> str:
        return bind(value, name)

    bound = {key: _each_text(value, text) for key, value in table.items() if key not in _AS_IT_IS}
    if len({text(file) for file in table["files"]}) != len(table["files"]):
        raise RefusedError("two kept files have the same name", code="template-twice")
    bound["weights"] = [[file, _padded(header), prefix] for file, header, prefix in bound["weights"]]
    return {
        **bound,
        **{key: table[key] for key in _AS_IT_IS},
        "base": _bound_base(table["base"], text),
        "files": {text(file): digest for file, digest in table["files"].items()},
    }


def _bound_base(base: Mapping[str, Any] | None, text: Callable[[str], str]) -> dict[str, Any] | None:
    """Return what comes from the base with the task's name in the tensors' names; views are the base's own."""
    if base is None:
        return None
    return {**base, "tensors": [[*_each_text(row[:1], text), *row[1:]] for row in base["tensors"]]}


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every text in it changed, but for the keys of objects."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    return value


def texts_of(value: object) -> Iterator[str]:
    """Yield every text in a JSON value: of a rule, the names of its tensors among them."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from texts_of(item)


def _padded(header: str) -> str:
    return header + " " * (-len(header.encode()) % 8)


FREE_GROWTH, GROWTH = 1 << 16, 8
"""Bytes that a template may have with the task's name in it, and those for each byte that it has without."""


def _check_growth(text: bytes, name: str) -> None:
    """Check how large a template becomes by the task's name, before anything of it is put there."""
    grown, most = len(text) + text.count(NAME.encode()) * (len(name) - len(NAME)), FREE_GROWTH + GROWTH * len(text)
    if grown > most:
        raise RefusedError(
            f"with the task's name it has {grown:,} bytes, expected at most {most:,}", code="name-growth"
        )


def _check_task_name(name: object) -> None:
    if not isinstance(name, str) or not _TASK_NAME.fullmatch(name):
        raise RefusedError(f"invalid task name {name!r}", code="template-name")
