"""Targets of files: containers, shared parts, weights, pickles, small JSON, folders of the Hub's cache, whole tasks."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import zstandard

import petlpack
from petlpack import container
from petlpack.codecs.registry import CODECS
from petlpack.errors import PetlpackError
from petlpack.exports.registry import EXPORTS
from petlpack.sections.parts import Part, part_name
from petlpack.sections.shared import read_shared_file, read_text_file, write_shared
from petlpack.store import SUFFIX
from petlpack.tensors.checkpoint import open_checkpoint, open_saved
from petlpack.tensors.foreign_json import read_value
from petlpack.tensors.hub_cache import cached_name, snapshot_of
from petlpack.tensors.pickled import holds_more, read_state_dict
from petlpack.tensors.safetensors_file import file_tensor, read_pinned
from tests.support import spec_reader
from tests.support.fuzz.mutations import (
    Havoc,
    bundle,
    mutate_archive,
    mutate_bundle,
    mutate_container,
    mutate_json,
    mutate_safetensors,
    unbundle,
    with_size,
)
from tests.support.fuzz.target import Target, agree, put, tried
from tests.support.golden import ALL, BY_ID
from tools.packs import untold, write_whole
from tools.vectors import unhex
from tools.write_vectors import changed_part, edited_file, join_file, part_file, rows_of_part, split_file

_MOST = 1 << 20
"""Bytes of what is read to see whether it can be."""


def _whole_files() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of every file of the golden packs, and of the vectors of containers."""
    for vector in ALL:
        if vector.kind == "whole pack" and not vector.bad:
            yield from ((name, untold(said)) for name, said in vector["pack"].items() if name.endswith(SUFFIX))
        elif vector.kind == "container" and "file" in vector.fields:
            yield "container", unhex(vector["file"])
        elif vector.kind == "container" and vector.bad:
            yield "container", edited_file(unhex(BY_ID[vector["of"]]["file"]), vector)


def container_file(scratch: Path) -> Target:
    """Return the target of whole files: the header is, to the byte, that of the sections and the manifest."""
    path = scratch / "file"

    def attack(data: bytes) -> None:
        put(path, data)
        found = tried(lambda: container.read(path))
        agree(found, lambda: spec_reader.read_file(data))
        if found is None:
            return
        opened = found[0]
        sections = opened.open_sections()
        held = {row.name: tried(lambda row=row: sections.read(row)) for row in opened.manifest.sections}  # type: ignore[misc]
        behind = opened.header.data_start
        raw = {name: data[behind + e.start : behind + e.stop] for name, e in opened.header.entries.items()}
        packed = raw.pop("manifest")
        assert all(one is None or one[0] == raw[name] for name, one in held.items())
        whole = join_file(raw, packed)
        assert whole[8 : 8 + int.from_bytes(whole[:8], "little")].rstrip() == data[8:behind].rstrip()
        assert opened.nbytes == len(data)

    return Target((data for _, data in _whole_files()), attack, mutate_container)


def shared_bytes(scratch: Path) -> Target:
    """Return the target of shared parts of bytes: what comes back is what the name says, once it is called so."""
    path = scratch / "part"

    def attack(data: bytes) -> None:
        put(path, data)
        named = "0" * 64
        try:
            read_shared_file(path, named)
        except PetlpackError as error:
            named = error.message.split(" decodes to ")[1][:64] if error.code == "decoded-digest" else named
        found = tried(lambda: read_shared_file(path, named))
        assert (found is None) == (named == "0" * 64)
        assert found is None or hashlib.sha256(found[0]).hexdigest() == named
        text = tried(lambda: read_text_file(path, named, _MOST))
        assert text is None or text == found

    texts = (b"", b"x", b'{"a":1}', bytes(range(256)), b"{}" * 4000)
    return Target(map(write_shared, texts), attack, mutate_container)


