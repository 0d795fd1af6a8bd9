"""The tasks of a pack as accounting reads them: manifests only, and what tasks have in common worked out once."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

from petlpack import container
from petlpack.codecs.registry import codec
from petlpack.codecs.units import Role, Unit
from petlpack.container import Container, Manifest
from petlpack.decoding.templates import Templates
from petlpack.errors import DamageError, PetlpackError, kept, printable
from petlpack.parallel import Progress
from petlpack.records.base_table import BaseTable
from petlpack.records.facts import Facts
from petlpack.records.slot import Slot, with_kinds
from petlpack.records.sources import Sources, parse_sources
from petlpack.records.template import Template, texts_of
from petlpack.sections.parts import Part
from petlpack.sections.read import check_capacity
from petlpack.sections.shared import find_shared
from petlpack.store import Store, shared_file, task_file
from petlpack.store.replaced import settled
from petlpack.tensors.base import Base

LEAST_FILE = 256
"""Bytes of the smallest file: a header and a manifest take more."""


@dataclass(frozen=True)
class SectionBytes:
    """One section: its name, that of its kind (without the number), role, coder, dtype, elements, bytes in the file."""

    name: str
    kind: str
    role: Role
    coder: str
    dtype: str
    count: int
    nbytes: int


@dataclass(frozen=True)
class PartBytes:
    """A shared part of tensors as accounting sees it: its sections, and the unit that each is of."""

    sections: tuple[SectionBytes, ...]
    units: Mapping[str, Unit]


@dataclass(frozen=True)
class Counts:
    """What is counted of every task of a kind, in numbers and bytes; masks and the head apart."""

    numbers: int
    """Numbers of the method, those in shared parts included."""
    nbytes: int
    own: int
    """Those of them in the task's own file."""
    entries: int
    """Entries of masks."""
    head: int
    from_base: int
    """Numbers that the base has, too."""


class TaskKind:
    """What tasks of one template, plan and codec have in common: tensors, units, and what is counted of them.

    Names stand in it as in the template, the task's own as `{name}`.
    """

    def __init__(self, template: Template, params: Mapping[str, Any], codec_id: str) -> None:
        self.template = template
        self.sources: Sources = parse_sources(params, template.slots)
        self._codec = codec(codec_id)
        self.picks = self._codec.picks
        self.run_bytes = template.run_bytes(self.sources.aliases)
        self.stored: tuple[Slot, ...] = tuple(self.sources.stored)
        self.elements = sum(slot.size for slot in self.stored)
        self.shared: tuple[Slot, ...] = tuple(slot for slot in template.slots if slot.part is not None)
        self._roles: dict[tuple[str, ...], Mapping[str, str]] = {}

    def roles_of(self, shared: tuple[str, ...]) -> Mapping[str, str]:
        """Return what each part is to a task that names these parts, by sha256, the template first."""
        if shared not in self._roles:
            roles = {shared[0]: "template"}
            for number, sha256 in enumerate(shared[1:], 1):
                roles.setdefault(sha256, f"tensors {number}")
            if self.template.base_table is not None:
                roles.setdefault(self.template.base_table, "base table")
            for name, sha256 in self.template.files.items():
                roles.setdefault(sha256, f"file {name}")
            self._roles[shared] = roles
        return self._roles[shared]

    @cached_property
    def units(self) -> Mapping[str, Unit]:
        """The unit that each section is of, by the section's name."""
        units = self._codec.units(with_kinds(self.stored, self._codec.kinds(self.template.rule)))
        return {name: unit for unit in units for name in self._codec.sections(unit)}

    @cached_property
    def head(self) -> tuple[Slot, ...]:
        """The stored tensors of the head: none where no tensor is anything else, for then it is not known which are."""
        known = not all(slot.head for slot in self.template.slots)
        return tuple(slot for slot in self.stored if slot.head and known)

    @cached_property
    def section_roles(self) -> Mapping[str, Role]:
        """The role of each section, by its name."""
        units = {id(unit): unit for unit in self.units.values()}.values()
        roles = {name: role for unit in units for name, role in self._codec.sections(unit).items()}
        return {name: "own" if role == "head" and not self.head else role for name, role in roles.items()}

    @cached_property
    def counts(self) -> Counts:
        """What is counted of every task of this kind, in the manner of papers."""
        stored = [slot for slot in (*self.stored, *self.shared) if not (slot.head and self.head)]
        method = [slot for slot in stored if slot.dtype.name != "BOOL"]
        if self.template.rule is not None:  # of a whole model, only what the method made
            named = set(texts_of(self.template.rule))
            method = [slot for slot in method if slot.name in named]
        return Counts(
            numbers=sum(slot.size for slot in method),
            nbytes=sum(slot.nbytes for slot in method),
            own=sum(slot.size for slot in method if slot.part is None),
            entries=sum(slot.size for slot in stored if slot.dtype.name == "BOOL"),
            head=sum(slot.size for slot in self.head),
            from_base=sum(slot.size for slot in self.template.slots if slot.base is not None),
        )


