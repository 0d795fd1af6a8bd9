"""Views of base tensors: what the library reads piece by piece is what numpy makes of whole arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from petlpack.errors import RefusedError
from petlpack.records.views import parse_view, view_json
from petlpack.tensors.dtypes import DTYPES
from petlpack.tensors.tensor import Tensor
from petlpack.tensors.view_reader import ViewReader
from petlpack.tensors.views import UNKNOWN, BaseRef, Concatenated, Reshaped, Scaled, Sliced, Transposed, View, with_refs
from tests.support import spec_reader
from tests.support.small_runs import random_bits

SHAPES = {"a": (2, 3, 4), "b": (6, 2), "c": (12,), "d": (2, 3, 1), "e": (1, 1)}


def reshaped(draw: st.DrawFn, said: Any, size: int) -> tuple[Any, tuple[int, ...]]:
    first = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    second = draw(st.sampled_from([n for n in range(1, size // first + 1) if size // first % n == 0]))
    shape = first, second, size // first // second
    return ["reshape", [*shape], said], shape


@st.composite
def views(draw: st.DrawFn, deep: int = 5) -> tuple[Any, tuple[int, ...]]:
    """Draw a view and its shape."""
    step = draw(st.sampled_from(["name", "reshape", "transpose", "slice", "concatenate", "concatenate"]))
    if deep == 0 or step == "name":
        name = draw(st.sampled_from(sorted(SHAPES)))
        return name, SHAPES[name]
    said, shape = draw(views(deep - 1))
    if step == "reshape" or (step == "transpose" and len(shape) < 2):
        return reshaped(draw, said, math.prod(shape))
    if step == "transpose":
        return ["transpose", said], (*shape[:-2], shape[-1], shape[-2])
    axis = draw(st.integers(0, len(shape) - 1))
    if step == "slice":
        start = draw(st.integers(0, shape[axis] - 1))
        stop = draw(st.integers(start + 1, shape[axis]))
        return ["slice", axis, start, stop, said], (*shape[:axis], stop - start, *shape[axis + 1 :])
    others = draw(st.lists(views(deep - 1), max_size=2))
    fitting = [
        (one, size) for one, size in others if (*size[:axis], *size[axis + 1 :]) == shape[:axis] + shape[axis + 1 :]
    ]
    fitting = [(one, size) for one, size in fitting if len(size) == len(shape)]
    whole = sum(size[axis] for _, size in fitting) + 2 * shape[axis]
    parts = [said, *(one for one, _ in fitting), said]
    return ["concatenate", axis, parts], (*shape[:axis], whole, *shape[axis + 1 :])


@settings(deadline=None)
@given(views(), st.data())
def test_every_piece_of_every_view_is_that_of_the_whole_array(
    view: tuple[Any, tuple[int, ...]], data: st.DataObject
) -> None:
    said, shape = view
    bits = {name: random_bits("U16", math.prod(size), i).reshape(size) for i, (name, size) in enumerate(SHAPES.items())}
    refs = {name: BaseRef(name, DTYPES["U16"], size, UNKNOWN) for name, size in SHAPES.items()}
    try:
        parsed = parse_view(said, refs)
    except RefusedError as error:
        assume(error.code != "view-limit")  # so many times what it is made of
        raise
    assert (parsed.shape, view_json(parsed)) == (shape, said)
    assert with_refs(parsed, refs.__getitem__) == parsed
    reader = ViewReader(lambda ref: Tensor.of(bits[ref.name], ref.dtype))
    _, whole = spec_reader.elements_of(said, {name: ("U16", array) for name, array in bits.items()})
    assert whole.shape == shape
    for _ in range(4):
        start = data.draw(st.integers(0, whole.size - 1))
        stop = data.draw(st.integers(start + 1, whole.size))
        assert reader.read(parsed, start, stop).tolist() == whole.reshape(-1)[start:stop].tolist()


def counted(tensors: Mapping[str, NDArray[np.float32]]) -> tuple[ViewReader, dict[str, View], dict[str, int]]:
    """Return a reader of tensors, views of them by name, and how many elements of each were read."""
    read: dict[str, int] = dict.fromkeys(tensors, 0)
    held = {name: Tensor.of(array.view("<u4"), DTYPES["F32"]) for name, array in tensors.items()}

    def tensor_of(ref: BaseRef) -> Tensor:
        def read_flat(start: int, stop: int) -> Any:
            read[ref.name] += stop - start
            return held[ref.name].read_flat(start, stop)

        return Tensor(ref.dtype, ref.shape, read_flat)

    refs: dict[str, View] = {name: BaseRef(name, t.dtype, t.shape, UNKNOWN) for name, t in held.items()}
    return ViewReader(tensor_of), refs, read


def test_a_piece_reads_no_more_than_it_needs() -> None:
    reader, views, read = counted({f"{i}": np.full((4, 6), i, np.float32) for i in range(5)})
    stack = Reshaped((5, 4, 6), Concatenated(0, tuple(views.values())))
    both = Concatenated(1, (stack, stack))
    assert reader.read(both, 3 * 48 + 2, 3 * 48 + 9).view("<f4").tolist() == [3] * 7
    assert read == {"0": 0, "1": 0, "2": 0, "3": 7, "4": 0}
    one = Reshaped((4, 6), Sliced(0, 2, 3, Sliced(1, 4, 8, both)))
    assert reader.read(one, 1, 24).view("<f4").tolist() == [2] * 23
    assert read == {"0": 0, "1": 0, "2": 23, "3": 7, "4": 0}


def test_of_scales_only_those_of_a_piece_are_read() -> None:
    weights, scales = np.arange(48, dtype=np.float32).reshape(8, 6), np.arange(12, dtype=np.float32).reshape(4, 3)
    reader, views, read = counted({"w": weights, "s": scales})
    view = Scaled((2, 2), views["w"], views["s"])
    wanted = (weights * scales.repeat(2, 0).repeat(2, 1)).reshape(-1)
    assert reader.read(view, 12, 24).view("<f4").tolist() == wanted[12:24].tolist()
    assert read == {"w": 12, "s": 3}
    assert reader.read(view, 5, 5).tolist() == []
    assert reader.read(view, 0, 48).view("<f4").tolist() == wanted.tolist()


def test_of_what_a_slice_is_cut_from_little_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(48, dtype=np.float32).reshape(8, 6)
    monkeypatch.setattr("petlpack.tensors.view_reader.MOST_AT_ONCE", 13)
    reader, views, read = counted({"w": array})
    largest = 0
    real = ViewReader.read

    def watched(self: ViewReader, view: View, start: int, stop: int) -> Any:
        nonlocal largest
        largest = max(largest, stop - start) if view is views["w"] else largest
        return real(self, view, start, stop)

    monkeypatch.setattr(ViewReader, "read", watched)
    assert reader.read(Sliced(1, 2, 3, views["w"]), 0, 8).view("<f4").tolist() == array[:, 2].tolist()
    assert (largest, read["w"]) == (12, 48)


def test_a_transposed_matrix_is_read_once_for_all_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(3 * 5 * 7, dtype=np.float32).reshape(3, 5, 7)
    reader, views, read = counted({"w": array})
    wanted = array.swapaxes(1, 2).reshape(-1).tolist()
    view = Transposed(views["w"])
    found = [reader.read(view, start, start + 5).view("<f4") for start in range(0, 105, 5)]
    assert np.concatenate(found).tolist() == wanted
    assert read["w"] == 105
    monkeypatch.setattr("petlpack.tensors.view_reader.MOST_KEPT", 1)
    reader, views, read = counted({"w": array})
    view = Transposed(views["w"])
    for start in (0, 35, 0, 70):
        assert reader.read(view, start, start + 3).view("<f4").tolist() == wanted[start : start + 3]
    assert read["w"] == 4 * 35
