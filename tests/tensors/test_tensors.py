"""Tensors: ordered integers, dtypes, casts, and the strict reader of safetensors headers."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from petlpack.errors import RunError, UnknownFormatError
from petlpack.tensors import tensor as tensor_module
from petlpack.tensors.casting import can_cast, cast_bits
from petlpack.tensors.dtypes import DTYPES, Bits, DType, dtype_named
from petlpack.tensors.ordered import add_ulps, from_ordered, to_ordered, ulps_between
from petlpack.tensors.safetensors_file import (
    MAX_HEADER,
    Header,
    MalformedError,
    build_header,
    file_tensor,
    parse_header,
    read_header,
    read_pinned,
)
from petlpack.tensors.tensor import Tensor, as_bytes
from tests.support.sampling import Sample
from tests.support.small_runs import WRITTEN_AS, random_bits, random_tensor, write_safetensors

FLOATS = [dtype for dtype in DTYPES.values() if dtype.kind == "float"]
SMALL = [dtype for dtype in DTYPES.values() if dtype.width <= 16]
NATIVE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def named(dtype: DType) -> str:
    return dtype.name


def all_patterns(dtype: DType) -> Bits:
    """Return every bit pattern of a dtype of 8 or 16 bits."""
    return np.arange(1 << dtype.width).astype(dtype.bits)


def as_torch(bits: Bits, dtype: DType) -> Any:
    """View bits as a torch tensor, without the code under test."""
    return torch.from_numpy(bits.copy().view(np.uint8)).view(getattr(torch, WRITTEN_AS[dtype.name]))


def values_of(bits: Bits, dtype: DType) -> NDArray[np.float64]:
    """Return the numbers that bits stand for as float64, by torch's exact widening."""
    wide: NDArray[np.float64] = as_torch(bits, dtype).to(torch.float64).numpy()
    return wide


# Ordered integers


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=named)
def test_ordered_integers_are_a_bijection(dtype: DType) -> None:
    bits = all_patterns(dtype) if dtype.width <= 16 else random_bits(dtype.name, 50_000, 1)
    ordered = to_ordered(bits, dtype)
    assert ordered.dtype == dtype.bits
    assert np.array_equal(from_ordered(ordered, dtype), bits)
    assert np.array_equal(to_ordered(from_ordered(bits, dtype), dtype), bits)
    assert len(np.unique(ordered)) == len(np.unique(bits))


@pytest.mark.parametrize("dtype", [dtype for dtype in SMALL if dtype.kind != "unsigned"], ids=named)
def test_ordered_integers_stand_in_the_order_of_every_value(dtype: DType) -> None:
    bits = all_patterns(dtype)
    values = values_of(bits, dtype)
    numbers = ~np.isnan(values)
    by_order = values[numbers][np.argsort(to_ordered(bits, dtype)[numbers])]
    assert bool((by_order[1:] >= by_order[:-1]).all())
    equal = np.flatnonzero(by_order[1:] == by_order[:-1])
    assert len(equal) == (1 if dtype.kind == "float" else 0)  # only -0.0 and +0.0
    if dtype.kind == "float":
        zeros = by_order[equal[0] : equal[0] + 2]
        assert np.signbit(zeros).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [DTYPES[name] for name in ("F64", "F32", "I64", "I32")], ids=named)
def test_ordered_integers_stand_in_the_order_of_wide_values(dtype: DType) -> None:
    bits = random_bits(dtype.name, 100_000, 2)
    values = bits.view(NATIVE.get(dtype.name, f"<i{dtype.itemsize}"))
    if dtype.kind == "float":
        bits, values = bits[~np.isnan(values)], values[~np.isnan(values)]
    order = np.argsort(to_ordered(bits, dtype))
    assert bool((values[order][1:] >= values[order][:-1]).all())


@pytest.mark.parametrize("dtype", FLOATS, ids=named)
def test_zeros_are_neighbours_and_nans_stand_outside(dtype: DType) -> None:
    sign = 1 << (dtype.width - 1)
    minus_zero, plus_zero = to_ordered(np.array([sign, 0], dtype.bits), dtype).tolist()
    assert plus_zero - minus_zero == 1
    lowest, highest = to_ordered(np.array([2 * sign - 1, sign - 1], dtype.bits), dtype).tolist()  # all ones: NaNs
    assert (lowest, highest) == (0, 2 * sign - 1)


