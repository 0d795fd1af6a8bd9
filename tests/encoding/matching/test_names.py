"""Matching names: which tensor of the base each tensor of a fine-tune comes from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petlpack.encoding.matching.names import match_names
from petlpack.encoding.matching.spelling import WRAPPERS, comparable, modern, plain
from petlpack.errors import BaseError

Shapes = dict[str, tuple[int, ...]]

BASE: Shapes = {
    "embeddings.word_embeddings.weight": (50, 16),
    "embeddings.position_embeddings.weight": (32, 16),
    "embeddings.LayerNorm.weight": (16,),
    "embeddings.LayerNorm.bias": (16,),
    "encoder.layer.0.attention.self.query.weight": (16, 16),
    "encoder.layer.0.attention.self.query.bias": (16,),
    "encoder.layer.0.output.dense.weight": (16, 64),
    "encoder.layer.1.attention.self.query.weight": (16, 16),
    "encoder.layer.1.attention.self.query.bias": (16,),
    "encoder.layer.1.output.dense.weight": (16, 64),
    "pooler.dense.weight": (16, 16),
}
HEAD: Shapes = {"classifier.weight": (2, 16), "classifier.bias": (2,)}

PREFIXES = [
    "",
    "bert.",
    "roberta.",
    "model.",
    "module.",
    "_orig_mod.",
    "base_model.",
    "module.bert.",
    "_orig_mod.module.",
    "base_model.model.",
    "model._orig_mod.",
    "module._orig_mod.bert.",
    "_orig_mod.base_model.model.",
    "_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.module.model.",
    "student.backbone.model.encoder.",
]
"""Every prefix seen in a file, and the nestings that wrappers and larger models make of them."""


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_the_fine_tune_is_taken_off(prefix: str) -> None:
    matches = match_names(prefixed(prefix, BASE) | HEAD, BASE)
    assert matches == {prefix + name: name for name in BASE}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_the_base_is_taken_off(prefix: str) -> None:
    matches = match_names(BASE | HEAD, prefixed(prefix, BASE))
    assert matches == {name: prefix + name for name in BASE}


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("base_prefix", PREFIXES)
def test_prefixes_of_both_are_taken_off(prefix: str, base_prefix: str) -> None:
    matches = match_names(prefixed(prefix, BASE) | HEAD, prefixed(base_prefix, BASE))
    assert matches == {prefix + name: base_prefix + name for name in BASE}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_order_of_the_tensors_does_not_matter(prefix: str) -> None:
    tuned, turned = prefixed(prefix, BASE) | HEAD, dict(reversed(BASE.items()))
    assert match_names(dict(reversed(tuned.items())), turned) == match_names(tuned, BASE)


def test_equal_names_match_without_a_prefix() -> None:
    assert match_names(BASE, BASE) == {name: name for name in BASE}


@pytest.mark.parametrize("both", [False, True], ids=["the base", "both"])
def test_old_spellings_of_layer_norm_are_read(both: bool) -> None:
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): shape
        for name, shape in BASE.items()
    }
    tuned = prefixed("bert.", old if both else BASE)
    matches = match_names(tuned, old)
    end = ("gamma", "beta") if both else ("weight", "bias")
    assert matches[f"bert.embeddings.LayerNorm.{end[0]}"] == "embeddings.LayerNorm.gamma"
    assert matches[f"bert.embeddings.LayerNorm.{end[1]}"] == "embeddings.LayerNorm.beta"
    assert len(matches) == len(BASE)


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("a.LayerNorm.gamma", "a.LayerNorm.weight"),
        ("a.LayerNorm.beta", "a.LayerNorm.bias"),
        ("a.gamma.weight", "a.gamma.weight"),
        ("gamma", "gamma"),
        ("a.layer_gamma", "a.layer_gamma"),
    ],
)
def test_only_a_last_part_is_an_old_spelling(name: str, today: str) -> None:
    assert modern(name) == today


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("model.layers.0._orig_mod.mlp.weight", "model.layers.0.mlp.weight"),
        ("_fsdp_wrapped_module.layers.0._checkpoint_wrapped_module._orig_mod.mlp.weight", "layers.0.mlp.weight"),
        ("module.module.mlp.weight", "mlp.weight"),
        ("model.q_proj.base_layer.weight", "model.q_proj.weight"),
        ("model.lm_head.original_module.weight", "model.lm_head.weight"),
        ("model.lm_head.modules_to_save.default.weight", "model.lm_head.weight"),
        ("model.norm.module.gamma", "model.norm.weight"),
        ("module", "module"),
        ("model.base_layers.weight", "model.base_layers.weight"),
        ("module.modules_to_save", "modules_to_save"),
        ("modules_to_save.a", "a"),
        ("", ""),
    ],
)
def test_wrappers_are_taken_out_of_the_middle_of_names(name: str, without: str) -> None:
    assert plain(name) == without


WRAPPED = st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=3)


@given(st.data())
def test_wrappers_put_anywhere_into_names_change_no_match(data: st.DataObject) -> None:
    tuned = {}
    for name, shape in BASE.items():
        *parts, last = name.split(".")
        wrapped = [part for real in parts for part in (*data.draw(WRAPPED), real)]
        tuned[".".join([*wrapped, *data.draw(WRAPPED), last])] = shape
    matches = match_names(tuned, BASE)
    assert list(matches.values()) == list(BASE)


def test_a_tied_tensor_that_the_fine_tune_does_not_write_is_no_match() -> None:
    tied = "cls.predictions.decoder.weight"
    assert match_names(prefixed("bert.", BASE), prefixed("bert.", BASE) | {tied: (50, 16)}) == {
        f"bert.{name}": f"bert.{name}" for name in BASE
    }


def test_a_tied_tensor_that_the_base_does_not_write_is_no_match() -> None:
    tuned = prefixed("bert.", BASE) | {"cls.predictions.decoder.weight": (50, 16)}
    assert match_names(tuned, BASE).keys() == prefixed("bert.", BASE).keys()


def test_tensors_that_only_one_side_has_are_no_match() -> None:
    tuned = {name: shape for name, shape in BASE.items() if not name.startswith("pooler")} | HEAD
    base = BASE | {"embeddings.position_ids": (1, 32)}
    assert match_names(tuned, base).keys() == tuned.keys() - HEAD.keys()


@pytest.mark.parametrize("rows", [1, 49, 51, 3000])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_resized_embeddings_match_by_their_rows(rows: int, prefix: str) -> None:
    tuned = prefixed(prefix, BASE | {"embeddings.word_embeddings.weight": (rows, 16)})
    assert match_names(tuned, BASE) == {prefix + name: name for name in BASE}


@pytest.mark.parametrize(
    ("shape", "base", "fits"),
    [
        ((), (), True),
        ((3,), (3,), True),
        ((3,), (4,), False),
        ((3, 4), (5, 4), True),
        ((3, 4), (3, 5), False),
        ((3, 4), (3, 4, 1), False),
        ((12,), (3, 4), False),
        ((2, 3, 4), (9, 3, 4), True),
        ((2, 3, 4), (2, 4, 3), False),
        ((0, 4), (5, 4), True),
        ((), (1,), False),
    ],
)
def test_shapes_compare_by_rows_only(shape: tuple[int, ...], base: tuple[int, ...], fits: bool) -> None:
    assert comparable(shape, base) is fits
    assert comparable(base, shape) is fits


def test_a_head_of_the_fine_tune_alone_has_no_base() -> None:
    assert not match_names(prefixed("bert.", BASE) | HEAD, BASE).keys() & HEAD.keys()


def test_a_base_with_a_head_of_its_own_matches_head_with_head() -> None:
    tuned = prefixed("roberta.", BASE) | HEAD
    assert match_names(tuned, tuned) == {name: name for name in tuned}


def test_a_head_of_another_number_of_labels_is_matched_by_its_rows_and_its_bias_is_not() -> None:
    base = prefixed("roberta.", BASE) | {"classifier.weight": (3, 16), "classifier.bias": (3,)}
    matches = match_names(prefixed("roberta.", BASE) | HEAD, base)
    assert matches["classifier.weight"] == "classifier.weight"
    assert "classifier.bias" not in matches


def test_a_base_with_a_head_that_the_fine_tune_lacks_is_no_trouble() -> None:
    base = prefixed("bert.", BASE) | {"cls.predictions.bias": (50,), "cls.predictions.transform.dense.weight": (16, 16)}
    assert match_names(prefixed("bert.", BASE) | HEAD, base) == {f"bert.{name}": f"bert.{name}" for name in BASE}


def test_a_single_tensor_matches_itself() -> None:
    assert match_names({"weight": (3,)}, {"weight": (3,)}) == {"weight": "weight"}
    assert match_names({"linear.weight": (3,)}, {"linear.weight": (3,)}) == {"linear.weight": "linear.weight"}


TOWERS: Shapes = prefixed("left.", BASE) | prefixed("right.", BASE)


def test_of_two_parts_of_the_base_that_fit_equally_well_the_first_by_name_is_taken() -> None:
    assert match_names(BASE, TOWERS) == {name: f"left.{name}" for name in BASE}


def test_of_two_parts_of_the_run_that_fit_equally_well_the_first_by_name_is_matched() -> None:
    assert match_names(TOWERS, BASE) == {f"left.{name}": name for name in BASE}


def test_two_towers_match_two_towers() -> None:
    assert match_names(prefixed("model.", TOWERS), TOWERS) == {f"model.{name}": name for name in TOWERS}


def test_the_part_that_fits_better_wins() -> None:
    base = prefixed("left.", BASE) | prefixed("right.", {name: (*shape, 2) for name, shape in BASE.items()})
    assert match_names(BASE, base) == {name: f"left.{name}" for name in BASE}


def test_other_shapes_are_refused_with_both_of_them() -> None:
    wide = {name: tuple(2 * size for size in shape) for name, shape in BASE.items()}
    with pytest.raises(BaseError, match=r"tensor 'bert.+' is \[100, 32\] in the run and \[50, 16\] in the base"):
        match_names(prefixed("bert.", wide), BASE)


def test_other_names_are_refused_with_one_of_them() -> None:
    with pytest.raises(
        BaseError, match=r"the run and the base have no tensor name in common; the run has 'conv\.kernel'"
    ):
        match_names({"conv.kernel": (3, 3)}, BASE)


@pytest.mark.parametrize(("tuned", "base"), [({}, BASE), (BASE, {}), ({}, {})], ids=["run", "base", "both"])
def test_nothing_on_one_side_is_refused(tuned: Shapes, base: Shapes) -> None:
    with pytest.raises(BaseError, match="the run and the base have no tensor name in common"):
        match_names(tuned, base)


def test_a_hostile_name_is_escaped_in_the_message() -> None:
    with pytest.raises(BaseError) as caught:
        match_names({"\x1b[31m\nx": (1,)}, BASE)
    assert caught.value.message.isprintable()


class Counted(Mapping[str, tuple[int, ...]]):
    """Shapes by name that count how often they are asked."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes, self.asked = shapes, 0

    def __getitem__(self, name: str) -> tuple[int, ...]:
        self.asked += 1
        return self.shapes[name]

    def __iter__(self) -> Iterator[str]:
        for name in self.shapes:
            self.asked += 1
            yield name

    def __len__(self) -> int:
        return len(self.shapes)


