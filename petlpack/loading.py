"""From a pack to tensors: the second straight line.

store -> container (all validated) -> base digests equal, or refuse -> coding -> codec -> tensors, their digest equal,
or refuse -> state dict or run directory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petlpack import container
from petlpack.codecs.registry import codec
from petlpack.container import Container, Manifest, ReplacedError, Sections
from petlpack.decoding import DecodedSection, Decoder, needed, whole_digest, with_kinds
from petlpack.errors import BaseError, DamageError, UnknownFormatError, UsageError, printable
from petlpack.facts import Facts
from petlpack.modules import Rebuilt
from petlpack.parallel import Progress, count_jobs
from petlpack.parts import Part, Templates, find_shared, read_shared
from petlpack.plans import Plan, parse_plan
from petlpack.store import Store
from petlpack.template import Slot, Template, bind
from petlpack.tensors.base import Base
from petlpack.tensors.dtypes import DTYPES, Bits
from petlpack.tensors.safetensors_file import build_header
from petlpack.tensors.tensor import PIECE, Tensor, as_bytes
from petlpack.writing import check_torch, has_torch, new_directory, write_rebuilt, write_weights

if TYPE_CHECKING:
    import torch


def is_directory(name: str) -> bool:
    """Tell whether a name from a config is a directory here; any text may stand there."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def open_base(base: str | Path | Base | None, named: str | None) -> Base | None:
    """Open the base that is given, else the one that a run named, if that is a directory here; None without either."""
    if isinstance(base, Base):
        return base
    if base is not None:
        return Base(base)
    return Base(named) if named is not None and is_directory(named) else None


TARGETS = ("run", "safetensors", "peft", "adapterhub")
"""What a task can be decoded to."""


@dataclass(frozen=True)
class Decoded:
    """Where a task was written to, as what, and what its new layout cannot say."""

    path: Path
    notes: tuple[str, ...]
    task: str
    to: str
    codec: str
    exact: bool
    decoded: str
    """The sha256 of what the task decodes to."""
    seconds: float

    @functools.cached_property
    def files(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in files}

    def to_json(self) -> dict[str, Any]:
        """Return the object that `petlpack decode --json` prints."""
        return {
            **{"task": self.task, "out": str(self.path), "to": self.to, "notes": list(self.notes)},
            **{"codec": self.codec, "exact": self.exact, "decoded_sha256": self.decoded},
            "files": [{"file": name, "bytes": nbytes} for name, nbytes in self.files.items()],
            **{"bytes": sum(self.files.values()), "seconds": round(self.seconds, 6)},
        }