@pytest.mark.parametrize("dtype", FLOATS, ids=named)
def test_one_ulp_is_the_next_float(dtype: DType) -> None:
    if dtype.name in NATIVE:
        values = random_bits(dtype.name, 20_000, 3).view(NATIVE[dtype.name])
        values = values[np.isfinite(values) & (values != 0)]
        with np.errstate(over="ignore"):
            above = np.nextafter(values, np.array(np.inf, values.dtype))
        above[above == 0] = -0.0  # the way up from the smallest negative ends at -0.0, which is a number of its own
        assert set(ulps_between(above.view(dtype.bits), values.view(dtype.bits), dtype).tolist()) == {1}
    else:
        values = values_of(all_patterns(dtype), dtype)
        finite = np.unique(values[np.isfinite(values)])
        codes = {float(value): i for i, value in enumerate(values) if value != 0}
        steps = [(codes[float(a)], codes[float(b)]) for a, b in itertools.pairwise(finite) if a != 0 and b != 0]
        low, high = (np.array(side, dtype.bits) for side in zip(*steps, strict=True))
        assert set(ulps_between(high, low, dtype).tolist()) == {1}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=named)
def test_adding_ulps_undoes_their_difference(dtype: DType) -> None:
    base, tuned = random_bits(dtype.name, 20_000, 4), random_bits(dtype.name, 20_000, 5)
    assert np.array_equal(add_ulps(base, ulps_between(tuned, base, dtype), dtype), tuned)
    assert np.array_equal(ulps_between(add_ulps(base, tuned, dtype), base, dtype), tuned)
    assert not ulps_between(base, base, dtype).any()


@pytest.mark.parametrize("dtype", FLOATS, ids=named)
def test_adding_ulps_undoes_the_difference_of_every_special_value(dtype: DType) -> None:
    sign, infinity = 1 << (dtype.width - 1), ((1 << dtype.exponent) - 1) << dtype.mantissa
    quiet = infinity | 1 << (dtype.mantissa - 1)
    positive = {0, 1, infinity - 1, infinity, infinity + 1, quiet, quiet + 1, sign - 1}
    special = np.array(sorted(positive | {code | sign for code in positive}), dtype.bits)
    tuned, base = (side.reshape(-1) for side in np.meshgrid(special, special))
    assert np.array_equal(add_ulps(base, ulps_between(tuned, base, dtype), dtype), tuned)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.width == 8], ids=named)
def test_adding_ulps_undoes_the_difference_of_every_pair_of_bytes(dtype: DType) -> None:
    tuned, base = (side.reshape(-1) for side in np.meshgrid(all_patterns(dtype), all_patterns(dtype)))
    assert np.array_equal(add_ulps(base, ulps_between(tuned, base, dtype), dtype), tuned)


@given(st.data())
def test_adding_ulps_undoes_the_difference_of_any_bits(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(sorted(DTYPES.values(), key=named)))
    codes = st.integers(0, 2**dtype.width - 1)
    pairs = data.draw(st.lists(st.tuples(codes, codes), min_size=1, max_size=20))
    tuned, base = (np.array(side, dtype.bits) for side in zip(*pairs, strict=True))
    assert add_ulps(base, ulps_between(tuned, base, dtype), dtype).tolist() == tuned.tolist()


# Dtypes


def test_every_dtype_is_written_and_read_under_its_safetensors_name(tmp_path: Path) -> None:
    assert WRITTEN_AS.keys() == DTYPES.keys()
    tensors = {name: torch.zeros(3).to(getattr(torch, torch_name)) for name, torch_name in WRITTEN_AS.items()}
    save_file(tensors, tmp_path / "all.safetensors")
    header = read_header(tmp_path / "all.safetensors")
    assert {name: entry.dtype for name, entry in header.entries.items()} == {name: name for name in DTYPES}
    for name, entry in header.entries.items():
        assert entry.stop - entry.start == 3 * DTYPES[name].itemsize == 3 * tensors[name].element_size()
        assert dtype_named(name).bits.itemsize == DTYPES[name].itemsize


@pytest.mark.parametrize("dtype", FLOATS, ids=named)
def test_float_widths_are_those_of_torch(dtype: DType) -> None:
    info = torch.finfo(getattr(torch, WRITTEN_AS[dtype.name]))
    assert dtype.width == info.bits == 1 + dtype.exponent + dtype.mantissa
    assert info.eps == 2.0**-dtype.mantissa
    assert info.tiny == 2.0 ** (2 - 2 ** (dtype.exponent - 1))


def test_an_unknown_dtype_is_refused_by_name() -> None:
    with pytest.raises(UnknownFormatError, match=r"unknown dtype 'F7' \(known: F64, F32"):
        dtype_named("F7")


# Casts


