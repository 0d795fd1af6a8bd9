"""No rule of a reader is unknown to the writer: what each forbids is not written, and nothing is left behind.

A writer with a fault makes what the rule forbids, and `encode` refuses, for the reason that a reader would give. The
mark `rule` names the codes that a test is about: `python -m tools.rules` puts them beside the vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import petlpack
from petlpack import PetlpackError, coding
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor
from tests.support import faulty
from tests.support.golden import ALL
from tests.support.method_runs import write_adapterhub
from tests.support.places import SMALL, Methods
from tests.support.small_runs import make_pair, random_bits, write_run
from tools.vectors import Vector, unhex
from tools.write_vectors import bits_of

Fault = Callable[[pytest.MonkeyPatch], None]


def cases(faults: dict[str, Fault]) -> Callable[[Any], Any]:
    """Return the faults as parameters of a test, each marked with the code of its rule: what stands before a space."""
    params = [pytest.param(name, id=name, marks=pytest.mark.rule(name.split()[0])) for name in faults]
    return pytest.mark.parametrize("fault", params)


def write_tuned(root: Path) -> tuple[Path, Path]:
    """Write a run with stored and unchanged tensors, an alias and one row more than its base, and that base."""
    tuned, base = make_pair(5, **SMALL)
    words = tuned["bert.embeddings.word_embeddings.weight"].bits()
    tuned["bert.embeddings.word_embeddings.weight"] = Tensor.of(np.vstack([words, words[:1]]), DTYPES["F32"])
    tuned["bert.embeddings.LayerNorm.bias"] = base["embeddings.LayerNorm.bias"]
    tuned["tied.weight"] = tuned["classifier.weight"]
    return write_run(root / "tuned", tuned), write_run(root / "tuned-base", base)


# Files


def edit(change: faulty.Bytes) -> Fault:
    return lambda patch: faulty.files(patch, change)


def manifest(change: faulty.Table) -> Fault:
    return edit(faulty.in_manifest(faulty.in_json(change)))


def text(change: faulty.Bytes) -> Fault:
    return edit(faulty.in_manifest(change))


def header(change: faulty.Bytes) -> Fault:
    """Return a fault in the text of a header, whose length fits again."""

    def changed(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        made = change(data[8 : 8 + size].rstrip())
        made += b" " * (-len(made) % 8)
        return len(made).to_bytes(8, "little") + made + data[8 + size :]

    return edit(changed)


def shifted(head: bytes) -> bytes:
    """Let the first section begin a byte later."""
    start, stop = (int(at) for at in re.findall(rb'"data_offsets":\[(\d+),(\d+)\]', head)[0])
    return head.replace(b'"data_offsets":[%d,%d]' % (start, stop), b'"data_offsets":[%d,%d]' % (start + 1, stop + 1))


def last_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def row(column: int, value: object) -> faulty.Table:
    """Return a change of the first section's row."""

    def changed(table: Any) -> None:
        table["sections"][0][column] = value

    return changed


def doubled(table: Any) -> None:
    table["sections"].append(table["sections"][0])


def both_changed(table: Any) -> None:
    table["params"]["aliases"] = [[table["params"]["unchanged"][0][0], 0]]


def no_unchanged(table: Any) -> None:
    table["params"]["unchanged"] = []


def params(**values: object) -> faulty.Table:
    return lambda table: table["params"].update(values)