def many(layers: int, experts: int) -> Shapes:
    """Return a mixture of experts: the same last parts in every layer, so that names meet in many ways."""
    return {
        f"layers.{layer}.experts.{expert}.{part}.weight": (4, 4)
        for layer in range(layers)
        for expert in range(experts)
        for part in ("w1", "w2")
    }


def steps(shapes: Shapes) -> int:
    """Return how often the shapes of a run and of its base are asked for while they are matched."""
    tuned, base = Counted(prefixed("model.", shapes)), Counted(shapes)
    assert match_names(tuned, base) == {f"model.{name}": name for name in shapes}
    return tuned.asked + base.asked


def test_twenty_thousand_tensors_are_matched_in_steps_that_grow_as_their_number() -> None:
    assert len(many(40, 250)) == 20_000
    assert steps(many(40, 250)) < 11 * steps(many(40, 25))


def test_layers_of_equal_names_are_matched_in_steps_that_grow_as_their_number() -> None:
    assert steps(many(300, 1)) < 15 * steps(many(30, 1))


PARTS = st.sampled_from(["encoder", "layer", "0", "1", "weight", "bias", "gamma", "dense", "a.b"])
NAMES = st.lists(PARTS, min_size=2, max_size=4).map(".".join)
TABLES = st.dictionaries(NAMES, st.sampled_from([(), (2,), (3,), (2, 3), (5, 3), (0, 3)]), max_size=8)


@given(TABLES, TABLES)
def test_any_matches_are_of_comparable_shapes(tuned: Shapes, base: Shapes) -> None:
    with contextlib.suppress(BaseError):
        matches = match_names(tuned, base)
        assert matches
        assert all(comparable(tuned[name], base[other]) for name, other in matches.items())


@given(TABLES, TABLES)
def test_the_order_of_any_tensors_does_not_matter(tuned: Shapes, base: Shapes) -> None:
    with contextlib.suppress(BaseError):
        matches = match_names(tuned, base)
        assert match_names(dict(reversed(tuned.items())), dict(reversed(base.items()))) == matches


@given(TABLES.filter(bool), st.sampled_from(PREFIXES))
def test_a_prefix_put_on_any_names_is_found(base: Shapes, prefix: str) -> None:
    base = {name: shape for name, shape in base.items() if modern(name) == name} or {"a.weight": (1,)}
    assert match_names(prefixed(prefix, base), base) == {prefix + name: name for name in base}