def oracle(bits: Bits, source: DType, target: DType) -> Bits:
    """Round once, to nearest even, in exact float64 arithmetic: another way than the code under test takes.

    Too large is an infinity, as IEEE 754 wants it; F8_E4M3 has none, so it is NaN, as in the OCP specification's
    non-saturating mode. Every NaN is the one quiet NaN.
    """
    wide = values_of(bits, source)
    bias, magnitude = 2 ** (target.exponent - 1) - 1, np.abs(wide)
    usual = np.isfinite(wide)
    magnitude = np.where(usual, magnitude, 1.0)
    exponent = np.where(magnitude > 0, np.frexp(magnitude)[1] - 1, -bias)
    exponent = np.maximum(exponent, 1 - bias)  # subnormals and zero share the lowest exponent
    steps = np.rint(np.ldexp(magnitude, target.mantissa - exponent))  # exact but for rint, which ties to even
    code = steps.astype(np.uint64) + ((exponent + bias - 1).astype(np.uint64) << np.uint64(target.mantissa))
    top = (1 << target.exponent) - 1 << target.mantissa  # infinity, where the dtype has one
    quiet = top | 1 << (target.mantissa - 1)
    if target.name == "F8_E4M3":
        top = quiet = 0x7F
    code = np.where(usual, np.minimum(code, np.uint64(top)), np.uint64(top))
    code |= np.signbit(wide).astype(np.uint64) << np.uint64(target.width - 1)
    return np.where(np.isnan(wide), np.uint64(quiet), code).astype(target.bits)


def hard_patterns(dtype: DType) -> Bits:
    """Return every pattern of a narrow float; of a wide one random patterns, and all values of every narrower float,
    the middles between them, and the neighbours of both: what rounds wrongly first."""
    if dtype.width <= 16:
        return all_patterns(dtype)
    native, one = NATIVE[dtype.name], dtype.bits.type(1)
    found = [random_bits(dtype.name, 30_000, 6)]
    for narrow in FLOATS:
        if narrow.width > 16:
            continue
        values = np.unique(values_of(all_patterns(narrow), narrow))
        values = values[np.isfinite(values)]
        largest = values[-1] + np.array([0.25, 0.5, 0.75, 1, 1.5]) * (values[-1] - values[-2])
        ends = np.concatenate([values, values[1:] / 2 + values[:-1] / 2, largest, -largest])
        codes = ends[:: 1 if narrow.width == 8 else 7].astype(native).view(dtype.bits)
        found += [codes, codes + one, codes - one]
    if dtype.name == "F64":
        singles = random_bits("F32", 20_000, 7).view("<f4")
        codes = singles[np.isfinite(singles)].astype("<f8").view("<u8") + np.uint64(1 << 28)
        found += [codes, codes + one, codes - one]  # ties of F32
        bounds = np.array([3.4028234663852886e38, 3.4028235677973366e38, 1e300, 2.0**-149, 2.0**-150, 5e-324])
        found += [bounds.view("<u8"), bounds.view("<u8") + one, bounds.view("<u8") - one]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan]).astype(native).view(dtype.bits)
    return np.concatenate([*found, special, np.array([special[2] + one, special[3] + one], dtype.bits)])


PAIRS = [(source, target) for source in FLOATS for target in FLOATS if source != target]


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=named)
def test_a_cast_rounds_once_to_nearest_even(source: DType, target: DType) -> None:
    bits = hard_patterns(source)
    cast, expected = cast_bits(bits, source, target), oracle(bits, source, target)
    assert cast.dtype == target.bits
    wrong = np.flatnonzero(cast != expected)
    shown = [(values_of(bits[i : i + 1], source)[0], hex(cast[i]), hex(expected[i])) for i in wrong[:5]]
    assert not len(wrong), f"{len(wrong)} of {len(bits)} differ; (value, cast, expected): {shown}"


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=named)
def test_a_cast_agrees_with_torch_wherever_torch_rounds_once(source: DType, target: DType) -> None:
    bits = hard_patterns(source)
    values = values_of(bits, source)
    keep = ~np.isnan(values)  # torch keeps payloads on one processor and not on the next; ours is the one quiet NaN
    if target.name == "F8_E4M3":
        keep &= np.abs(values) < 464  # beyond, torch gives NaN or, since some release, the largest finite value
    bits = bits[keep]
    staged = source.name == "F64" and target.width <= 16
    if staged:  # torch rounds to F32 first, and so rounds twice: not what the nearest value is, and not what we want
        single = as_torch(bits, source).to(torch.float32).numpy().astype("<f8")
        exact = single == values[keep]
        assert 0 < exact.sum() < len(exact)
        bits = bits[exact]
    theirs = as_torch(bits, source).to(getattr(torch, WRITTEN_AS[target.name])).view(torch.uint8).numpy()
    assert np.array_equal(cast_bits(bits, source, target), theirs.view(target.bits))