FILES: dict[str, Fault] = {
    "file-size short": edit(lambda data: data[:-1]),
    "file-size long": edit(lambda data: data + b"\0"),
    "file-kind": manifest(lambda table: table.pop("checksum") and table.update(kind="shared")),
    "format-unknown": header(lambda head: head.replace(b'"petlpack"', b'"petlpuck"')),
    "version-unknown file": header(lambda head: head.replace(b'"version":"1"', b'"version":"2"')),
    "version-unknown manifest": manifest(lambda table: table.update(version=2)),
    "size-limit": lambda patch: patch.setattr("petlpack.container.file.MAX_MANIFEST", 100),
    "json-values": manifest(lambda table: table["facts"].update(note=[[]] * 200_000)),
    "part-limit": manifest(lambda table: table["shared"].extend(["ab" * 32] * 256)),
    "header-size": edit(lambda data: (1 << 40).to_bytes(8, "little") + data[8:]),
    "header-json": header(lambda head: head[:-1]),
    "header-twice": header(lambda head: head[:-1] + b',"manifest":{}}'),
    "header-fields": header(lambda head: head.replace(b'"U8"', b"8", 1)),
    "header-offsets": header(shifted),
    "header-sections": manifest(row(0, "other.0")),
    "header-canonical": header(lambda head: head.replace(b",", b", ", 1)),
    "manifest-missing": header(lambda head: head.replace(b'"manifest"', b'"manifesto"')),
    "manifest-digest": edit(last_byte),
    "manifest-json": text(lambda text: text[:-1]),
    "manifest-fields": manifest(lambda table: {key: table[key] for key in table if key != "facts"}),
    "manifest-row": manifest(row(3, -1)),
    "manifest-name": manifest(row(1, "Raw")),
    "manifest-canonical": text(lambda text: text.replace(b",", b", ", 1)),
    "section-twice": manifest(doubled),
    "kind-unknown": manifest(lambda table: table.update(kind="other")),
    "codec-unknown": manifest(lambda table: table.update(codec="other")),
    "coder-unknown": manifest(row(1, "other")),
    "dtype-unknown": manifest(row(2, "F4")),
    "sha256-digits": manifest(lambda table: table.update(decoded="AB" * 32)),
    "checksum-digits": manifest(lambda table: table.update(checksum="AB" * 8)),
    "params-fields": manifest(lambda table: table["params"].pop("name") and None),
    "params-index": manifest(params(unchanged=[[0, 10_000]])),
    "params-order": manifest(params(unchanged=[[0, 1], [1, 2]])),
    "unchanged-tensor": manifest(params(unchanged=[[0, 10]])),
    "alias-shape": manifest(params(aliases=[[0, 2]])),
    "alias-chain": manifest(both_changed),
    "template-name": manifest(params(name="a/b")),
    "part-missing": manifest(lambda table: table.update(shared=["ab" * 32])),
    "section-names": manifest(lambda table: table.update(codec="sparse")),
    "section-elements": manifest(no_unchanged),
    "section-digest": manifest(row(4, "ab" * 8)),
    "decoded-digest": manifest(lambda table: table.update(decoded="ab" * 32)),
    "decoded-digest checksum": manifest(lambda table: table.update(checksum="ab" * 8)),
}


