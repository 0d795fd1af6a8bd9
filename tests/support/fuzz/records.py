"""Targets of texts: what is parsed can be written again to the same bytes, and the second reader takes the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from petlpack.container.manifest import parse_manifest
from petlpack.errors import DamageError
from petlpack.records.base_table import BaseTable, base_table_json, parse_base_table
from petlpack.records.canonical import canonical_json, read_canonical
from petlpack.records.facts import Facts
from petlpack.records.sources import parse_sources
from petlpack.records.template import parse_template
from petlpack.records.views import parse_view, view_json
from petlpack.store.names import can_be_task, is_own, legal_task_name
from petlpack.store.places import check_mark
from petlpack.store.released import change_released, read_released
from petlpack.store.seals import parse_seal
from petlpack.tensors.decimals import decimal_text, parse_decimal
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.file_names import check_apart, is_file_name
from petlpack.tensors.safetensors_file import Entry, parse_header
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import UNKNOWN, BaseRef
from tests.support import spec_reader
from tests.support.fuzz.mutations import mutate_bytes, mutate_json
from tests.support.fuzz.target import Target, agree, put, tried
from tests.support.golden import ALL, BY_ID
from tools.vectors import Vector, unhex
from tools.write_vectors import bits_of, replaced, slots_of

SMALL = 1 << 12
"""Elements of what is computed to see whether it can be."""


def texts_of(kind: str) -> Iterator[bytes]:
    """Yield the texts of the vectors of a kind, good and bad."""
    return (_text_of(vector) for vector in ALL if vector.kind == kind)


def _text_of(vector: Vector) -> bytes:
    if "hex" in vector.fields:
        return unhex(vector["hex"])
    if "of" in vector.fields:
        text = _text_of(BY_ID[vector["of"]])
        return replaced(text, vector["replace"]) if "replace" in vector.fields else text
    return str(vector["text"]).encode()


def manifest(_: Path) -> Target:
    """Return the target of manifests, with what they tell people."""

    def attack(text: bytes) -> None:
        found = tried(lambda: parse_manifest(text))
        agree(found, lambda: spec_reader.parse_manifest(text))
        if found is not None:
            assert found[0].to_json() == text
            Facts.parse(found[0].facts)

    return Target(texts_of("manifest"), attack, mutate_json)


def facts(_: Path) -> Target:
    """Return the target of facts, which may be anything: what is said again says the same."""

    def attack(text: bytes) -> None:
        found = tried(lambda: json.loads(text), ValueError, RecursionError)
        if found is not None and isinstance(found[0], dict):
            said = Facts.parse(found[0]).to_json()
            assert Facts.parse(said).to_json() == said

    seeds = [
        {"layout": "transformers", "method": "x", "whole": True, "run_bytes": 7, "score": ["acc", "0.9"]},
        {"density": "0.05", "error": {"a": "1e-3"}, "options": {"density": "0.1"}, "figures": {"trained": 9}},
        {"task": "rte", "note": "n", "exact": False},
    ]
    return Target([json.dumps(seed).encode() for seed in seeds], attack, mutate_json)


_TABLES = {hashlib.sha256(text).hexdigest(): text for text in texts_of("base table")}


def _table(sha256: str) -> BaseTable:
    if sha256 not in _TABLES:
        raise DamageError("missing")
    return parse_base_table(_TABLES[sha256], "t")


def _table_too(sha256: str) -> spec_reader.BaseTable:
    return spec_reader.parse_base_table(_TABLES[sha256])


def template(_: Path) -> Target:
    """Return the target of templates, by themselves and for a task of a name, which comes first."""

    def attack(data: bytes) -> None:
        first, _, text = data.partition(b"\n")
        name = first.decode("utf-8", "replace") or None
        found = tried(lambda: parse_template(text, "t", name, _table))
        agree(found, lambda: spec_reader.parse_template(text, name, _table_too))
        if found is None:
            return
        again = found[0].to_json()
        assert (name is not None) or again == text
        parsed = parse_template(again, "t", None, _table)
        assert (parsed, parsed.slots) == (found[0], found[0].slots)
        if found[0].can_bind(name):
            assert parse_template(found[0].to_json(name), "t", name, _table) == found[0]
        found[0].run_bytes({}), found[0].ties({}), found[0].needs, found[0].base_refs

    def mutate(data: bytes, rng: Any, havoc: Callable[[bytes], bytes]) -> bytes:
        name, _, text = data.partition(b"\n")
        return havoc(name) + b"\n" + text if rng.random() < 0.1 else name + b"\n" + mutate_json(text, rng, havoc)

    texts = list(texts_of("template"))
    return Target([name + b"\n" + text for text in texts for name in (b"", b"rte")], attack, mutate)


def base_table(_: Path) -> Target:
    """Return the target of tables of bases."""

    def attack(text: bytes) -> None:
        found = tried(lambda: parse_base_table(text, "t"))
        agree(found, lambda: spec_reader.parse_base_table(text))
        assert found is None or base_table_json(found[0]) == text

    return Target(texts_of("base table"), attack, mutate_json)


def params(_: Path) -> Target:
    """Return the target of what a manifest says of where tensors are."""
    good = [vector for vector in ALL if vector.kind == "params" and not vector.bad]

    def attack(text: bytes) -> None:
        said = tried(lambda: read_canonical(text)[0], ValueError)
        if said is None or not isinstance(said[0], dict):
            return
        said[0].update({"name": None} if "name" in said[0] else {})  # which the template checks
        for vector in good:
            slots = slots_of(vector["slots"])
            found = tried(lambda slots=slots: parse_sources(said[0], slots))  # type: ignore[misc]
            agree(found, lambda v=vector: spec_reader.parse_params(said[0], _second_slots(v)))  # type: ignore[misc]
            assert found is None or found[0].to_params() == said[0]
            assert found is None or len(found[0].stored) <= len(slots)

    texts = [json.dumps(vector["params"]).encode() for vector in ALL if vector.kind == "params"]
    return Target(texts, attack, mutate_json)


def _second_slots(vector: Vector) -> list[spec_reader.Slot]:
    def view(name: str, dtype: str, base: Any) -> Any:
        return None if base is None else spec_reader.View(name, dtype, tuple(base), ())

    return [
        spec_reader.Slot(name, dtype, tuple(shape), view(name, dtype, base), head, tuple(place[0]) if place else None)
        for name, dtype, shape, base, head, *place in vector["slots"]
    ]


def view(_: Path) -> Target:
    """Return the target of views: what they say, and the elements that they give."""
    rows = {row[0]: row for vector in ALL if vector.kind == "view" and not vector.bad for row in vector["tensors"]}
    bits = {name: bits_of(data, dtype).reshape(shape) for name, dtype, shape, data in rows.values()}
    refs = {name: BaseRef(name, DTYPES[dtype], tuple(shape), UNKNOWN) for name, dtype, shape, _ in rows.values()}
    second = {
        name: spec_reader.BaseTensor(name, dtype, tuple(shape), "", "") for name, dtype, shape, _ in rows.values()
    }
    arrays = {name: (row[1], bits[name]) for name, row in rows.items()}

    def attack(text: bytes) -> None:
        said = tried(lambda: read_canonical(text)[0], ValueError)
        if said is None:
            return
        found = tried(lambda: parse_view(said[0], refs), ValueError)
        agree(found, lambda: spec_reader.parse_view(said[0], second))
        if found is None:
            return
        assert view_json(found[0]) == said[0]
        count = int(np.prod(found[0].shape, dtype=np.int64))
        if count <= SMALL:
            reader = ViewReader(lambda ref: Tensor.of(bits[ref.name], ref.dtype))
            whole = reader.read(found[0], 0, count)
            assert (len(whole), whole.dtype) == (count, found[0].dtype.bits)
            spans = ((0, count // 2), (count // 2, count)) if count > 1 else ((0, count),)
            halves = [reader.read(found[0], *span) for span in spans]
            assert np.concatenate(halves).tolist() == whole.tolist()
            assert spec_reader.elements_of(said[0], arrays)[1].reshape(-1).tolist() == whole.tolist()

    texts = [json.dumps(vector["view"]).encode() for vector in ALL if vector.kind == "view"]
    return Target(texts, attack, mutate_json)


def inventory(_: Path) -> Target:
    """Return the target of seals, whose digest is mostly made to fit."""

    def attack(text: bytes) -> None:
        found = tried(lambda: parse_seal(text))
        agree(found, lambda: spec_reader.parse_inventory(text))
        assert found is None or found[0].to_json() == text

    def mutate(data: bytes, rng: Any, havoc: Callable[[bytes], bytes]) -> bytes:
        text = mutate_json(data, rng, havoc)
        try:
            table = json.loads(text)
            table["sha256"] = hashlib.sha256(canonical_json(table["files"])).hexdigest()
            return canonical_json(table)
        except (ValueError, KeyError, TypeError, RecursionError):
            return text

    return Target(texts_of("inventory"), attack, mutate)


def mark(scratch: Path) -> Target:
    """Return the target of the mark of a pack."""

    def attack(text: bytes) -> None:
        put(scratch / "pack.json", text)
        agree(tried(lambda: check_mark(scratch)), lambda: spec_reader.check_mark(text))

    return Target(texts_of("pack"), attack, mutate_json)


def released(scratch: Path) -> Target:
    """Return the target of the journal of parts that were given up."""

    def attack(text: bytes) -> None:
        put(scratch / ".released", text)
        found = read_released(scratch)
        assert found == set(spec_reader.released(text))
        change_released(scratch, add=["0" * 64])
        assert read_released(scratch) == found | {"0" * 64}

    return Target(texts_of("released"), attack)


def header(_: Path) -> Target:
    """Return the target of safetensors headers; the library whose format it is takes what is taken."""

    def attack(text: bytes) -> None:
        found = tried(lambda: parse_header(text))
        agree(found, lambda: spec_reader.parse_header(text))
        if found is not None:
            assert found[0].head_bytes() == len(text).to_bytes(8, "little") + text
            assert all(isinstance(entry, Entry) for entry in found[0].tensors.values())
            found[0].ties, found[0].file_size

    return Target(_headers(), attack, mutate_json)


def _headers() -> Iterator[bytes]:
    """Yield the headers in the templates of the vectors, and those of containers."""
    for text in texts_of("template"):
        found = tried(lambda text=text: json.loads(text), ValueError)  # type: ignore[misc]
        rows = found[0].get("weights") if found is not None and isinstance(found[0], dict) else []
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, list) and len(row) > 1 and isinstance(row[1], str):
                yield row[1].encode("utf-8", "surrogatepass")


def names(_: Path) -> Target:
    """Return the target of names: of tasks, of files, and decimals."""

    def attack(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        name = legal_task_name(text)
        assert can_be_task(name)
        assert legal_task_name(name) == name
        agree((name,) if can_be_task(text) else None, lambda: spec_reader.check_task_name(text))
        is_own(text)
        lines = list(dict.fromkeys(text.split("\n")))
        if all(map(is_file_name, lines)):
            agree(tried(lambda: check_apart(lines), ValueError), lambda: spec_reader.check_apart(lines))
        number = parse_decimal(text)
        assert number is None or parse_decimal(decimal_text(number)) == number
        if re.fullmatch("[ -~]+", text):
            again = tried(lambda: spec_reader.decimal(text), ValueError)
            assert number == (None if again is None else again[0]), "the second reader takes another number"

    seeds = (
        *("sst2", "glue-SST2_seed.42", "con.txt", "0.05", "-1.5e-3", "1e400", "a/b\na/B\na", "\u00e9\u0301", ".x"),
    )
    return Target([seed.encode() for seed in seeds], attack, mutate_bytes)


RECORDS: dict[str, Callable[[Path], Target]] = {
    "manifest": manifest,
    "facts": facts,
    "template": template,
    "base table": base_table,
    "params": params,
    "views": view,
    "inventory": inventory,
    "mark": mark,
    "released": released,
    "safetensors header": header,
    "names and decimals": names,
}
"""The targets of texts by name, each made with a directory of its own."""