class Task:
    """One task of a pack. Opening it reads and checks its header and manifest only."""

    def __init__(
        self,
        store: Store,
        name: str,
        path: Path | None = None,
        templates: Templates | None = None,
        parts: Mapping[str, Path] | None = None,
    ) -> None:
        """Open a task by name. `path` and `parts` are for files that are not in their place yet.

        Raises TaskError where there is no such task, DamageError where its file is not as it was written.
        """
        self.name = name
        self.store = store
        self._templates = Templates(store) if templates is None else templates
        self._path = path or store.find_task(name)
        self._parts = parts or {}
        self._container = container.read(self._path)
        if self.manifest.kind != "task" or not self.manifest.shared:
            raise DamageError(f"'{printable(str(self._container.path))}' is not a task")

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
        return codec(self.codec).exact and self.facts.exact

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
        name = self.manifest.params.get("name")
        if name is not None and not isinstance(name, str):
            raise DamageError(f"task '{self.name}' is called {printable(repr(name))} in its template")
        return self._templates.read(self.manifest.shared[0], name)

    @property
    def parts(self) -> list[str]:
        """The shared parts that the task needs, each once: its template, tensors, the base's table, kept files."""
        return list(dict.fromkeys([*self.manifest.shared, *self.template.needs]))

    @property
    def plan(self) -> Plan:
        """How the tensors are found; raises DamageError."""
        return parse_plan(self.manifest.params, self.template.slots)

    @property
    def run_bytes(self) -> int:
        """Bytes of the run's tensors, each as often as its file holds it."""
        return self.template.run_bytes(self.plan.aliases)

    def load(self, base: str | Path | Base | None = None) -> TaskTensors:
        """Return the tensors, lazily: a mapping whose tensors are decoded when their bits are asked for.

        `base` is the base's directory, its weights file, or an opened `Base`, which keeps its digests; by default the
        directory that the run's own config names. Raises BaseError where the base is missing or another one,
        DamageError where the pack's bytes are not those that were written.
        """
        return self._tensors(self._find_base(base))

    def rebuild(self, base: str | Path | Base | None = None) -> Rebuilt | None:
        """Return the dense modules that the task's rule makes, computed when they are read; None where it has no rule.

        The base is needed only where the rule's own tensors are stored against it. Raises as `load`.
        """
        opened = open_base(base, self.template.base_name if self.template.base else None)
        tensors = self._tensors(opened)
        rebuilt = codec(self.codec).rebuild(self.template.rule, tensors)
        if rebuilt is None:
            return None
        return replace(rebuilt, head={name: tensors[name] for name in tensors if name in self.template.head})

    def formula(self) -> list[str]:
        """Return the rule by which the task is rebuilt, as formulas for people."""
        return [printable(line) for line in codec(self.codec).formula(self.template.rule)]

    def read_file(self, name: str) -> bytes:
        """Return a kept file as the run had it; raises DamageError."""
        content = read_shared(self.store, self.template.files[name])
        own = self.manifest.params.get("name")
        if name not in self.template.named or own is None:
            return content
        try:
            return bind(content.decode(), own).encode()
        except UnicodeDecodeError as error:
            raise DamageError(f"kept file '{name}' takes the task's name and is no text: {error}") from error

    def check_bytes(self) -> None:
        """Read every section and check its digest, decoding nothing; raises DamageError."""
        opened, sections = self._open()
        for row in opened.manifest.sections:
            sections.read(row)

    def state_dict(self, base: str | Path | Base | None = None, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Return every tensor as a torch tensor on `device`, bit for bit; checks the digest of the whole."""
        for header in self.template.headers.values():
            for name, entry in header.entries.items():
                if entry.dtype not in DTYPES:
                    raise UnknownFormatError(
                        f"tensor '{printable(name)}' is {printable(entry.dtype)}, which is carried as bytes only",
                        hint="`decode` writes it back as it was",
                    )
        return {name: Tensor.of(bits, slot.dtype).torch().to(device) for name, slot, bits in self.load(base).read_all()}

    def decode(
        self,
        out: str | Path,
        base: str | Path | Base | None = None,
        *,
        to: str = "run",
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Decoded:
        """Write the task to a new directory `out`, which appears only when it is complete.

        `to` "run" gives back the run: weight files bit for bit, kept files byte for byte. "safetensors" writes one
        model.safetensors, of the rebuilt modules where the task has a rule. "peft" and "adapterhub" write what these
        libraries load. Raises UsageError where `out` is not empty, or the task cannot be written so.
        """
        if to not in TARGETS:
            raise UsageError(f"no layout '{printable(to)}' to decode to", hint=f"choose one of {', '.join(TARGETS)}")
        started = time.perf_counter()
        with new_directory(Path(out)) as directory:
            if to == "run" or self._is_already(to):
                notes = self._write_run(directory, self.load(base), jobs, progress)
            else:
                notes = self._write_as(to, directory, base, jobs, progress)
        seconds = time.perf_counter() - started
        return Decoded(Path(out), tuple(notes), self.name, to, self.codec, self.exact, self.manifest.decoded, seconds)

    def _write_run(
        self, directory: Path, tensors: TaskTensors, jobs: int | None, progress: Progress | None
    ) -> list[str]:
        check_torch(self.template.headers)
        self._write_files(directory, list(self.template.files))
        same = {tensors.plan.slots[i].name: tensors.plan.slots[j].name for i, j in tensors.plan.aliases.items()}
        write_weights(directory, self.template.headers, tensors.stream(jobs=jobs, progress=progress), same)
        return [self.facts.note] if self.facts.note else []

    def _is_already(self, to: str) -> bool:
        """Tell from the run's own files whether they are what is asked for, so that nothing has to be made of them."""
        from petlpack.layouts.adapterhub_writer import is_adapterhub
        from petlpack.layouts.peft_writer import is_peft

        weights, kept = list(self.template.headers), self.template.files
        if to == "safetensors":
            alone = not kept and len(weights) == 1 and weights[0].endswith(".safetensors")
            return alone and self.template.rule is None
        configs = [self._read_json(name) for name in kept if name.rpartition("/")[2] == "adapter_config.json"]
        return is_peft(weights, configs) if to == "peft" else is_adapterhub(weights, configs)

    def _read_json(self, name: str) -> dict[str, Any]:
        """Return the object that a kept file holds; an empty one where it holds none, or there is no such file."""
        try:
            value = json.loads(self.read_file(name)) if name in self.template.files else {}
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _write_as(
        self, to: str, directory: Path, base: str | Path | Base | None, jobs: int | None, progress: Progress | None
    ) -> list[str]:
        from petlpack.layouts.adapterhub_writer import write_adapterhub  # here, for few who open a task write it so
        from petlpack.layouts.peft_writer import write_peft

        rebuilt = self.rebuild(base)
        if rebuilt is None and to == "safetensors":
            tensors = self.load(base)
            self._write_files(directory, [name for name in self.template.files if not name.endswith(".index.json")])
            rows = {slot.name: (slot.dtype.name, slot.shape, slot.nbytes) for slot in tensors.plan.slots}
            headers = {"model.safetensors": build_header(rows, {"format": "pt"})}
            write_weights(directory, headers, tensors.stream(jobs=jobs, progress=progress), {})
            return []
        if rebuilt is None:
            raise UsageError(
                f"task '{self.name}' is a {self.method}, and nothing tells how to write it as {to}",
                hint="decode it without --to, or with --to safetensors",
            )
        if to == "safetensors":
            write_rebuilt(directory / "model.safetensors", rebuilt)
            return []
        missing = {"adapter": {"activation", "scaling", "form"}, "lora": {"scaling"}}.get(rebuilt.kind, set())
        missing -= rebuilt.settings.keys()
        if missing:
            raise DamageError(f"task '{self.name}' has a rule that does not say its {min(missing)}")
        rebuilt, left = self._without_odd_head(rebuilt)
        if to == "peft":
            return [*left, *write_peft(rebuilt, directory, self.template.base_name, self._read_json("config.json"))]
        own = self.manifest.params["name"]
        name = self.name.replace(".", "-") if own is None else own
        notes = write_adapterhub(rebuilt, directory, name, self.template.base_name, pickled=has_torch())
        flag = "without torch only safetensors are written: load them with load_adapter(..., use_safetensors=True)"
        return [*left, *notes] if has_torch() else [*left, *notes, flag]

    def _without_odd_head(self, rebuilt: Rebuilt) -> tuple[Rebuilt, list[str]]:
        """Leave out a head that its head_config.json says is no classifier with tanh: no other library has it."""
        file = next((name for name in self.template.files if name.rpartition("/")[2] == "head_config.json"), None)
        try:
            config = json.loads(self.read_file(file)).get("config", {}) if file is not None else {}
            plain = {"head_type": "classification", "activation_function": "tanh", "use_pooler": False}
            odd = next(
                (f"{key} {config[key]!r}" for key, value in plain.items() if config.get(key, value) != value), None
            )
        except (ValueError, AttributeError, RecursionError):
            odd = "nothing that can be read"
        if odd is None or not rebuilt.head:
            return rebuilt, []
        return replace(rebuilt, head={}), [f"left out the head: its head_config.json says {printable(odd)}"]

    def _write_files(self, directory: Path, names: list[str]) -> None:
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(self.read_file(name))

    def _tensors(self, base: Base | None) -> TaskTensors:
        opened, sections = self._open()
        parts = [
            Part(self._parts.get(sha256) or find_shared(self.store, sha256), sha256)
            for sha256 in opened.manifest.shared[1:]
        ]
        return TaskTensors(self.name, opened, sections, self.template, parts, base)

    def _open(self) -> tuple[Container, Sections]:
        """Open the file for reading; one that was replaced since the task was opened is taken as it is now."""
        while True:
            try:
                return self._container, self._container.open_sections()
            except ReplacedError:
                self._container = container.read(self._path)

    def _find_base(self, base: str | Path | Base | None) -> Base | None:
        if base is None and not self.template.base:
            return None
        named = self.template.base_name
        opened = open_base(base, named)
        if opened is not None:
            return opened
        told = f"; its run named '{printable(named)}'" if named else ""
        raise BaseError(
            f"task '{self.name}' needs its base to be decoded{told}", hint="give the base's directory with --base"
        )


class TaskTensors(Mapping[str, Tensor]):
    """The tensors of a task by name, decoded on demand."""

    def __init__(
        self,
        name: str,
        opened: Container,
        sections: Sections,
        template: Template,
        parts: list[Part],
        base: Base | None,
    ) -> None:
        """Check the manifest against the template and the parts; `base` may be None where no tensor needs it."""
        self._path, self._manifest, self._base, self._shared = opened.path, opened.manifest, base, parts
        self.plan = parse_plan(opened.manifest.params, template.slots)
        known = codec(opened.manifest.codec)
        kinds = known.kinds(template.rule)
        given = _shared_tensors(name, template, with_kinds(template.slots, kinds), parts)
        stored = with_kinds(self.plan.stored, kinds)
        self._decoder = Decoder(f"task '{name}'", opened, sections, known, stored, base, given)
        self._index = {slot.name: i for i, slot in enumerate(self.plan.slots)}

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor; nothing is decoded before its bits are read."""
        index = self._index[name]
        index = self.plan.aliases.get(index, index)
        slot = self.plan.slots[index]
        if slot.part is not None:
            return self._shared[slot.part[0]].tensor(slot.part[1])
        reader = self._read_base if index in self.plan.unchanged else self._decoder.read
        return Tensor(slot.dtype, slot.shape, functools.partial(reader, slot))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the weight files."""
        return iter(self._index)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._index)

    def stream(self, *, jobs: int | None = None, progress: Progress | None = None) -> Iterator[tuple[Slot, int, Bits]]:
        """Yield every element once, as (tensor, first flat element, bits); a few pieces are in memory at a time.

        After the last piece the digest of the whole is compared with the manifest's; raises DamageError.
        """
        digest = _WholeDigest(self.plan)
        total, done = sum(slot.nbytes for slot in self.plan.slots), 0
        for slot, start, bits in self._all_pieces(count_jobs(jobs)):
            digest.update(slot, bits)
            yield slot, start, bits
            done += bits.nbytes
            if progress is not None:
                progress(done, total)
        if digest.hexdigest() != self._manifest.decoded:
            raise DamageError(
                f"'{printable(str(self._path))}' decodes to sha256 {digest.hexdigest()}, "
                f"its manifest says {self._manifest.decoded}"
            )

    def read_all(self, *, jobs: int | None = None) -> Iterator[tuple[str, Slot, Bits]]:
        """Decode everything in parallel and return (name, slot, bits in the tensor's shape), checked as a whole."""
        arrays = {slot.name: np.empty(slot.size, slot.dtype.bits) for slot in self.plan.slots}
        for slot, start, bits in self.stream(jobs=jobs):
            arrays[slot.name][start : start + len(bits)] = bits
        return iter([(slot.name, slot, arrays[slot.name].reshape(slot.shape)) for slot in self.plan.slots])

    def sections(self) -> Iterator[DecodedSection]:
        """Yield every section of the task's own decoded, with what its coder is given."""
        return self._decoder.sections()

    def _all_pieces(self, jobs: int) -> Iterator[tuple[Slot, int, Bits]]:
        yield from self._decoder.pieces(jobs)
        for i, slot in enumerate(self.plan.slots):
            if slot.part is None and i not in self.plan.unchanged and i not in self.plan.aliases:
                continue
            tensor = self[slot.name]
            for start in range(0, slot.size, PIECE):
                yield slot, start, tensor.read_flat(start, min(start + PIECE, slot.size))

    def _read_base(self, slot: Slot, start: int, stop: int) -> Bits:
        assert slot.base is not None
        return needed(self._base).predict(slot.base, slot.dtype, start, stop)