def shared_tensors(scratch: Path) -> Target:
    """Return the target of shared parts of tensors: rows, sections and names in any company."""
    path = scratch / "part"

    def attack(data: bytes) -> None:
        name, data = data[:32].hex(), data[32:]
        put(path, data)
        found = tried(lambda: Part(path, name))
        if found is None:
            return
        part = found[0]
        assert set(part.roles) == set(part.units) == {row.name for row in container.read(path).manifest.sections}
        if sum(slot.nbytes for slot in part.slots) <= _MOST:
            bits = [tried(lambda i=i: part.tensor(i).bits()) for i in range(len(part.slots))]  # type: ignore[misc]
            if None not in bits and tried(part.check) is not None:
                rows = [
                    (s.dtype, s.shape, hashlib.sha256(b[0].tobytes()).hexdigest())
                    for s, b in zip(part.slots, bits, strict=True)
                    if b
                ]
                assert part_name(rows) == name

    def mutate(data: bytes, rng: random.Random, havoc: Havoc) -> bytes:
        return data[:32] + mutate_container(data[32:], rng, havoc)

    good = [vector for vector in ALL if vector.kind == "part" and not vector.bad]
    files = [part_file(vector["codec"], rows_of_part(vector), vector["sections"]) for vector in good]
    files += [changed_part(BY_ID[vector["of"]], vector) for vector in ALL if vector.kind == "part" and vector.bad]
    return Target([bytes.fromhex(name) + data for name, data in files], attack, mutate)


# Files that others wrote


def weights_file(scratch: Path) -> Target:
    """Return the target of safetensors files of others: whatever tensors it has can be read."""
    path = scratch / "model.safetensors"

    def attack(data: bytes) -> None:
        put(path, data)
        found = tried(lambda: read_pinned(path))
        if found is not None:
            header, pin = found[0]
            assert header.file_size == len(data)
            for name, entry in header.entries.items():
                tensor = file_tensor(pin, header, name)
                assert (tensor.shape, tensor.nbytes) == (entry.held_shape, entry.stop - entry.start)
                assert tensor.bits().nbytes == tensor.nbytes
        opened = tried(lambda: open_checkpoint(path))
        assert opened is None or found is not None

    text = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"F4",'
    text += b'"shape":[3],"data_offsets":[16,18]},"c":{"dtype":"BF16","shape":[0,7],"data_offsets":[18,18]}}'
    seeds = [len(text).to_bytes(8, "little") + text + bytes(18)]
    seeds += [data for _, data in itertools.islice(_whole_files(), 8)]
    return Target(seeds, attack, mutate_safetensors)


def shard_index(scratch: Path) -> Target:
    """Return the target of indices of shards, which may name any file."""
    path = scratch / "model.safetensors.index.json"
    for name, tensor in (("1", "a"), ("2", "b")):
        text = f'{{"{tensor}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}'.encode()
        (scratch / f"s-{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))

    def attack(text: bytes) -> None:
        put(path, text)
        _date(path)
        found = tried(lambda: open_checkpoint(path))
        assert found is None or all(source.parent == scratch for source in found[0].sources)

    seed = {"metadata": {"total_size": 16}, "weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors"}}
    return Target([json.dumps(seed).encode()], attack, mutate_json)


_DATES = itertools.count(1_700_000_000_000_000_000)


def _date(path: Path) -> None:
    """Give a file a time of its own: two writes may be too near for the file system to tell."""
    os.utime(path, ns=(0, next(_DATES)))


def small_json(scratch: Path) -> Target:
    """Return the target of the reader of foreign JSON, which gives what Python's own gives, or refuses."""
    path = scratch / "config.json"

    def attack(text: bytes) -> None:
        put(path, text)
        _date(path)
        found = tried(lambda: read_value(path), ValueError)
        again = tried(lambda: json.loads(text.decode("utf-8")), ValueError, RecursionError)
        assert found is None or repr(again) == repr(found)
        assert found is not None or again is None or len(text) > 256

    seeds = [{"a": [1, 2.5, None, True, "x\u00e9"], "b": {"c": {}}}, ['\\"[{,:', {"x": "]}"}], "x", 3]
    return Target(
        [json.dumps(s).encode() for s in seeds] + [b"[" * 300 + b"]" * 300, b'{"a":NaN}'], attack, mutate_json
    )


