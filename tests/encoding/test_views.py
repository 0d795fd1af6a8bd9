"""Fused, split, transposed, quantised weights: predicted from the base, to the bit, as small as under equal names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import petlpack
from petlpack.encoding.views.find import find_views
from petlpack.errors import BaseError
from petlpack.records.views import view_json
from petlpack.tensors.base import Base
from petlpack.tensors.casting import cast_bits
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor
from tests.support import spec_reader
from tests.support.small_runs import write_run

Floats = NDArray[np.float32]
State = dict[str, Floats]

HIDDEN, INNER, HEAD, EXPERTS, LAYERS = 32, 48, 8, 4, 2


def stored(array: Floats, dtype: str) -> Tensor:
    """Return floats as a tensor of a dtype."""
    bits = cast_bits(np.asarray(array, np.float32).reshape(-1).view("<u4"), DTYPES["F32"], DTYPES[dtype])
    return Tensor.of(bits.reshape(array.shape), DTYPES[dtype])


def model(seed: int = 0) -> State:
    """Return a small decoder: attention with fewer keys than queries, a dense layer, experts."""
    rng = np.random.default_rng(seed)

    def made(*shape: int) -> Floats:
        return rng.normal(0, 0.02, shape).astype(np.float32)

    state = {"embed.weight": made(64, HIDDEN), "norm.weight": 1 + made(HIDDEN)}
    for layer in range(LAYERS):
        place = f"layers.{layer}."
        sizes = {"q": HIDDEN, "k": HIDDEN // 2, "v": HIDDEN // 2}
        state |= {f"{place}attn.{part}.weight": made(size, HIDDEN) for part, size in sizes.items()}
        state |= {f"{place}attn.{part}.bias": made(size) for part, size in sizes.items()}
        state[f"{place}attn.o.weight"] = made(HIDDEN, HIDDEN)
        for expert in range(EXPERTS):
            at = f"{place}mlp.experts.{expert}."
            state |= {f"{at}gate.weight": made(INNER, HIDDEN), f"{at}up.weight": made(INNER, HIDDEN)}
            state[f"{at}down.weight"] = made(HIDDEN, INNER)
    return state


def tuned(state: State, seed: int = 1) -> State:
    """Return a fine-tune."""
    rng = np.random.default_rng(seed)
    return {name: array + rng.normal(0, 2e-5, array.shape).astype(np.float32) for name, array in state.items()}


def without(state: State, *words: str) -> State:
    return {name: array for name, array in state.items() if not any(word in name for word in words)}


def attention(state: State, join: Callable[[list[Floats]], Floats]) -> State:
    """Return the state with queries, keys and values in one tensor."""
    fused = without(state, ".q.", ".k.", ".v.")
    for layer in range(LAYERS):
        for end in ("weight", "bias"):
            parts = [state[f"layers.{layer}.attn.{part}.{end}"] for part in "qkv"]
            fused[f"layers.{layer}.attn.qkv.{end}"] = join(parts)
    return fused


def one_behind_another(parts: list[Floats]) -> Floats:
    return np.concatenate(parts)


def by_group_of_heads(parts: list[Floats]) -> Floats:
    groups = HIDDEN // 2 // HEAD
    return np.concatenate([part.reshape(groups, -1) for part in parts], 1).reshape(-1, *parts[0].shape[1:])


def transposed(state: State) -> State:
    """Return the state with the matrices of all layers as Conv1D has them."""
    return {
        name: np.ascontiguousarray(array.T) if array.ndim == 2 and "layers" in name else array
        for name, array in state.items()
    }


def experts(state: State, join: Callable[[Floats, Floats], Floats], turned: bool = False) -> State:
    """Return the state with the experts of a layer stacked, gate and up joined, in a module of another name."""
    fused = without(state, "experts")
    for layer in range(LAYERS):
        gate, up, down = (
            np.stack([state[f"layers.{layer}.mlp.experts.{i}.{part}.weight"] for i in range(EXPERTS)])
            for part in ("gate", "up", "down")
        )
        for name, stack in (("gate_up_proj", join(gate, up)), ("down_proj", down)):
            stack = stack.swapaxes(1, 2) if turned else stack
            fused[f"layers.{layer}.moe.{name}"] = np.ascontiguousarray(stack)
    return fused


def gate_first(gate: Floats, up: Floats) -> Floats:
    return np.concatenate([gate, up], 1)


def up_first(gate: Floats, up: Floats) -> Floats:
    return np.concatenate([up, gate], 1)


def in_turn(gate: Floats, up: Floats) -> Floats:
    return np.stack([gate, up], 2).reshape(EXPERTS, 2 * INNER, HIDDEN)


def rotary(array: Floats) -> Floats:
    return array.reshape(-1, HEAD // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


OTHERWISE: Mapping[str, Callable[[State], State]] = {
    "fused attention": lambda state: attention(state, one_behind_another),
    "attention fused by groups of heads": lambda state: attention(state, by_group_of_heads),
    "rows of rotary heads in halves": lambda state: {
        name.replace(".q.", ".wq.").replace(".k.", ".wk."): rotary(array) if ".q." in name or ".k." in name else array
        for name, array in state.items()
    },
    "transposed": transposed,
    "fused attention, transposed": lambda state: transposed(attention(state, one_behind_another)),
    "stacked experts": lambda state: experts(state, gate_first),
    "stacked experts, up first": lambda state: experts(state, up_first),
    "stacked experts, rows in turn": lambda state: experts(state, in_turn),
    "stacked experts, transposed": lambda state: experts(state, gate_first, turned=True),
    "stacked experts, transposed, columns in turn": lambda state: experts(state, in_turn, turned=True),
    "layers stacked": lambda state: {
        **without(state, "attn.o"),
        "attn.o.weight": np.stack([state[f"layers.{i}.attn.o.weight"] for i in range(LAYERS)]),
    },
    "shapes with an axis more": lambda state: {
        name: array[:, None] if "attn.o" in name else array for name, array in state.items()
    },
}
"""The same weights as other code writes them."""


def octets(tensors: Mapping[str, Tensor]) -> spec_reader.Tensors:
    return {name: (tensor.dtype.name, tensor.shape, tensor.bits().tobytes()) for name, tensor in tensors.items()}


class Case:
    """A run and a base on the disk, and the task that is made of them."""

    def __init__(self, place: Path, run: Mapping[str, Tensor], base: Mapping[str, Tensor], **options: Any) -> None:
        self.run, self.base, self.pack, self.place = run, place / "base", place / "pack", place
        self.base_tensors = base
        write_run(place / "run", run)
        write_run(self.base, base)
        (self.encoded,) = petlpack.encode(place / "run", self.pack, self.base, task="task", jobs=1, **options)
        self.task = petlpack.open(self.pack)["task"]

    @property
    def missing(self) -> list[str]:
        """The tensors that nothing predicts."""
        return [slot.name for slot in self.task.template.slots if slot.base is None]

    @property
    def views(self) -> dict[str, Any]:
        return {name: view_json(view) for name, view in self.task.template.base.items()}

    def check_exact(self) -> None:
        """Check that both readers give the run back, to the bit."""
        assert not [found for found in petlpack.verify(self.pack, self.base) if found.error is not None]
        state = {name: tensor for name, tensor in self.task.load(self.base).items()}
        assert octets(state) == octets(self.run)
        assert spec_reader.read_task(self.pack, "task", octets(self.base_tensors)) == octets(self.run)


def in_dtype(state: State, dtype: str) -> dict[str, Tensor]:
    return {name: stored(array, dtype) for name, array in state.items()}


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("base_dtype", ["BF16", "F32"])
@pytest.mark.parametrize("split", ["in the base", "in the run"])
@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_is_written_otherwise_is_as_small(kind: str, split: str, base_dtype: str, tmp_path: Path) -> None:
    base, change = model(), OTHERWISE[kind]
    run = tuned(base)
    plain = Case(tmp_path / "plain", in_dtype(run, "BF16"), in_dtype(base, base_dtype))
    run, base = (change(run), base) if split == "in the base" else (run, change(base))
    case = Case(tmp_path / "case", in_dtype(run, "BF16"), in_dtype(base, base_dtype))
    assert case.missing == []
    assert case.encoded.nbytes <= 1.1 * plain.encoded.nbytes
    case.check_exact()


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("split", ["in the base", "in the run"])
@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_did_not_change_takes_no_bytes(kind: str, split: str, tmp_path: Path) -> None:
    base, change = model(), OTHERWISE[kind]
    run, base = (change(base), base) if split == "in the base" else (base, change(base))
    case = Case(tmp_path, in_dtype(run, "BF16"), in_dtype(base, "F32"))
    assert len(case.task.sources.unchanged) == len(run)
    assert case.task.payload == {}
    case.check_exact()


def test_a_square_matrix_is_transposed_only_where_it_is(tmp_path: Path) -> None:
    base = model()
    run = tuned(base)
    run["layers.1.attn.o.weight"] = np.ascontiguousarray(run["layers.1.attn.o.weight"].T)
    case = Case(tmp_path, in_dtype(run, "BF16"), in_dtype(base, "BF16"))
    assert case.views["layers.0.attn.o.weight"] == "layers.0.attn.o.weight"
    assert case.views["layers.1.attn.o.weight"] == ["transpose", "layers.1.attn.o.weight"]
    case.check_exact()


def test_new_weights_have_no_view(tmp_path: Path) -> None:
    base, rng = model(), np.random.default_rng(3)
    new = {
        "classifier.weight": rng.normal(0, 0.02, (HIDDEN, HIDDEN)),
        "classifier.norm": np.ones(HIDDEN),
        "layers.0.adapter.weight": rng.normal(0, 0.02, (HIDDEN, HIDDEN)),
        "layers.0.adapter.stack": rng.normal(0, 0.02, (EXPERTS, INNER, HIDDEN)),
        "layers.0.adapter.up": np.zeros((HIDDEN, 4)),
    }
    run = tuned(base) | {name: array.astype(np.float32) for name, array in new.items()}
    case = Case(tmp_path, in_dtype(run, "BF16"), in_dtype(base, "BF16"))
    assert set(case.missing) == set(new)
    case.check_exact()


def test_pruning_and_plans_know_views(tmp_path: Path) -> None:
    base = model()
    run = OTHERWISE["stacked experts"](tuned(base))
    dense = Case(tmp_path / "dense", in_dtype(run, "F32"), in_dtype(base, "F32"), codec="ulp")
    case = Case(tmp_path / "pruned", in_dtype(run, "F32"), in_dtype(base, "F32"), density=0.01)
    assert case.task.facts.density == pytest.approx(0.01, rel=0.05)
    assert case.encoded.nbytes < dense.encoded.nbytes / 10
    near = case.task.load(case.base)["layers.0.moe.gate_up_proj"].numpy()
    assert np.abs(near - run["layers.0.moe.gate_up_proj"]).max() <= case.task.facts.error
    for sample in (None, 0.5):
        plans = petlpack.plan([tmp_path / "dense" / "run"], dense.base, sample=sample)
        offers = {offer.codec: offer for offer in plans.runs[0].offers if offer.options[1:] == ("ulp",)}
        assert offers["ulp"].nbytes == pytest.approx(dense.encoded.nbytes, rel=0.02)


def test_another_base_is_refused_by_the_tensor_that_differs(tmp_path: Path) -> None:
    base = model()
    case = Case(tmp_path, in_dtype(OTHERWISE["stacked experts"](tuned(base)), "BF16"), in_dtype(base, "BF16"))
    name = "layers.1.mlp.experts.2.up.weight"
    bits = case.base_tensors[name].bits().copy()
    bits[3, 3] ^= 1
    write_run(tmp_path / "other", {**case.base_tensors, name: Tensor.of(bits, DTYPES["BF16"])})
    with pytest.raises(BaseError, match=name) as caught:
        case.task.state_dict(tmp_path / "other")
    assert caught.value.code == "base-digest"
    assert f"pass the base 'base' ({case.base} when it was encoded)" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["stacked experts", "fused attention, transposed"])
def test_of_several_bases_the_one_that_holds_all_of_every_view_is_taken(kind: str, tmp_path: Path) -> None:
    base = model()
    changed = "layers.1.mlp.experts.2.up.weight" if "experts" in kind else "layers.1.attn.k.weight"
    siblings = {
        "stranger": model(7),
        "near": base | {changed: base[changed] + np.float32(1e-3)},
        "without": without(base, changed),
    }
    for name, state in siblings.items():
        write_run(tmp_path / name, in_dtype(state, "BF16"))
    others: list[str | Path | Base] = [tmp_path / name for name in siblings]
    case = Case(tmp_path, in_dtype(OTHERWISE[kind](tuned(base)), "BF16"), in_dtype(base, "BF16"))
    (again,) = petlpack.encode(tmp_path / "run", tmp_path / "again", [*others[:1], case.base], task="task")
    assert again.base == case.encoded.base
    assert octets(dict(case.task.load([*others, case.base]).items())) == octets(case.run)
    with pytest.raises(BaseError) as caught:
        case.task.load(others)
    assert caught.value.code == "base-fits-none"
    assert not [found for found in petlpack.verify(case.pack, [*others, case.base]) if found.error is not None]


WRAPPINGS: Mapping[str, Callable[[str], str]] = {
    "a prefix": lambda name: f"model.tower.{name}",
    "compiled layers": lambda name: name.replace("layers.0.", "layers.0._orig_mod.").replace(
        "layers.1.", "layers.1._orig_mod."
    ),
    "a prefix and a moved part": lambda name: (
        f"language.body.{name}" if name.startswith("layers") else f"language.{name}"
    ),
    "another name for a part": lambda name: name.replace("attn.o", "attention.dense"),
}


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", OTHERWISE)
def test_other_names_hide_no_views(kind: str, wrapping: str, tmp_path: Path) -> None:
    base = model()
    run = OTHERWISE[kind](tuned(base))
    plain = Case(tmp_path / "plain", in_dtype(run, "BF16"), in_dtype(base, "BF16"))
    renamed = {WRAPPINGS[wrapping](name): array for name, array in run.items()}
    case = Case(tmp_path / "case", in_dtype(renamed, "BF16"), in_dtype(base, "BF16"))
    assert case.missing == []
    assert case.encoded.warnings == ()
    assert case.encoded.nbytes <= 1.02 * plain.encoded.nbytes
    case.check_exact()


def test_a_tied_copy_of_what_has_a_counterpart_gets_no_view(tmp_path: Path) -> None:
    base = model()
    run = tuned(base)
    run["layers.0.copy.weight"] = run["layers.0.attn.o.weight"]
    case = Case(tmp_path, in_dtype(run, "BF16"), in_dtype(base, "BF16"))
    assert case.missing == ["layers.0.copy.weight"]
    assert len(case.task.sources.aliases) == 1
    case.check_exact()


# Quantised bases


def quantised(array: Floats, rows: int, columns: int) -> tuple[Tensor, Floats, Floats]:
    """Return a matrix as F8_E4M3, the scale of each block, and what both stand for."""
    padded = np.zeros((-(-array.shape[0] // rows) * rows, -(-array.shape[1] // columns) * columns), np.float32)
    padded[: array.shape[0], : array.shape[1]] = array
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    scales = (np.abs(blocks).max((1, 3)) / 448).astype(np.float32)
    spread = np.kron(scales, np.ones((rows, columns), np.float32))[: array.shape[0], : array.shape[1]]
    small = stored((array / spread).astype(np.float32), "F8_E4M3")
    return small, scales, small.numpy() * spread


SCALES: Mapping[str, tuple[int, int, str, Callable[[Floats], Floats]]] = {
    "blocks": (16, 16, "_scale_inv", lambda scales: scales),
    "rows": (1, 10**6, "_scale", lambda scales: scales),
    "rows, as a vector": (1, 10**6, "_scale", lambda scales: scales[:, 0]),
    "one": (10**6, 10**6, "_scale", lambda scales: scales[0, 0]),
    "one, as a vector": (10**6, 10**6, "_scale_inv", lambda scales: scales[0]),
}


@pytest.mark.exhaustive(8)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("kind", [None, "stacked experts", "fused attention, transposed"])
@pytest.mark.parametrize("scales_of", SCALES)
def test_quantised_weights_predict_with_their_scales(
    scales_of: str, kind: str | None, dtype: str, tmp_path: Path
) -> None:
    rows, columns, ending, shaped = SCALES[scales_of]
    base, restored = {}, {}
    for name, array in model().items():
        if array.ndim == 1 or "layers" not in name:
            base[name], restored[name] = stored(array, "BF16"), stored(array, "BF16").numpy()
            continue
        block = min(rows, array.shape[0]), min(columns, array.shape[1])
        base[name], scales, restored[name] = quantised(array, *block)
        base[name + ending] = stored(np.asarray(shaped(scales), np.float32), "F32")
    change = OTHERWISE[kind] if kind is not None else lambda state: state
    case = Case(tmp_path / "tuned", in_dtype(change(tuned(restored)), dtype), base)
    plain = Case(tmp_path / "plain", in_dtype(tuned(restored), dtype), in_dtype(restored, "F32"))
    assert case.missing == []
    assert case.encoded.nbytes <= 1.1 * plain.encoded.nbytes
    case.check_exact()
    same = Case(tmp_path / "same", in_dtype(change(restored), dtype), base)
    assert same.task.payload == {}


@pytest.mark.parametrize("scales", [".scale", "_scale", ".qscale", ".weight.scale", ".scale_weight", ".steps"])
def test_scales_are_told_by_their_module_and_shape(scales: str, tmp_path: Path) -> None:
    """Beside a bias of the shape that scales of rows have, and the scale of the activations."""
    base, restored = {}, {}
    for name, array in model().items():
        if array.ndim == 1 or "layers" not in name:
            base[name], restored[name] = stored(array, "BF16"), stored(array, "BF16").numpy()
            continue
        module = name.removesuffix(".weight")
        base[name], of_rows, restored[name] = quantised(array, 1, array.shape[1])
        base[module + scales] = stored(of_rows[:, 0], "F32")
        base[module + ".input_scale"] = stored(np.ones(1, np.float32), "F32")
    same = Case(tmp_path / "same", in_dtype(restored, "BF16"), base)
    assert same.task.payload == {}
    same.check_exact()


# What Transformers publishes


def test_what_transformers_fuses_is_found(tmp_path: Path) -> None:
    """Every conversion of Transformers that stacks, concatenates, splits or transposes, on tensors of its names."""
    mapping = pytest.importorskip("transformers.conversion_mapping")
    loading = pytest.importorskip("transformers.core_model_loading")
    known = ("MergeModulelist", "Concatenate", "Chunk", "Transpose")
    seen = set()
    for family, conversions in mapping._build_checkpoint_conversion_mapping().items():
        for one in conversions:
            steps = [(type(step).__name__, step) for step in getattr(one, "operations", ())]
            names = tuple(one.source_patterns), tuple(one.target_patterns), tuple(name for name, _ in steps)
            if not isinstance(one, loading.WeightConverter) or names in seen or not {n for n, _ in steps} <= {*known}:
                continue
            seen.add(names)
            for way in ("run", "base"):
                check_conversion(tmp_path / f"{family}-{len(seen)}-{way}", *names[:2], dict(steps), way)
    assert len(seen) >= 10


def check_conversion(
    place: Path, sources: tuple[str, ...], targets: tuple[str, ...], steps: dict[str, Any], way: str
) -> None:
    rng = np.random.default_rng(len(sources[0]))
    sources, targets = (tuple(name.replace("\\", "").strip(".") for name in names) for names in (sources, targets))
    stacked, several = "MergeModulelist" in steps, "*" in sources[0]
    shape: tuple[int, ...] = (3, 8, 6) if "Transpose" in steps and steps["Transpose"].dim0 else (8, 6)
    if "Concatenate" in steps and steps["Concatenate"].dim and not several:
        shape = (3, 8, 6)
    if sources[0].endswith("bias"):
        shape = (8,)
    old: State = {}
    parts = []
    for name in sources if "Chunk" not in steps else targets:
        members = [rng.normal(0, 0.02, shape).astype(np.float32) for _ in range(3 if several else 1)]
        old |= {name.replace("*", str(i)): member for i, member in enumerate(members)}
        parts.append(np.stack(members) if stacked else np.concatenate(members))
    whole = np.concatenate(parts, next((steps[n].dim for n in ("Concatenate", "Chunk") if n in steps), 0))
    if "Transpose" in steps:
        whole = np.ascontiguousarray(whole.swapaxes(-1, -2))
    fused = {(sources if "Chunk" in steps else targets)[0]: whole}
    base, run = (old, fused) if way == "run" else (fused, old)
    base, run = ({f"model.layers.1.{name}": array for name, array in state.items()} for state in (base, run))
    write_run(place, in_dtype(base, "BF16"))
    found = find_views(in_dtype(tuned(run), "BF16"), Base(place))
    assert found.keys() == run.keys(), (sources, targets, way)