def test_where_torch_rounds_twice_a_cast_does_not() -> None:
    value = np.array([1 + 2.0**-11 + 2.0**-30])  # just above a tie of F16, which F32 cannot tell from the tie
    assert cast_bits(value.view("<u8"), DTYPES["F64"], DTYPES["F16"]).tolist() == [0x3C01]
    twice = cast_bits(cast_bits(value.view("<u8"), DTYPES["F64"], DTYPES["F32"]), DTYPES["F32"], DTYPES["F16"])
    assert twice.tolist() == [0x3C00]


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=named)
def test_every_nan_becomes_one_quiet_nan(source: DType, target: DType) -> None:
    bits = hard_patterns(source)
    nans = bits[np.isnan(values_of(bits, source))]
    assert len(nans)
    cast = cast_bits(nans, source, target)
    assert len(np.unique(cast)) == 1
    assert bool(np.isnan(values_of(cast, target)).all())


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [(a, b) for a, b in PAIRS if a.width <= 16 and a.exponent <= b.exponent and a.mantissa <= b.mantissa],
    ids=named,
)
def test_widening_and_narrowing_gives_the_same_number_back(narrow: DType, wide: DType) -> None:
    bits = all_patterns(narrow)
    bits = bits[np.isfinite(values_of(bits, narrow))]
    assert np.array_equal(cast_bits(cast_bits(bits, narrow, wide), wide, narrow), bits)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=named)
def test_a_cast_to_the_same_dtype_keeps_every_bit(dtype: DType) -> None:
    bits = random_bits(dtype.name, 1000, 8)
    assert np.array_equal(cast_bits(bits, dtype, dtype), bits)


def test_only_equal_dtypes_and_floats_can_be_cast() -> None:
    known = {(a.name, b.name) for a in DTYPES.values() for b in DTYPES.values() if can_cast(a, b)}
    assert known == {(name, name) for name in DTYPES} | {(a.name, b.name) for a in FLOATS for b in FLOATS}


# Tensors


SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (0, 5), (5, 0), (3, 5), (2, 3, 1, 5)]