def pickled(scratch: Path) -> Target:
    """Return the target of what torch saved: tensors of the size that is said, and nothing runs."""
    path = scratch / "pytorch_model.bin"

    def attack(data: bytes) -> None:
        put(path, data)
        found = tried(lambda: read_state_dict(path, "model"))
        if found is not None:
            for name, (_, _, nbytes) in found[0].rows.items():
                tensor = found[0].tensors[name]
                assert tensor.nbytes == nbytes
                bits = tried(tensor.bits) if nbytes <= _MOST else None
                assert bits is None or bits[0].nbytes == nbytes
        tried(lambda: open_saved(path))
        holds_more(path)

    seeds = []
    tied = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    for number, content in enumerate(
        (
            {"a": tied, "b": tied, "c": tied.T, "d": torch.zeros(0), "e": torch.tensor(1, dtype=torch.bfloat16)},
            {"model": {"w": torch.ones(2, dtype=torch.int8)}, "epoch": 3, "args": {"lr": 0.1}},
            {"w": torch.ones(4).expand(3, 4), "x": None, "y": torch.tensor([1 + 2j]).conj()},
            [torch.ones(1)],
        )
    ):
        torch.save(content, path)
        seeds.append(path.read_bytes())
        if number < 2:
            torch.save(content, path, _use_new_zipfile_serialization=False)
            seeds.append(path.read_bytes())
    return Target(seeds, attack, mutate_archive)


def hub_cache(scratch: Path) -> Target:
    """Return the target of the Hub's cache: a folder's name, what `refs/main` says, and the names of snapshots."""

    def attack(data: bytes) -> None:
        shutil.rmtree(scratch / "hub", ignore_errors=True)
        folder, ref, *names = [*data.split(b"\n"), b"", b""][:6]
        try:
            place = scratch / "hub" / os.fsdecode(folder or b"x").replace("/", "_")[:80]
            (place / "refs").mkdir(parents=True)
            (place / "refs" / "main").write_bytes(ref)
            for name in names:
                (place / "snapshots" / os.fsdecode(name).replace("/", "_")[:80]).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError):
            return  # no file system has such a name
        found = tried(lambda: snapshot_of(place))
        assert found is None or found[0] == place or found[0].resolve().is_relative_to(scratch.resolve())
        if found is not None and found[0] != place:
            assert found[0].parent == place / "snapshots"
            assert cached_name(found[0]) == cached_name(place)

    seeds = [b"models--org--name\nabc\nabc\ndef", b"models--org--name\n..\nabc", b"models--x\nabc\n", b"name\nabc\nabc"]
    return Target(seeds, attack)


# Whole tasks


class _GoldenTask:
    """A task of a golden pack in a place of its own, where its file and the texts that it needs are put anew."""

    def __init__(self, pack: Path, base: Path | None, name: str) -> None:
        self.pack, self.name = pack, name
        self.base = None if base is None else petlpack.Base(base)
        task = petlpack.open(pack)[name]
        self._shared = [task.manifest.shared[0], *task.template.needs]
        files = [task.store.shared_path(sha256) for sha256 in self._shared]
        texts = [read_shared_file(file, sha256) for file, sha256 in zip(files, self._shared, strict=True)]
        self.parts = {"task.petl": task.store.task_path(name).read_bytes()}
        self.parts |= {f"{number}.json": text for number, text in enumerate(texts)}
        self._put: list[Path] = []

    def put(self, parts: dict[str, bytes]) -> None:
        """Put parts into the pack, each named by what it is now in what needs it: kept files, template, task."""
        for path in self._put:
            path.unlink(missing_ok=True)
        self._put.clear()
        template, task = (parts.get(name, b"") for name in ("0.json", "task.petl"))
        for number, sha256 in reversed(list(enumerate(self._shared))):
            text = parts.get(f"{number}.json", b"") if number else template
            new = hashlib.sha256(text).hexdigest()
            if new != sha256:
                self._put.append(self.pack / "shared" / f"{new}{SUFFIX}")
                put(self._put[-1], write_shared(text))
                template, task = template.replace(sha256.encode(), new.encode()), _renamed(task, sha256, new)
        put(self.pack / "tasks" / f"{self.name}{SUFFIX}", task)