@dataclass(frozen=True)
class Opened:
    """One task as it was read: what its checked manifest says, without its header, for packs have thousands."""

    name: str
    nbytes: int
    """Bytes of its file."""
    codec: str
    facts: Facts
    kind: TaskKind
    shared: tuple[str, ...]
    """The template and the shared parts of tensors, as the manifest names them."""
    sections: tuple[SectionBytes, ...]
    roles: Mapping[str, str]
    """What each of its parts is to it: the template (which is first), the base table, a file, tensors; by sha256."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The shared parts that it needs, each once, the template first."""
        return tuple(self.roles)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The shared parts of tensors that it needs."""
        return self.shared[1:]

    @property
    def method(self) -> str:
        """How the run was trained, in words."""
        return self.facts.method


class Reader:
    """Reads tasks and shared parts of one pack; each template, plan, table and part once."""

    def __init__(self, store: Store, base: Base | None = None) -> None:
        self.store, self.base = store, base
        self._templates = Templates(store)
        self._kinds: dict[tuple[str, ...], TaskKind] = {}
        self._parts: dict[str, PartBytes] = {}
        self._sizes: dict[str, int] = {}

    def open(self, name: str) -> Opened:
        """Read a task; raises PetlpackError where it, its template or a shared part is not as it was written."""
        path = self.store.task_path(name)
        if os.path.islink(path):  # noqa: PTH114 - a fifth of pathlib's time, for each of thousands
            raise DamageError(
                f"'{printable(str(path))}' is a symbolic link, expected a file",
                hint="replace the link with a copy of the file",
                code="file-link",
            )
        file = container.read(path)
        manifest = file.manifest
        if manifest.kind != "task" or not manifest.shared:
            raise DamageError(f"'{printable(str(file.path))}' is not a task's file", code="file-kind")
        kind = self._kind(manifest)
        if len(kind.template.parts) != len(manifest.shared) - 1:
            raise DamageError(
                f"task '{name}' has {len(manifest.shared) - 1} shared parts of tensors, "
                f"but its template has {len(kind.template.parts)}",
                code="part-tensors",
            )
        for row in manifest.sections:
            if row.name not in kind.units or row.count > kind.units[row.name].size:
                code = "section-names" if row.name not in kind.units else "section-elements"
                raise DamageError(f"task '{name}' has a section '{row.name}' that its tensors do not need", code=code)
        sections, parts = _sections(file, kind.section_roles), kind.roles_of(manifest.shared)
        facts = Facts.parse(manifest.facts)
        task = Opened(name, file.nbytes, manifest.codec, facts, kind, manifest.shared, sections, parts)
        for sha256 in task.parts:
            if self.part_bytes(sha256) < LEAST_FILE:
                raise DamageError(
                    f"shared part {sha256} has {self._sizes[sha256]} bytes, expected at least {LEAST_FILE}",
                    code="file-size",
                )
        return task

    def read_all(self, progress: Progress | None = None) -> Inventory:
        """Read every task; damaged ones are named with the reason, and the rest is read."""
        tasks: list[Opened] = []
        damaged: dict[str, Exception] = {}
        names = self.store.task_names()
        for done, name in enumerate(names):
            if progress is not None:
                progress(done, len(names))
            try:
                tasks.append(settled(self.store.task_path(name), partial(self._open_whole, name)))
            except (PetlpackError, OSError) as error:
                if os.path.lexists(self.store.task_path(name)):  # else it was removed meanwhile
                    damaged[name] = kept(error)
        files = dict(self.store.files())
        tasks = [task for task in tasks if task_file(task.name) in files]  # some may have been removed meanwhile
        users, roles = users_of(tasks)
        return Inventory(
            tasks=tuple(tasks),
            damaged=damaged,
            parts={sha256: files.get(shared_file(sha256), 0) for sha256 in {*self.store.shared_names(), *users}},
            users=users,
            roles=roles,
            tensors={sha256: self._parts[sha256] for sha256 in users if sha256 in self._parts},
            disk_bytes=sum(files.values()),
            damaged_bytes=sum(files.get(task_file(name), 0) for name in damaged),
        )

    def _open_whole(self, name: str) -> Opened:
        """Read a task and the parts of tensors that it needs."""
        task = self.open(name)
        for sha256 in task.tensors:
            self.part(sha256)
        return task

    def part_bytes(self, sha256: str) -> int:
        """Return the bytes of a shared part's file; raises DamageError where it is missing."""
        if sha256 not in self._sizes:
            self._sizes[sha256] = find_shared(self.store, sha256).stat().st_size
        return self._sizes[sha256]

    def part(self, sha256: str) -> PartBytes:
        """Read what is in a shared part of tensors; raises PetlpackError where its file is not as it was written."""
        if sha256 not in self._parts:
            path = self.store.shared_path(sha256)
            part = Part(path, sha256)
            self._parts[sha256] = PartBytes(_sections(container.read(path), part.roles), part.units)
        return self._parts[sha256]

    def table(self, kind: TaskKind) -> BaseTable | None:
        """Return the table of the base that a kind of task needs; None where it needs none."""
        return None if kind.template.base_table is None else self._templates.table(kind.template.base_table)

    def _kind(self, manifest: Manifest) -> TaskKind:
        params = {**manifest.params, "name": None}
        key = manifest.shared[0], manifest.codec, json.dumps(params, sort_keys=True)
        if key not in self._kinds:
            template = self._templates.read(manifest.shared[0], None)
            self._kinds[key] = TaskKind(template, params, manifest.codec)
        what = f"a task of template {manifest.shared[0]}"
        check_capacity(what, self._kinds[key].elements, len(manifest.sections))
        return self._kinds[key]


