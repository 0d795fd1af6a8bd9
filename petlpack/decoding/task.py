"""From a pack to tensors: the second straight line.

store -> container (all validated) -> base digests equal, or refuse -> coding -> codec -> tensors, their digest equal,
or refuse -> state dict or run directory.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from petlpack import container
from petlpack.codecs.registry import codec
from petlpack.container import Container, Manifest
from petlpack.decoding.bases import base_of_task, check_adapted
from petlpack.decoding.directory import Decoded, write_task
from petlpack.decoding.templates import Templates
from petlpack.decoding.tensors import TaskTensors
from petlpack.errors import BaseError, DamageError, naming, printable
from petlpack.errors.arguments import check_jobs, path_of
from petlpack.exports.export import Reading
from petlpack.exports.registry import RUN
from petlpack.parallel import Progress
from petlpack.records.facts import Facts
from petlpack.records.sources import Sources, parse_sources
from petlpack.records.template import Template, bind
from petlpack.rules.modules import Rebuilt
from petlpack.sections.allowance import FREE_FILE, Allowance, base_bytes, rebuilt_bytes, tensor_bytes
from petlpack.sections.parts import Part
from petlpack.sections.shared import find_shared, read_shared, size_of_shared
from petlpack.store import Store
from petlpack.store.disk import file_size
from petlpack.tensors.base import Base, Bases
from petlpack.tensors.tensor import Stored, octets_of

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


MAX_NAMED = 1 << 20
"""Bytes of a kept file that takes the task's name: a config, in which a name of 128 characters makes 21 of one."""


def _read(store: Store, name: str) -> Container:
    """Read the head of a task's file; raises TaskError where it is not there, or is removed meanwhile."""
    while True:
        path = store.find_task(name)
        with contextlib.suppress(FileNotFoundError):
            return container.read(path)


