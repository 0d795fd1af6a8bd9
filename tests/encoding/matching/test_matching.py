"""Runs whose tensors are called otherwise than the base's: exact, and no larger than with equal names."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import petlpack
from petlpack.encoding.matching.spelling import WRAPPERS
from petlpack.encoding.matching.steps import ALL, BY_NAME, match_tensors
from petlpack.errors import BaseError
from petlpack.tensors.base import Base
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor
from tests.support.small_runs import make_base, nudged, weights, write_run

Tensors = dict[str, Tensor]

WORDS = "embeddings.word_embeddings.weight"


def tuned_from(base: Mapping[str, Tensor], seed: int = 1, steps: int = 40) -> Tensors:
    """Return a fine-tune of a base, under its names."""
    return {name: nudged(tensor, 100 * seed + i, steps=steps) for i, (name, tensor) in enumerate(base.items())}


def called(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> Tensors:
    return {rename(name): tensor for name, tensor in tensors.items()}


def matches(place: Path, tuned: Tensors, base: Tensors) -> dict[str, str]:
    """Return what matches what, of tensors in memory and a base that is written for it."""
    digests = {name: tensor.sha256() for name, tensor in tuned.items()}
    return match_tensors(tuned, digests, Base(write_run(place / "base", base)), 1, ALL)


def encoded(place: Path, tuned: Tensors, base: Tensors) -> petlpack.Encoded:
    """Encode a run and compare what it decodes to, bit for bit."""
    run, against = write_run(place / "run", tuned), write_run(place / "base", base)
    (task,) = petlpack.encode(run, place / "pack", against, jobs=1)
    decoded = petlpack.open(place / "pack")["run"].load(against)
    assert decoded.keys() == tuned.keys()
    assert all(np.array_equal(decoded[name].bits(), tensor.bits()) for name, tensor in tuned.items())
    return task


def in_layers(part: str) -> Callable[[str], str]:
    return lambda name: re.sub(r"(layer\.\d+\.)", rf"\1{part}.", name)


def moved(name: str) -> str:
    """Name the embeddings and the layers under two places of a larger model, as new versions of libraries do."""
    return ("model.text." if name.startswith("embeddings") else "model.body.core.") + name


def other_roles(name: str) -> str:
    return name.replace("attention.self.query", "attn.q_proj").replace("intermediate.dense", "mlp.fc1")


RENAMINGS: dict[str, Callable[[str], str]] = {
    "a compiled block": in_layers("_orig_mod"),
    "checkpointed blocks under FSDP": lambda name: (
        "_fsdp_wrapped_module." + in_layers("_fsdp_wrapped_module._checkpoint_wrapped_module")(name)
    ),
    "five wrappers in front": lambda name: "module._orig_mod.module._forward_module._fsdp_wrapped_module." + name,
    "wrapped by PEFT": lambda name: "base_model.model." + name.replace("query.", "query.base_layer."),
    "two moved parts": moved,
    "other roles": other_roles,
    "moved, wrapped and of other roles": lambda name: "model.tower." + in_layers("_orig_mod")(other_roles(name)),
    "one renamed tensor": lambda name: name.replace(WORDS, "tok.w"),
    "nothing in common": lambda name: name.replace("e", "3").replace(".", "/"),
}


@pytest.mark.parametrize("renaming", RENAMINGS)
@pytest.mark.parametrize("of_base", [False, True], ids=["run", "base"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_renamed_run_takes_what_equal_names_take(tmp_path: Path, renaming: str, of_base: bool, dtype: str) -> None:
    base = make_base(dtype="F32")
    tuned = tuned_from(make_base(dtype=dtype), steps=40 if dtype == "F32" else 2)
    other_names = called(base if of_base else tuned, RENAMINGS[renaming])
    plain = encoded(tmp_path / "plain", tuned, base)
    renamed = encoded(tmp_path / "renamed", *((tuned, other_names) if of_base else (other_names, base)))
    assert renamed.nbytes <= 1.02 * plain.nbytes
    assert renamed.warnings == ()


WRAPPED = st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=2)


@settings(max_examples=10)
@given(st.data())
def test_any_wrappers_leave_a_run_exact_and_no_larger(data: st.DataObject) -> None:
    base = make_base(layers=1)
    tuned = tuned_from(base)
    front = data.draw(st.sampled_from(["", "bert.", "student.encoder."]))

    def wrapped(name: str) -> str:
        *parts, last = name.split(".")
        return front + ".".join([*(part for real in parts for part in (*data.draw(WRAPPED), real)), last])

    with tempfile.TemporaryDirectory() as place:
        plain = encoded(Path(place) / "plain", tuned, base)
        assert encoded(Path(place) / "wrapped", called(tuned, wrapped), base).nbytes <= plain.nbytes + 8


@pytest.mark.parametrize("rows", [50, 53], ids=["of one size", "resized"])
def test_an_untied_head_comes_from_the_tied_embeddings(tmp_path: Path, rows: int) -> None:
    base = make_base()
    new = np.concatenate([base[WORDS].bits(), weights("F32", (3, 16), 7).bits()])[:rows]
    words = Tensor.of(new, DTYPES["F32"])
    tuned = {**tuned_from(base), WORDS: nudged(words, 5), "lm_head.weight": nudged(words, 6)}
    assert matches(tmp_path, tuned, base) == {**{name: name for name in base}, "lm_head.weight": WORDS}


def test_a_tied_copy_is_left_to_be_equal_to_the_other(tmp_path: Path) -> None:
    base = make_base()
    tuned = tuned_from(base)
    assert "lm_head.weight" not in matches(tmp_path, {**tuned, "lm_head.weight": tuned[WORDS]}, base)
    assert "lm_head.weight" not in matches(tmp_path / "frozen", {**base, "lm_head.weight": base[WORDS]}, base)


def test_two_towers_come_from_one_base(tmp_path: Path) -> None:
    base = make_base()
    towers = {
        **called(tuned_from(base, 1), lambda name: f"student.backbone.{name}"),
        **called(tuned_from(base, 2), lambda name: f"teacher.{name}"),
    }
    assert matches(tmp_path, towers, base) == {
        **{f"student.backbone.{name}": name for name in base},
        **{f"teacher.{name}": name for name in base},
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_of_two_towers_of_the_base_the_nearer_is_taken(tmp_path: Path, side: str) -> None:
    towers = {"left": make_base(1), "right": make_base(2)}
    base = {f"{tower}.{name}": tensor for tower, tensors in towers.items() for name, tensor in tensors.items()}
    found = matches(tmp_path, tuned_from(towers[side]), base)
    assert found == {name: f"{side}.{name}" for name in towers[side]}


def test_towers_of_other_names_come_from_their_own(tmp_path: Path) -> None:
    left, right = make_base(1), make_base(2)
    base = {**called(left, lambda name: f"left.{name}"), **called(right, lambda name: f"right.{name}")}
    tuned = {
        **called(tuned_from(right), lambda name: f"a.{name}"),
        **called(tuned_from(left), lambda name: f"b.{name}"),
    }
    found = matches(tmp_path, tuned, base)
    assert found == {
        f"{run}.{name}": f"{side}.{name}" for run, side in (("a", "right"), ("b", "left")) for name in left
    }


def test_renumbered_layers_come_from_those_that_they_were(tmp_path: Path) -> None:
    base = make_base(layers=5)
    kept = {"0": "0", "1": "2", "2": "4"}
    tuned = {
        name: nudged(base[re.sub(r"layer\.(\d)", lambda match: f"layer.{kept[match[1]]}", name)], i)
        for i, name in enumerate(make_base(layers=3))
    }
    found = matches(tmp_path, tuned, base)
    for name in (name for name in tuned if name.endswith("weight") and ".layer." in name):
        assert re.sub(r"layer\.(\d)", lambda match: f"layer.{kept[match[1]]}", name) == found[name]


def test_equal_tensors_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    base = {f"old.{i}": weights("F32", (8, 9), i) for i in range(4)}
    base["ids"] = Tensor.of(np.arange(12, dtype="<i8").view("<u8"), DTYPES["I64"])
    tuned = {f"new.part.{9 - i}x": base[f"old.{i}"] for i in range(4)} | {"positions": base["ids"]}
    expected = {**{f"new.part.{9 - i}x": f"old.{i}" for i in range(4)}, "positions": "ids"}
    assert matches(tmp_path, tuned, base) == expected


def test_a_thousand_renamed_tensors_of_one_shape_are_found(tmp_path: Path) -> None:
    base = {f"part.{i}.weight": weights("F32", (8, 8), i) for i in range(1000)}
    renamed = {name: hashlib.sha256(name.encode()).hexdigest() for name in base}
    tuned = called(tuned_from(base), renamed.__getitem__)
    assert matches(tmp_path, tuned, base) == {new: old for old, new in renamed.items()}


def test_a_constant_is_matched_by_its_name_only(tmp_path: Path) -> None:
    zeros = Tensor.of(np.zeros(16, "<u4"), DTYPES["F32"])
    base = {**make_base(), "encoder.layer.1.attention.self.query.bias": zeros}
    found = matches(tmp_path, {**tuned_from(make_base()), "classifier.dense.bias": zeros}, base)
    assert "classifier.dense.bias" not in found


def test_a_new_part_is_not_taken_for_one_that_looks_like_it(tmp_path: Path) -> None:
    base = make_base()
    new = {f"adapter.{name}": weights("F32", tensor.shape, 700 + i) for i, (name, tensor) in enumerate(base.items())}
    assert matches(tmp_path, {**tuned_from(base), **new}, base) == {name: name for name in base}


def test_a_base_of_other_weights_keeps_what_names_say_and_is_told(tmp_path: Path) -> None:
    task = encoded(tmp_path, make_base(5), make_base(6))
    (warning,) = task.warnings
    assert re.search(
        r"the base '.+base' hardly helps: 2,\d\d\d of 2,\d\d\d weights are not in it, or far from it", warning
    )


def test_weights_without_a_counterpart_are_counted_and_named(tmp_path: Path) -> None:
    base = make_base()
    new = {f"extra.{i}.weight": weights("F32", (30, 20), 40 + i) for i in range(3)} | {
        f"{part}.weight": weights("F32", (7, 3), ord(part)) for part in "abcdefg"
    }
    (warning,) = encoded(tmp_path, {**tuned_from(base), **new}, base).warnings
    assert re.search(r"1,947 of \d,\d\d\d weights have no counterpart in the base '.+base': ", warning)
    assert warning.endswith("a.weight, b.weight, c.weight, d.weight, e.weight, ...")


def test_of_a_new_head_nothing_is_told(tmp_path: Path) -> None:
    base = make_base(words=2000)
    head = {"classifier.weight": weights("F32", (4, 16), 3), "classifier.bias": weights("F32", (4,), 4)}
    assert encoded(tmp_path, {**tuned_from(base), **head}, base).warnings == ()


def test_plan_tells_what_encode_tells(tmp_path: Path) -> None:
    base = make_base()
    new = {"extra.weight": weights("F32", (30, 20), 40)}
    task = encoded(tmp_path, {**tuned_from(base), **new}, base)
    assert len(task.warnings) == 1
    for sample in (None, 0.5):
        plans = petlpack.plan([tmp_path / "run"], tmp_path / "base", sample=sample, jobs=1)
        assert plans.runs[0].warnings == task.warnings


def test_a_base_that_has_nothing_of_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no tensor name in common") as caught:
        encoded(tmp_path, {"a.b": weights("F32", (9, 9), 1)}, {"x.y": weights("F32", (9, 9), 2)})
    assert "--codec plain stores the run without a base" in str(caught.value.hint)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("dtype", ["I32", "BOOL", "U8"])
def test_tensors_of_other_kinds_of_numbers_match_nothing(tmp_path: Path, dtype: str) -> None:
    base = make_base()
    found = matches(tmp_path, {**tuned_from(base), WORDS: weights(dtype, base[WORDS].shape)}, base)
    assert found == {name: name for name in base if name != WORDS}


def test_values_that_are_no_numbers_disturb_nothing(tmp_path: Path) -> None:
    base = make_base()
    bits = base[WORDS].bits().copy()
    bits[::2] = np.uint32(0x7FC00001)
    odd = {**base, WORDS: Tensor.of(bits, DTYPES["F32"])}
    renamed = called(tuned_from(odd), other_roles)
    assert matches(tmp_path, renamed, odd) == {other_roles(name): name for name in base}


def test_a_method_run_is_matched_by_names_alone(tmp_path: Path) -> None:
    base = make_base()
    tuned = {**called(base, lambda name: f"bert.{name}"), "bert.prototype": base[WORDS]}
    digests = {name: tensor.sha256() for name, tensor in tuned.items()}
    found = match_tensors(tuned, digests, Base(write_run(tmp_path / "base", base)), 1, BY_NAME)
    assert found == {f"bert.{name}": name for name in base}


def reads(place: Path, layers: int) -> int:
    """Return how often tensors are read while a run with one renamed and one new tensor is matched."""
    count = 0

    def counted(tensor: Tensor) -> Tensor:
        def read_flat(start: int, stop: int) -> np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]:
            nonlocal count
            count += 1
            return tensor.read_flat(start, stop)

        return Tensor(tensor.dtype, tensor.shape, read_flat)

    base = make_base(layers=layers, width=8)
    tuned = called(tuned_from(base), lambda name: name.replace("layer.0.attention", "layer.0.attn"))
    tuned["new.weight"] = weights("F32", (8, 8), 77)
    digests = {name: tensor.sha256() for name, tensor in tuned.items()}
    opened = Base(write_run(place / str(layers), base))
    for name in opened.tensors:
        opened.sha256(name)
    opened.tensors = {name: counted(tensor) for name, tensor in opened.tensors.items()}
    match_tensors({name: counted(tensor) for name, tensor in tuned.items()}, digests, opened, 1, ALL)
    return count


def test_reads_grow_no_faster_than_the_tensors(tmp_path: Path) -> None:
    assert reads(tmp_path, 200) < 12 * reads(tmp_path, 20)