@dataclass(frozen=True)
class Inventory:
    """A pack as it was read: its tasks, the error by name of those that are damaged, and the bytes of every file."""

    tasks: tuple[Opened, ...]
    damaged: Mapping[str, Exception]
    parts: Mapping[str, int]
    """Bytes of each shared part by sha256."""
    users: Mapping[str, tuple[str, ...]]
    """Names of the tasks that use a shared part; of one that no readable task uses there are none."""
    roles: Mapping[str, str]
    tensors: Mapping[str, PartBytes]
    """The shared parts of tensors that the tasks use."""
    disk_bytes: int
    damaged_bytes: int

    @property
    def other_bytes(self) -> int:
        """Bytes of files that are neither tasks nor shared parts."""
        task_bytes = sum(task.nbytes for task in self.tasks)
        return self.disk_bytes - task_bytes - self.damaged_bytes - sum(self.parts.values())


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python from looking for garbage among what is made here and lives on: a fifth of the time for 10,000."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def users_of(tasks: Iterable[Opened]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the names of the tasks that use each shared part, and the part's role, by sha256."""
    users: dict[str, list[str]] = defaultdict(list)
    roles: dict[str, str] = {}
    for task in tasks:
        for sha256, role in task.roles.items():
            users[sha256].append(task.name)
            roles.setdefault(sha256, role)
    return {sha256: tuple(names) for sha256, names in users.items()}, roles


def _sections(file: Container, roles: Mapping[str, Role]) -> tuple[SectionBytes, ...]:
    return tuple(
        SectionBytes(
            name=row.name,
            kind=kind_of(row.name),
            role=roles[row.name],
            coder=row.coder,
            dtype=row.dtype,
            count=row.count,
            nbytes=file.section_bytes(row.name),
        )
        for row in file.manifest.sections
    )


@lru_cache(4096)
def kind_of(name: str) -> str:
    """Return a section's name without its number: `ulps.3` is of `ulps`, `sparse.0.values` of `sparse.values`."""
    return ".".join(word for word in name.split(".") if not word.isdigit())