class Task:
    """One task of a pack. Opening it reads and checks its header and manifest only."""

    def __init__(
        self,
        store: Store,
        name: str,
        path: Path | None = None,
        templates: Templates | None = None,
        parts: Mapping[str, Path] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """Open a task by name. `path` and `parts` are for files that are not in their place yet.

        `max_bytes` is the most that reading it may make; None is what its files and its base explain.

        Raises TaskError where there is no such task, DamageError where its file is not as it was written.
        """
        self.name = name
        self.store = store
        self._templates = Templates(store, parts) if templates is None else templates
        self._parts = parts or {}
        self._pinned = path is not None
        self._max_bytes = max_bytes
        self._container = _read(store, name) if path is None else container.read(path)
        self._path = self._container.path
        if self.manifest.kind != "task" or not self.manifest.shared:
            raise DamageError(f"'{printable(str(self._container.path))}' is not a task file", code="file-kind")

    def __repr__(self) -> str:
        """Show name, codec and bytes."""
        return f"Task({self.name!r}, codec={self.codec!r}, nbytes={self.nbytes})"

    @property
    def manifest(self) -> Manifest:
        """The validated manifest."""
        return self._container.manifest

    @functools.cached_property
    def facts(self) -> Facts:
        """What the encoder knew of the run."""
        return Facts.parse(self.manifest.facts)

    @property
    def codec(self) -> str:
        """Id of the codec."""
        return self.manifest.codec

    @property
    def method(self) -> str:
        """How the run was trained, in words."""
        return self.facts.method

    @property
    def exact(self) -> bool:
        """Whether every bit of what the run's rule needs comes back; `facts` tell how far it does not."""
        return self.facts.exact

    @property
    def nbytes(self) -> int:
        """Bytes of the task's own file."""
        return self._container.nbytes

    @property
    def payload(self) -> dict[str, int]:
        """Bytes of each section."""
        return {row.name: self._container.section_bytes(row.name) for row in self.manifest.sections}

    @property
    def template(self) -> Template:
        """What the task has in common with others: tensors, base, rule, kept files."""
        return self._as_it_is(lambda: self._templates.read(self.manifest.shared[0], self.own_name))

    @property
    def parts(self) -> list[str]:
        """The shared parts that the task needs, each once: its template, tensors, the base's table, kept files."""
        return self.at_once(lambda task: list(dict.fromkeys([*task.manifest.shared, *task.template.needs])))

    @property
    def sources(self) -> Sources:
        """Where the tensors are found; raises DamageError."""
        with naming(self._path):
            return self.at_once(lambda task: parse_sources(task.manifest.params, task.template.slots))

    @property
    def own_name(self) -> str | None:
        """The task's name inside its keys and files, where that is a parameter of the template; raises DamageError."""
        name = self.manifest.params.get("name")
        if name is not None and not isinstance(name, str):
            raise DamageError(
                f"task '{self.name}': its name in the manifest's params must be a string or null, "
                f"got {printable(repr(name))}",
                code="template-name",
            )
        return name

    @property
    def run_bytes(self) -> int:
        """Bytes of the run's tensors, each as often as its file holds it."""
        return self.template.run_bytes(self.sources.aliases)

    def load(self, base: Bases | None = None, *, check_base: bool = True) -> TaskTensors:
        """Return the tensors, lazily: a mapping whose tensors are decoded when their bits are asked for.

        `base` is the base's directory, its weights file, or an opened `Base`, which keeps its digests; or several of
        them, or a directory of models, of which the one that the task was encoded with is taken. By default it is the
        one that the run's own config named by an absolute path. An adapter needs none; one that is given is checked to
        be the one that it adapts, unless `check_base` is False. Raises BaseError where the base is missing or another
        one, DamageError where the pack's bytes are not those that were written.
        """

        def tensors(task: Task) -> TaskTensors:
            opened = base_of_task(task.name, task.template, base)
            if opened is not None and check_base:
                check_adapted(task.name, task.template, opened)
            return task._tensors(opened)

        return self.at_once(tensors)

    def rebuild(self, base: Bases | None = None) -> Rebuilt | None:
        """Return the dense modules that the task's rule makes, computed when they are read; None where it has no rule.

        The base is needed only where the rule's own tensors are stored against it. Raises as `load`.
        """
        return self.at_once(lambda task: task._rebuild(base))

    def _rebuild(self, base: Bases | None) -> Rebuilt | None:
        opened = self._base_at_hand(base)
        if opened is not None:
            check_adapted(self.name, self.template, opened)
        tensors = self._tensors(opened)
        with naming(self._path):
            rebuilt = codec(self.codec).rebuild(self.template.rule, tensors)
        if rebuilt is None:
            return None
        self._allowance().check(rebuilt_bytes(self.template.rule, rebuilt, tensors))
        return replace(rebuilt, head={name: tensors[name] for name in tensors if name in self.template.head})

    def formula(self) -> list[str]:
        """Return the rule by which the task is rebuilt, as formulas for people."""
        with naming(self._path):
            return list(codec(self.codec).formula(self.template.rule))

    def read_file(self, name: str) -> bytes:
        """Return a kept file as the run had it; raises DamageError."""
        return self.at_once(lambda task: task._read_file(name))

    def _read_file(self, name: str) -> bytes:
        sha256 = self.template.files[name]
        size = size_of_shared(self.store, sha256)
        self._allowance(kept=self._bytes_of([sha256])).check(size, free=FREE_FILE)
        if name not in self.template.named or self.own_name is None:
            return read_shared(self.store, sha256)
        content = read_shared(self.store, sha256, MAX_NAMED)
        try:
            return bind(content.decode(), self.own_name).encode()
        except UnicodeDecodeError as error:
            raise DamageError(
                f"kept file '{printable(name)}' of task '{self.name}' takes its name, but is not UTF-8 text: {error}",
                code="file-text",
            ) from error

    def file_sizes(self) -> dict[str, int]:
        """Return the bytes of the kept files in the pack, by their manifests; raises DamageError."""

        def sizes(task: Task) -> dict[str, int]:
            files = task.template.files
            found = {sha256: size_of_shared(task.store, sha256) for sha256 in dict.fromkeys(files.values())}
            return {name: found[sha256] for name, sha256 in files.items()}

        return self.at_once(sizes)

    def check_files(self) -> None:
        """Raise LimitError where the kept files together are more than may be made of the task."""
        wanted = sum(self.file_sizes().values())
        kept = self._bytes_of(dict.fromkeys(self.template.files.values()))
        self._allowance(kept=kept).check(wanted)

    def check_bytes(self) -> None:
        """Read every section and check its digest, decoding nothing; raises DamageError."""

        def check(task: Task) -> None:
            sections = task._container.open_sections()
            for row in task.manifest.sections:
                sections.read(row)

        self.at_once(check)

    def at_once(self, read: Callable[[Task], Result]) -> Result:
        """Return what is read of the task in several steps, which see one file of it; again where it was replaced."""

        def pinned() -> Result:
            task = copy.copy(self)
            task._pinned = True
            return read(task)

        return self._as_it_is(pinned)

    def _as_it_is(self, read: Callable[[], Result]) -> Result:
        """Return what is read of the task; again where it was replaced meanwhile. Raises TaskError where it is gone.

        Of a task that is replaced while it is read, `gc` may take the parts: then nothing is damaged.
        """
        while True:
            before = self._container
            try:
                return read()
            except (DamageError, FileNotFoundError):
                if self._pinned:
                    raise
                self._take_current()
                if self._container.state == before.state:
                    raise

    def _take_current(self) -> None:
        """Take the task as it is now; raises TaskError where it is gone."""
        current = _read(self.store, self.name)
        if current.state != self._container.state:
            self._container = current
            for known in ("facts", "_files_bytes"):
                self.__dict__.pop(known, None)

    def state_dict(self, base: Bases | None = None, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Return every tensor as a torch tensor on `device`, bit for bit; checks the digest of the whole."""
        return self.at_once(lambda task: task._state_dict(base, device))

    def _state_dict(self, base: Bases | None, device: str) -> dict[str, torch.Tensor]:
        entries = self.template.entries
        return {
            name: Stored(entries[name].dtype, entries[name].shape).of_bytes(octets_of(bits)).to(device)
            for name, _, bits in self.load(base).read_all()
        }

    def decode(
        self,
        out: str | Path,
        base: Bases | None = None,
        *,
        to: str = RUN,
        code: bool = True,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Decoded:
        """Write the task to a new directory `out`, which appears only when it is complete.

        `to` "run" gives back the run: weight files bit for bit, kept files byte for byte. "portable" is
        the run with safetensors files in the place of pickled ones. "safetensors" writes one model.safetensors, of the
        rebuilt modules where the task has a rule. "peft" and "adapterhub" write what these
        libraries load; `known_exports()` are all. Files that can run code (scripts, pickles) are named in the notes,
        and without `code` left out. Raises UsageError where `out` is not empty, or the task cannot be written so.
        """
        started = time.perf_counter()
        place = path_of("out", out)
        check_jobs(jobs)

        def write(task: Task) -> Decoded:
            task.check_files()
            written = write_task(task, place, to, Reading(base, jobs, progress, code))
            seconds = time.perf_counter() - started
            facts = (task.name, to, task.codec, task.exact, task.manifest.decoded)
            return Decoded(place, written.notes, *facts, seconds, written.restored, written.files)

        return self.at_once(write)

    def _allowance(self, base: Base | None = None, kept: int = 0) -> Allowance:
        """Return how much may be made of the task, by files of which so many bytes are those of kept ones."""
        return Allowance(f"task '{self.name}'", self._max_bytes, self._files_bytes + kept, base_bytes(base))

    @functools.cached_property
    def _files_bytes(self) -> int:
        """Bytes of the task's file, and of the parts that are read for its tensors.

        A part that is only named explains nothing: it may be a link to any large file, and nobody finds that out.
        """
        table = self.template.base_table
        return self.nbytes + self._bytes_of([*dict.fromkeys(self.manifest.shared), *([] if table is None else [table])])

    def _bytes_of(self, parts: Iterable[str]) -> int:
        """Return the bytes of parts, as far as they are there: who needs one that is not says so."""
        places = [self._parts.get(sha256) or self.store.shared_path(sha256) for sha256 in parts]
        return sum(file_size(path) or 0 for path in places)

    def _tensors(self, base: Base | None) -> TaskTensors:
        self._allowance(base).check(*tensor_bytes(self.sources, base))
        opened, sections = self._container, self._container.open_sections()
        parts = {
            sha256: Part(self._parts.get(sha256) or find_shared(self.store, sha256), sha256)
            for sha256 in opened.manifest.shared[1:]
        }
        self._allowance(base).check(sum(slot.nbytes for part in parts.values() for slot in part.slots))
        named = [parts[sha256] for sha256 in opened.manifest.shared[1:]]
        return TaskTensors(self.name, opened, sections, self.template, named, base)

    def _base_at_hand(self, base: Bases | None) -> Base | None:
        """Return the base, or None where it is missing: what is read may not need it."""
        try:
            return base_of_task(self.name, self.template, base)
        except BaseError as error:
            if base is None and error.code == "base-missing":
                return None
            raise