def _shared_tensors(name: str, template: Template, slots: list[Slot], parts: list[Part]) -> list[tuple[Slot, Tensor]]:
    """Return the tensors of all parts as the task sees them; one without a name is of the kind of its neighbours."""
    if len(parts) != len(template.parts):
        raise DamageError(f"task '{name}' has {len(parts)} shared parts of tensors, its template {len(template.parts)}")
    own = {slot.name: slot for slot in slots}
    shared = []
    for number, (names, part) in enumerate(zip(template.parts, parts, strict=True)):
        if len(names) != len(part.slots):
            raise DamageError(f"shared part {part.sha256} has {len(part.slots)} tensors, task '{name}' {len(names)}")
        kinds = {held.kind: own[called].kind for called, held in zip(names, part.slots, strict=True) if called}
        for i, (called, held) in enumerate(zip(names, part.slots, strict=True)):
            slot = replace(held, name="", part=(number, i), kind=kinds.get(held.kind, ""))
            if called is not None:
                slot = own[called]
            if (slot.dtype, slot.shape) != (held.dtype, held.shape):
                raise DamageError(
                    f"tensor '{printable(slot.name)}' is {slot.dtype.name} {list(slot.shape)}, "
                    f"in shared part {part.sha256} it is {held.dtype.name} {list(held.shape)}"
                )
            shared.append((slot, part.tensor(i)))
    return shared


class _WholeDigest:
    """The sha256 of a whole task: of the tensors' own sha256 digests, in the order of the template."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._hashes = {slot.name: hashlib.sha256() for slot in plan.slots}

    def update(self, slot: Slot, bits: Bits) -> None:
        self._hashes[slot.name].update(as_bytes(bits))

    def hexdigest(self) -> str:
        return whole_digest([self._hashes[slot.name].hexdigest() for slot in self._plan.slots])