@pytest.mark.exhaustive(3)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_reads_back_by_every_door(dtype: str, shape: tuple[int, ...]) -> None:
    bits = random_bits(dtype, int(np.prod(shape, dtype=np.int64)), 9).reshape(shape)
    tensor = Tensor.of(bits, DTYPES[dtype])
    assert (tensor.shape, tensor.size, tensor.nbytes) == (shape, bits.size, bits.nbytes)
    assert tensor.bits().shape == shape
    assert np.array_equal(tensor.bits(), bits)
    assert tensor.sha256() == hashlib.sha256(bits.tobytes()).hexdigest()
    as_torch = tensor.torch()
    assert str(as_torch.dtype) == f"torch.{WRITTEN_AS[dtype]}"
    assert tuple(as_torch.shape) == shape
    assert as_torch.reshape(-1).view(torch.uint8).numpy().tobytes() == bits.tobytes()
    array = tensor.numpy()
    assert array.shape == shape
    if dtype in ("BF16", "F8_E4M3", "F8_E5M2"):
        assert array.dtype == np.float32
        assert np.array_equal(array, as_torch.to(torch.float32).numpy(), equal_nan=True)
    else:
        assert array.dtype == as_torch.numpy().dtype
        assert array.tobytes() == bits.tobytes()


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 25])
def test_a_tensor_in_pieces_is_the_tensor(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_module, "PIECE", 10)
    tensor = random_tensor("F32", (size,), size)
    pieces = list(tensor.pieces())
    assert [len(piece) for piece in pieces] == [10] * (size // 10) + [size % 10] * (size % 10 > 0)
    assert b"".join(as_bytes(piece) for piece in pieces) == tensor.bits().tobytes()
    assert tensor.sha256() == hashlib.sha256(tensor.bits().tobytes()).hexdigest()


def test_a_tensor_over_strided_memory_has_its_own_elements() -> None:
    matrix = random_bits("F32", 60, 10).reshape(6, 10)
    view = matrix.T[::2]
    tensor = Tensor.of(view, DTYPES["F32"])
    assert tensor.shape == (5, 6)
    assert np.array_equal(tensor.read_flat(3, 17), view.reshape(-1)[3:17])
    assert bytes(as_bytes(view)) == view.tobytes()


def test_a_torch_tensor_does_not_share_memory_with_what_it_was_read_from() -> None:
    bits = random_bits("F32", 8, 11)
    before = bits.copy()
    Tensor.of(bits, DTYPES["F32"]).torch().zero_()
    assert np.array_equal(bits, before)


# Files that the safetensors library wrote


def test_a_file_of_the_safetensors_library_reads_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {f"{dtype}/{i}": random_tensor(dtype, shape, i) for dtype in DTYPES for i, shape in enumerate(SHAPES)}
    path = write_safetensors(tmp_path / "all.safetensors", tensors, {"format": "pt", "ключ": "значение\n"})
    header, pin = read_pinned(path)
    assert header == read_header(path)
    assert header.entries.keys() == tensors.keys()
    assert header.metadata == {"format": "pt", "ключ": "значение\n"}
    assert header.file_size == path.stat().st_size
    assert path.read_bytes().startswith(header.head_bytes())
    theirs = load_file(path)
    for name, tensor in tensors.items():
        read = file_tensor(pin, header, name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(read.bits(), tensor.bits())
        assert read.torch().reshape(-1).view(torch.uint8).equal(theirs[name].reshape(-1).view(torch.uint8))
        for start, stop in ((0, 0), (read.size // 3, read.size), (read.size // 2, read.size // 2)):
            assert np.array_equal(read.read_flat(start, stop), tensor.bits().reshape(-1)[start:stop])


@pytest.mark.parametrize("tensors", [{}, {"empty": random_tensor("F32", (0, 4))}], ids=["none", "empty"])
def test_a_file_without_a_byte_of_data_is_read(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = write_safetensors(tmp_path / "none.safetensors", tensors)
    header = read_header(path)
    assert header.entries.keys() == tensors.keys()
    assert header.file_size == path.stat().st_size


def test_a_dtype_that_nobody_knows_is_read_as_bytes(tmp_path: Path) -> None:
    path = file_of(tmp_path, '{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}', b"abc")
    header, pin = read_pinned(path)
    tensor = file_tensor(pin, header, "a")
    assert (tensor.dtype.name, tensor.shape, tensor.bits().tobytes()) == ("U8", (3,), b"abc")


def test_a_header_that_we_build_is_one_that_the_safetensors_library_reads(tmp_path: Path) -> None:
    rows: dict[str, tuple[str, tuple[int, ...], int]] = {
        name: (name, (2, 3), 6 * dtype.itemsize) for name, dtype in DTYPES.items()
    }
    header = build_header(rows, {"format": "pt"})
    assert header.data_start % 8 == 0
    path = tmp_path / "built.safetensors"
    data = np.random.default_rng(0).bytes(header.file_size - header.data_start)
    path.write_bytes(header.head_bytes() + data)
    assert read_header(path) == header
    with safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == set(rows)
        assert theirs.metadata() == {"format": "pt"}
        assert all(tuple(theirs.get_slice(name).get_shape()) == (2, 3) for name in rows)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"a": random_tensor("F32", (100,))})
    header, pin = read_pinned(path)
    tensor = file_tensor(pin, header, "a")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="changed after it was opened: its size was"):
        tensor.bits()


# Files that must be refused


def file_of(directory: Path, header: str | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file from a header's text, as it is."""
    text = header.encode() if isinstance(header, str) else header
    path = directory / "made.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def rows(*entries: tuple[str, str, str, str], before: str = "", after: str = "") -> str:
    """Return the text of a header from (name, dtype, shape, offsets), the last three as raw JSON."""
    body = [f'"{name}":{{"dtype":{d},"shape":{s},"data_offsets":{o}}}' for name, d, s, o in entries]
    return "{" + before + ",".join(body) + after + "}"


def one(dtype: str = '"U8"', shape: str = "[1]", offsets: str = "[0,1]", name: str = "a") -> str:
    return rows((name, dtype, shape, offsets))


NO_BRACE = "not a JSON object: it does not start with"
NOT_JSON, SIZES, RANGE, FIELDS = (
    "header that is not JSON",
    "list of non-negative integers",
    "must be [start, end]",
    "fields must be",
)

MALFORMED: dict[str, tuple[str | bytes, bytes, str]] = {
    # not JSON
    "empty header": ("", b"", NO_BRACE),
    "spaces only": ("        ", b"", NO_BRACE),
    "cut brace": ('{"a":', b"", NOT_JSON),
    "two objects": ("{}{}", b"", NOT_JSON),
    "trailing comma": (one()[:-1] + ",}", b"x", NOT_JSON),
    "single quotes": ("{'a':1}", b"", NOT_JSON),
    "NUL padding": ("{}\0\0\0\0\0\0", b"", NOT_JSON),
    "not UTF-8": (b'{"\xff\xfe":1}', b"", NOT_JSON),
    "overlong UTF-8": (b'{"\xc0\xaf":1}', b"", NOT_JSON),
    "UTF-8 surrogate": (b'{"\xed\xa0\x80":1}', b"", NOT_JSON),
    "UTF-16": ("{}".encode("utf-16"), b"", NO_BRACE),
    "BOM": (b"\xef\xbb\xbf{}", b"", NO_BRACE),
    "raw newline in a name": ('{"a\nb":1}', b"", NOT_JSON),
    "NaN": (one(shape="[NaN]"), b"x", NOT_JSON),
    "Infinity": (one(shape="[Infinity]"), b"x", NOT_JSON),
    "-Infinity": (one(offsets="[-Infinity,1]"), b"x", NOT_JSON),
    "NaN in the metadata": ('{"__metadata__":NaN}', b"", NOT_JSON),
    "integer of 5,000 digits": (one(shape=f"[{'9' * 5000}]"), b"x", NOT_JSON),
    "lists 100,000 deep": ("[" * 100_000, b"", NO_BRACE),
    "objects 100,000 deep": ('{"a":' * 100_000 + "1" + "}" * 100_000, b"", NOT_JSON),
    "a shape 100,000 deep": (one(shape="[" * 100_000 + "]" * 100_000), b"x", NOT_JSON),
    "lone surrogate in a name": (one(name="\\ud800"), b"x", ""),
    "lone surrogate in a dtype": (one('"\\udfff"'), b"x", ""),
    "lone surrogate in the metadata": ('{"__metadata__":{"a":"\\ud800"}}', b"", ""),
    "lone surrogate in a metadata key": ('{"__metadata__":{"\\udc00":"a"}}', b"", ""),
    # duplicate keys
    "a tensor twice": (rows(("a", '"U8"', "[1]", "[0,1]"), ("a", '"U8"', "[1]", "[1,2]")), b"xy", "duplicate key 'a'"),
    "a tensor twice, one range": (
        rows(("a", '"F32"', "[1]", "[0,4]"), ("a", '"U8"', "[4]", "[0,4]")),
        b"wxyz",
        "duplicate key 'a'",
    ),
    "a tensor twice, once escaped": (
        rows(("a", '"U8"', "[1]", "[0,1]"), ("\\u0061", '"U8"', "[1]", "[1,2]")),
        b"xy",
        "duplicate key 'a'",
    ),
    "a field twice": (
        '{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
        "duplicate key 'dtype'",
    ),
    "the metadata twice": ('{"__metadata__":{},"__metadata__":{}}', b"", "duplicate key '__metadata__'"),
    "a metadata key twice": ('{"__metadata__":{"k":"1","k":"2"}}', b"", "duplicate key 'k'"),
    # not the right structure
    "a list": ("[]", b"", NO_BRACE),
    "a space": (" {}", b"", NO_BRACE),
    "a minus before 0": ('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b"", NOT_JSON),
    "a number": ("7", b"", "not a JSON object"),
    "null": ("null", b"", "not a JSON object"),
    "metadata a list": ('{"__metadata__":[]}', b"", "'__metadata__' that is not"),
    "metadata a number": ('{"__metadata__":{"a":1}}', b"", "'__metadata__' that is not"),
    "metadata 1e400": ('{"__metadata__":{"a":1e400}}', b"", "'__metadata__' that is not"),
    "metadata null": ('{"__metadata__":{"a":null}}', b"", "'__metadata__' that is not"),
    "a tensor that is a list": ('{"a":[]}', b"", FIELDS),
    "a tensor that is null": ('{"a":null}', b"", FIELDS),
    "no dtype": ('{"a":{"shape":[1],"data_offsets":[0,1]}}', b"x", FIELDS),
    "no shape": ('{"a":{"dtype":"U8","data_offsets":[0,1]}}', b"x", FIELDS),
    "no offsets": ('{"a":{"dtype":"U8","shape":[1]}}', b"x", FIELDS),
    "no fields": ('{"a":{}}', b"", FIELDS),
    "a field too many": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]}}', b"x", FIELDS),
    "dtype a number": (one("8"), b"x", "dtype must be a string"),
    "dtype null": (one("null"), b"x", "dtype must be a string"),
    # sizes
    "shape a number": (one(shape="1"), b"x", SIZES),
    "shape an object": (one(shape="{}"), b"x", SIZES),
    "shape of strings": (one(shape='["1"]'), b"x", SIZES),
    "shape of true": (one(shape="[true]"), b"x", SIZES),
    "shape of 1.0": (one(shape="[1.0]"), b"x", SIZES),
    "shape of 1e400": (one(shape="[1e400]"), b"x", SIZES),
    "shape of lists": (one(shape="[[1]]"), b"x", SIZES),
    "negative shape": (one(shape="[-1]"), b"x", SIZES),
    "two negative shapes": (one(shape="[-1,-1]"), b"x", SIZES),
    "shape of 2^63": (one(shape="[9223372036854775808]"), b"x", SIZES),
    "shape of 2^64 + 1": (one(shape="[18446744073709551617]"), b"x", SIZES),
    "product of 2^64 + 1": (one(shape="[274177,67280421310721]"), b"x", "does not take 1 bytes"),
    "bytes of 2^64 + 4": (one('"F32"', "[4611686018427387905]", "[0,4]"), b"wxyz", "does not take 4 bytes"),
    "a shape of 1,000 sizes": (
        one(shape=f"[{','.join(['9223372036854775807'] * 1000)}]"),
        b"x",
        "shape has 1,000 dimensions",
    ),
    # ranges
    "offsets a number": (one(offsets="0"), b"x", RANGE),
    "no offset": (one(shape="[0]", offsets="[]"), b"", RANGE),
    "one offset": (one(offsets="[1]"), b"x", RANGE),
    "three offsets": (one(offsets="[0,1,1]"), b"x", RANGE),
    "offsets the wrong way": (one(offsets="[1,0]"), b"x", RANGE),
    "negative offset": (one(offsets="[-1,0]"), b"x", RANGE),
    "offset of 2^63": (one(offsets="[0,9223372036854775808]"), b"x", RANGE),
    "offset of 0.0": (one(offsets="[0.0,1]"), b"x", RANGE),
    "offset of 1e400": (one(offsets="[0,1e400]"), b"x", RANGE),
    "offset of null": (one(offsets="[null,1]"), b"x", RANGE),
    "too few bytes": (one('"F32"', "[2]", "[0,4]"), b"wxyz", "shape [2] of F32 does not take 4 bytes"),
    "too many bytes": (one('"F32"', "[1]", "[0,8]"), b"wxyzwxyz", "shape [1] of F32 does not take 8 bytes"),
    "bytes for an empty tensor": (one(shape="[0,9]", offsets="[0,1]"), b"x", "does not take 1 bytes"),
    "no bytes for a scalar": (one(shape="[]", offsets="[0,0]"), b"", "does not take 0 bytes"),
    # places
    "a hole in front": (one(offsets="[1,2]"), b"xy", "'a' at byte 1, expected 0"),
    "a hole between": (
        rows(("a", '"U8"', "[1]", "[0,1]"), ("b", '"U8"', "[1]", "[2,3]")),
        b"xyz",
        "'b' at byte 2, expected 1",
    ),
    "an overlap": (
        rows(("a", '"U8"', "[2]", "[0,2]"), ("b", '"U8"', "[2]", "[1,3]")),
        b"xyz",
        "'b' at byte 1, expected 2",
    ),
    "one range twice": (
        rows(("a", '"U8"', "[2]", "[0,2]"), ("b", '"U8"', "[2]", "[0,2]")),
        b"xy",
        "'b' at byte 0, expected 2",
    ),
    "an empty tensor inside another": (
        rows(("a", '"U8"', "[2]", "[0,2]"), ("b", '"U8"', "[0]", "[1,1]")),
        b"xy",
        "'b' at byte 1, expected 2",
    ),
    "an empty tensor far away": (one(shape="[0]", offsets="[9,9]"), b"", "'a' at byte 9, expected 0"),
    "a trailing byte": (one(), b"xy", "its header needs"),
    "trailing bytes without a tensor": ("{}", b"x", "its header needs"),
    "a byte missing": (one(), b"", "its header needs"),
    "2^62 bytes missing": (one(shape="[4611686018427387904]", offsets="[0,4611686018427387904]"), b"x", "header needs"),
}

SAFETENSORS_READS = {
    "a space",
    "a tensor twice, one range",
    "a metadata key twice",
    "a field too many",
}
"""What the safetensors library itself lets through: two readers of such a file can see two different things."""


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    header, data, reason = MALFORMED[case]
    path = file_of(tmp_path, header, data)
    with pytest.raises(MalformedError) as caught:
        read_header(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("case", MALFORMED)
def test_the_safetensors_library_refuses_the_same_files_but_for_those_listed(case: str, tmp_path: Path) -> None:
    header, data, _ = MALFORMED[case]
    path = file_of(tmp_path, header, data)
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError, UnicodeDecodeError):
        assert case not in SAFETENSORS_READS
    else:
        assert case in SAFETENSORS_READS


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    tensors = {"a": random_tensor("F32", (2, 3)), "b.c": random_tensor("BF16", (3,)), "e": random_tensor("I8", (0,))}
    return write_safetensors(tmp_path / "small.safetensors", tensors, {"format": "pt"})


def test_a_file_cut_at_any_length_is_refused(small_file: Path) -> None:
    content = small_file.read_bytes()
    for length in range(len(content)):
        small_file.write_bytes(content[:length])
        with pytest.raises(MalformedError, match=r"a safetensors file needs at least 8|declares a header of|needs"):
            read_header(small_file)


@pytest.mark.parametrize("extra", [1, 7, 8, 4096])
def test_a_file_with_bytes_behind_its_tensors_is_refused(small_file: Path, extra: int) -> None:
    small_file.write_bytes(small_file.read_bytes() + bytes(extra))
    with pytest.raises(MalformedError, match=r"bytes, its header needs"):
        read_header(small_file)


@pytest.mark.parametrize("length", [3, 100, MAX_HEADER, MAX_HEADER + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused_unread(tmp_path: Path, length: int) -> None:
    with pytest.raises(MalformedError, match=f"declares a header of {length:,} bytes, expected at most 2"):
        read_header(file_of(tmp_path, "{}", length=length))


def test_a_header_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = file_of(tmp_path, "{}", length=MAX_HEADER + 1)
    with path.open("r+b") as file:
        file.truncate(MAX_HEADER + 100)  # sparse: no disk is taken
    with pytest.raises(MalformedError, match=r"declares a header of 100,000,001 bytes"):
        read_header(path)


@pytest.mark.exhaustive(7)
def test_a_file_with_any_bit_of_its_header_flipped_is_refused_or_read_as_the_safetensors_library_reads_it(
    small_file: Path, sample: Sample
) -> None:
    content, read, data_start = small_file.read_bytes(), 0, read_header(small_file).data_start
    for bit in sample(range(data_start * 8)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        small_file.write_bytes(flipped)
        try:
            header = read_header(small_file)
        except MalformedError:
            continue
        if any(entry.dtype not in DTYPES for entry in header.entries.values()):
            continue  # the library refuses dtypes that it does not know, we carry their bytes
        read += 1
        with safe_open(small_file, "pt") as theirs:
            assert set(theirs.keys()) == header.entries.keys()
            for name, entry in header.entries.items():
                assert tuple(theirs.get_slice(name).get_shape()) == entry.shape
                assert theirs.get_slice(name).get_dtype() == entry.dtype
    assert read > 50 // sample.step  # names and metadata may be anything


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from([2**63, 1e400, -0.0, 0.5]) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPES, "F4", ""]) | JSON_VALUES},
    optional={
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-1, 9), min_size=1, max_size=3) | JSON_VALUES,
        "more": JSON_VALUES,
    },
)


def parsed(text: bytes) -> Header | None:
    """Return a header, or None where it is refused."""
    try:
        return parse_header(text)
    except MalformedError as error:
        return None if error.message.isprintable() else parse_header(text)


@settings(max_examples=500)
@given(st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ROWS | JSON_VALUES, max_size=3) | JSON_VALUES)
def test_any_json_is_a_header_or_refused(table: Any) -> None:
    text = json.dumps(table).encode()
    header = parsed(text)
    if header is not None:
        assert header.head_bytes()[8:] == text
        sizes = [entry.stop - entry.start for entry in header.entries.values()]
        assert header.file_size == 8 + len(text) + sum(sizes)


@settings(max_examples=1000)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_header_or_refused(text: bytes) -> None:
    header = parsed(text)
    assert header is None or header.text.encode() == text


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4)),
        max_size=5,
    )
)
def test_a_built_header_parses_to_what_it_was_built_from(table: dict[str, tuple[str, list[int]]]) -> None:
    tensors = {
        name: (dtype, tuple(shape), int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize)
        for name, (dtype, shape) in table.items()
    }
    header = parse_header(build_header(tensors, {}).text.encode())
    assert {name: (row.dtype, row.shape, row.stop - row.start) for name, row in header.entries.items()} == tensors