@cases(FILES)
def test_a_file_with_a_fault_is_not_stored(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, base = write_tuned(tmp_path)
    petlpack.encode(run, tmp_path / "p", base, task="before", codec="ulp")
    FILES[fault](monkeypatch)
    faulty.refused(
        tmp_path / "p",
        fault.split()[0],
        lambda: petlpack.encode(run, tmp_path / "p", base, task="task", codec="ulp"),
    )


# Templates and tables of bases


def template(change: faulty.Table) -> Fault:
    return lambda patch: faulty.templates(patch, faulty.in_json(change))


def table(change: faulty.Table) -> Fault:
    return lambda patch: faulty.tables(patch, faulty.in_json(change))


def view(change: Callable[[Any], object]) -> Fault:
    """Return a fault in the first view of the base."""

    def changed(table: Any) -> None:
        pair = table["base"]["tensors"][0]
        pair[1] = change(pair[1])

    return template(changed)


def deep(said: object) -> object:
    for _ in range(20):
        said = ["reshape", [1], said]
    return said


TEMPLATES: dict[str, Fault] = {
    "template-json": lambda patch: faulty.templates(patch, lambda text: text[:-1]),
    "template-fields": template(lambda table: table.update(base_name=1)),
    "template-canonical spaces": lambda patch: faulty.templates(patch, lambda text: text.replace(b",", b", ", 1)),
    "template-canonical order": template(lambda table: table.update(head=["b", "a"])),
    "template-twice": template(lambda table: table["weights"].append(table["weights"][0])),
    "template-reference": template(lambda table: table.update(named=["no such file"])),
    "template-base-shape": view(lambda said: "embeddings.word_embeddings.weight"),
    "file-name": template(lambda table: table["files"].update({"../x": "ab" * 32})),
    "file-clash": template(lambda table: table["files"].update({"MODEL.safetensors": "ab" * 32})),
    "view-fields": view(lambda said: {"a": said}),
    "view-shape": view(lambda said: ["reshape", [1], said]),
    "view-limit": view(deep),
    "view-unknown": view(lambda said: ["rotate", said]),
    "part-elsewhere": template(lambda table: table.update(parts=[[table["base"]["tensors"][0][0]]])),
    "base-table-json": lambda patch: faulty.tables(patch, lambda text: text[:-1]),
    "base-table-row": table(lambda rows: rows[0].pop() and None),
    "base-table-canonical": table(lambda rows: rows[::-1]),
    "dtype-unknown": table(lambda rows: rows[0].__setitem__(1, "F4")),
    "rule-fields": template(lambda table: table.update(rule={"rows": []})),
    "header-json weights": template(lambda table: table["weights"][0].__setitem__(1, "no")),
}


@cases(TEMPLATES)
def test_a_template_with_a_fault_is_not_stored(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, base = write_tuned(tmp_path)
    TEMPLATES[fault](monkeypatch)
    faulty.refused(
        tmp_path / "p",
        fault.split()[0],
        lambda: petlpack.encode(run, tmp_path / "p", base, task="task", codec="ulp"),
    )


# What a run is given with: bases, names, packs, files


def in_row(column: int, value: object) -> faulty.Table:
    """Return a change of the first row of a table of a base, the norm's bias."""
    return lambda rows: rows[0].__setitem__(column, value)


def renamed(patch: pytest.MonkeyPatch) -> None:
    """Call a tensor of the base otherwise, in the table and in the template."""
    faulty.tables(patch, lambda text: text.replace(b'"embeddings.LayerNorm.bias"', b'"embeddings.LayerNorm.bia"'))
    faulty.templates(patch, lambda text: text.replace(b',"embeddings.LayerNorm.bias"', b',"embeddings.LayerNorm.bia"'))


BASES: dict[str, Fault] = {
    "base-tensor": renamed,
    "base-shape": table(in_row(1, "BF16")),
    "base-digest": table(in_row(3, "ab" * 32)),
    "base-digest checksum": table(in_row(4, "ab" * 8)),
}


@cases(BASES)
def test_a_fault_in_what_is_said_of_a_base_is_not_stored(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, base = write_tuned(tmp_path)
    BASES[fault](monkeypatch)
    code = fault.split()[0]
    faulty.refused(tmp_path / "p", code, lambda: petlpack.encode(run, tmp_path / "p", base, task="task", codec="ulp"))


@pytest.mark.rule("base-missing")
@pytest.mark.parametrize("place", [None, "nowhere"])
def test_what_needs_a_base_is_not_stored_without_one(tmp_path: Path, place: str | None) -> None:
    run, _ = write_tuned(tmp_path)
    base = None if place is None else tmp_path / place
    faulty.refused(
        tmp_path / "p",
        "base-missing",
        lambda: petlpack.encode(run, tmp_path / "p", base, task="task", codec="ulp"),
    )


MARKS = {vector.id: vector for vector in ALL if vector.kind == "pack" and vector.bad}


@pytest.mark.rule(*sorted({str(vector["code"]) for vector in MARKS.values()}))
@pytest.mark.parametrize("vector", [pytest.param(vector, id=name) for name, vector in MARKS.items()])
def test_nothing_is_stored_beside_another_mark(vector: Vector, tmp_path: Path) -> None:
    run, base = write_tuned(tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "pack.json").write_text(vector["text"], encoding="utf-8")
    faulty.refused(tmp_path / "p", vector["code"], lambda: petlpack.encode(run, tmp_path / "p", base, task="task"))


NAMES = {vector.id: vector for vector in ALL if vector.kind == "task name" and vector.bad}


@pytest.mark.rule("task-name")
@pytest.mark.parametrize("vector", [pytest.param(vector, id=name) for name, vector in NAMES.items()])
def test_nothing_is_stored_under_a_name_of_no_task(vector: Vector, tmp_path: Path) -> None:
    run, base = write_tuned(tmp_path)
    faulty.refused(
        tmp_path / "p", vector["code"], lambda: petlpack.encode(run, tmp_path / "p", base, task=vector["name"])
    )


@pytest.mark.rule("file-text")
def test_a_file_that_is_no_text_takes_no_name(tmp_path: Path) -> None:
    run = write_adapterhub(tmp_path / "rte", "rte")
    contents = {"text.json": b'{"of": "rte"}', "bytes.json": b'{"of": "rte"}\xff'}
    for name, content in contents.items():
        (run.path / name).write_bytes(content)
    petlpack.encode(run.path, tmp_path / "p", task="rte")
    task = petlpack.open(tmp_path / "p")["rte"]
    assert {name: name in task.template.named for name in contents} == {"text.json": True, "bytes.json": False}
    assert {name: task.read_file(name) for name in contents} == contents


@pytest.mark.rule("decoded-digest", "zstd-frame")
@pytest.mark.parametrize(("coder_id", "code"), [("raw", "decoded-digest"), ("planes", "zstd-frame")])
def test_a_kept_file_with_a_fault_is_in_no_task(
    coder_id: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, base = make_pair(5, **SMALL)
    run = write_run(tmp_path / "run", tuned, files={"vocab.txt": b"words" * 1000})
    data = b"sword" * 1000 if coder_id == "raw" else b"\4\0\0\0oops"
    faulty.sections(monkeypatch, coder_id, data, coding.Array(DTYPES["U8"], 5000, 5000))
    with pytest.raises(PetlpackError) as caught:
        petlpack.encode(run, tmp_path / "p", write_run(tmp_path / "base", base), task="task")
    assert caught.value.code == code
    assert not (tmp_path / "p" / "tasks" / "task.petl.safetensors").exists()


# Rules and parts


def rule(codec_id: str, change: faulty.Table) -> tuple[str, Fault]:
    return codec_id, lambda patch: faulty.rules(patch, codec_id, change)


def first_row(column: int, value: object) -> faulty.Table:
    """Return a change of the first row of a rule."""
    return lambda table: table["rows"][0].__setitem__(column, value)


def part(change: faulty.Table) -> tuple[str, Fault]:
    """Return a fault in the manifests of parts."""
    return "mask", manifest(lambda table: change(table) if table["kind"] == "shared" else None)


def task(change: faulty.Table) -> tuple[str, Fault]:
    """Return a fault in the manifests of tasks."""
    return "mask", manifest(lambda table: change(table) if table["kind"] == "task" else None)


METHODS: dict[str, tuple[str, Fault]] = {
    "rule-fields": rule("merge", lambda table: table.pop("rows") and None),
    "rule-unknown": rule("merge", lambda table: table.update(kind="other")),
    "rule-settings": rule("merge", lambda table: table.update(settings=[])),
    "rule-row": rule("merge", first_row(0, 1)),
    "rule-value": rule("merge", first_row(1, [])),
    "rule-reference": rule("merge", first_row(1, ["no such tensor"])),
    "rule-shape": rule("mask", lambda table: table["rows"][0].__setitem__(1, table["rows"][0][2][0])),
    "part-row": part(lambda table: table["params"]["tensors"][0].pop() and None),
    "part-row kind": part(lambda table: table["params"]["tensors"][0].__setitem__(2, 99)),
    "file-kind part": part(lambda table: table.update(facts={"a": 1})),
    "section-capacity": part(lambda table: table["params"]["tensors"][0].__setitem__(1, [1 << 40])),
    "part-missing": task(lambda table: table["shared"].__setitem__(1, "ab" * 32)),
    "part-tensors": task(lambda table: table["shared"].pop() and None),
    "template-name": task(lambda table: table["params"].update(name="a/b")),
    "name-growth": ("mask", lambda patch: patch.setattr("petlpack.records.template.FREE_GROWTH", -1 << 30)),
}


@cases({name: fault for name, (_, fault) in METHODS.items()})
def test_a_method_with_a_fault_is_not_stored(fault: str, methods: Methods, monkeypatch: pytest.MonkeyPatch) -> None:
    codec_id, broken = METHODS[fault]
    broken(monkeypatch)
    faulty.refused(methods.root / "p", fault.split()[0], lambda: methods.encode(codec_id, methods.root / "p"))


# Sections


ARRAYS = {
    vector.id: vector
    for vector in ALL
    if vector.kind == "coder" and vector.bad and 0 < vector["count"] < 10_000 and vector["coder"] != "masks"
}


def write_array(root: Path, vector: Vector) -> dict[str, Any]:
    """Write a run of one tensor, and its base where the vector has a prediction; return the arguments of `encode`."""
    dtype, count, row = vector["dtype"], vector["count"], vector["row"]
    shape = (count // row, row) if count % row == 0 else (count,)
    prediction = None if vector["prediction"] is None else bits_of(vector["prediction"], dtype)
    bits = random_bits(dtype, count) if prediction is None else prediction ^ 1
    run = write_run(root / "run", {"w": Tensor.of(bits.reshape(shape), DTYPES[dtype])})
    if prediction is None:
        return {"run_dir": run, "codec": "plain"}
    base = write_run(root / "base", {"w": Tensor.of(prediction.reshape(shape), DTYPES[dtype])})
    return {"run_dir": run, "base": base, "codec": "ulp"}


@pytest.mark.rule(*sorted({str(vector["code"]) for vector in ARRAYS.values()}))
@pytest.mark.parametrize("vector", [pytest.param(vector, id=name) for name, vector in ARRAYS.items()])
def test_a_section_with_a_fault_is_not_stored(vector: Vector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_array(tmp_path, vector)
    dtype = DTYPES[vector["dtype"]]
    array = coding.Array(dtype, vector["count"], vector["row"])
    faulty.sections(monkeypatch, vector["coder"], unhex(vector["data"]), array)
    faulty.refused(tmp_path / "p", vector["code"], lambda: petlpack.encode(**run, pack=tmp_path / "p", task="task"))