def _renamed(file: bytes, old: str, new: str) -> bytes:
    """Return a file whose manifest has one digest in the place of another; as it is where it has no manifest."""
    try:
        parts = split_file(file)
        packed = file[slice(*parts.pop("manifest"))]
        text = zstandard.ZstdDecompressor().decompress(packed[4:], max_output_size=1 << 20)
        sections = {name: file[slice(*parts[name])] for name in list(parts)[3:]}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, zstandard.ZstdError, RecursionError):
        return file
    text = text.replace(old.encode(), new.encode())
    return join_file(sections, with_size(zstandard.ZstdCompressor(level=1).compress(text), len(text)))


def task_target(codec_id: str, scratch: Path) -> Target:
    """Return the target of tasks of a codec: file, template, table of the base and kept files, all made to fit."""
    wholes = [write_whole(v, scratch / v.id) for v in ALL if v.kind == "whole pack" and not v.bad]
    named = [(pack, base, name, task.codec) for pack, base in wholes for name, task in petlpack.open(pack).items()]
    cases = [_GoldenTask(pack, base, name) for pack, base, name, used in named if used == codec_id]

    def attack(data: bytes) -> None:
        parts = unbundle(data)
        case = cases[parts.get("case", b"\0")[0] % len(cases) if parts.get("case") else 0]
        case.put(parts)
        found = tried(lambda: petlpack.open(case.pack, max_bytes=_MOST)[case.name])
        if found is not None:
            _read_all(found[0], case.base)
        if found is not None and zlib.crc32(data) % 4 == 0:
            shutil.rmtree(scratch / "out", ignore_errors=True)
            to = list(EXPORTS)[zlib.crc32(data) // 4 % len(EXPORTS)]
            tried(lambda: found[0].decode(scratch / "out", case.base, to=to))

    seeds = [bundle({"case": bytes([number]), **case.parts}) for number, case in enumerate(cases)]
    return Target(seeds, attack, mutate_bundle)


def _read_all(task: petlpack.Task, base: petlpack.Base | None) -> None:
    """Read all of a task, as far as it is not refused."""
    template = tried(lambda: task.template)
    for read in (task.formula, task.check_files, lambda: task.parts, lambda: task.facts):
        tried(read)
    for file in () if template is None else template[0].files:
        tried(lambda file=file: task.read_file(file))  # type: ignore[misc]
    loaded = tried(lambda: task.load(base))
    if loaded is None:
        return
    rows = tried(lambda: list(loaded[0].read_all(jobs=1)))
    assert rows is None or all(bits.nbytes == slot.nbytes for _, slot, bits in rows[0])
    rebuilt = tried(lambda: task.rebuild(base))
    for tensor in () if rebuilt is None or rebuilt[0] is None else rebuilt[0].tensors.values():
        tried(tensor.bits)


FILES: dict[str, Callable[[Path], Target]] = {
    "container": container_file,
    "shared bytes": shared_bytes,
    "shared tensors": shared_tensors,
    "safetensors file": weights_file,
    "index of shards": shard_index,
    "foreign JSON": small_json,
    "torch archive": pickled,
    "hub cache": hub_cache,
    **{f"task by {name}": partial(task_target, name) for name in CODECS},
}
"""The targets of files by name, each made with a directory of its own."""
