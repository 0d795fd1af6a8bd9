"""Coders: every one on every dtype, bit for bit; and on bytes that it never wrote."""

from __future__ import annotations

import itertools
import math
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from petlpack import coding
from petlpack.coding import pco
from petlpack.coding.array import Array, Level
from petlpack.coding.registry import CODERS, coder
from petlpack.errors import DamageError, UnknownFormatError
from petlpack.tensors.dtypes import DTYPES, Bits, DType
from petlpack.tensors.tensor import Tensor
from tests.support.sampling import Sample
from tests.support.small_runs import nudged, random_bits, weights

LEVELS: tuple[Level, ...] = ("fast", "small")
SIZES = (0, 1, 2, 7, 64, 1000, 40_000)
ALWAYS = ("raw", "planes", "numbers")
"""Coders that take whatever they are given."""


def nudge(bits: Bits, dtype: DType, share: float = 1.0, steps: int = 40) -> Bits:
    """Return a prediction near `bits`."""
    return nudged(Tensor.of(bits, dtype), 1, share, steps).bits()


def inputs(dtype: DType, size: int) -> Iterator[tuple[str, Bits]]:
    """Yield arrays of `size` elements by what they are like."""
    yield "random", random_bits(dtype.name, size, size)
    yield "weights", weights(dtype.name, (size,), size).bits()
    yield "one value", np.full(size, 1 if dtype.name == "BOOL" else 0x7F, dtype.bits)
    yield "two values", (np.random.default_rng(size).random(size) < 0.2).astype(dtype.bits)
    top = 1 if dtype.name == "BOOL" else 1 << (dtype.width - 1)
    yield (
        "both ends",
        np.random.default_rng(size).choice(np.array([0, top - 1, top, 2 * top - 1], "<u8"), size).astype(dtype.bits)
        & dtype.bits.type(1 if dtype.name == "BOOL" else 2 * top - 1),
    )
    if dtype.name != "BOOL":
        yield "rising", np.unique(random_bits(dtype.name, size, size))


def predictions(bits: Bits, dtype: DType) -> Iterator[tuple[str, Bits | None]]:
    yield "nothing", None
    yield "itself", bits.copy()
    yield "a neighbour", nudge(bits, dtype)
    yield "mostly itself", nudge(bits, dtype, 0.05)
    yield "anything", random_bits(dtype.name, len(bits), 12)


def matrices(dtype: DType, rows: int, row: int, seed: int) -> Iterator[tuple[str, Bits, Bits]]:
    """Yield (what, bits, prediction) as fine-tuning makes them: rows that move much, little, or hardly at all."""
    rng = np.random.default_rng(seed)
    given = weights(dtype.name, (rows, row), seed).bits()

    def moved(share: float | NDArray[np.floating[Any]], steps: float | NDArray[np.floating[Any]]) -> Bits:
        moves = np.rint(rng.normal(0, 1, given.shape) * steps) * (rng.random(given.shape) < share)
        moves = np.clip(moves, -(2.0 ** min(62, dtype.width - 2)), 2.0 ** min(62, dtype.width - 2))
        bits: Bits = given + moves.astype(np.int64).astype(dtype.bits)
        return bits & dtype.bits.type(1) if dtype.name == "BOOL" else bits

    yield "rows of their own amounts", moved(1.0, 2.0 ** rng.integers(0, min(20, dtype.width - 1), (rows, 1))), given
    yield "most rows quiet", moved(np.where(rng.random((rows, 1)) < 0.8, 0.01, 1.0), 50.0), given
    yield "all rows quiet", moved(0.02, 9.0), given
    yield "nothing changed", given.copy(), given
    yield "anything", random_bits(dtype.name, rows * row, seed).reshape(rows, row), given
    yield "anything from anything", moved(1.0, 3.0), random_bits(dtype.name, rows * row, seed + 1).reshape(rows, row)
    if dtype.name in ("F32", "F64"):
        values = given.view(f"<f{dtype.itemsize}")
        decayed = np.where(rng.random((rows, 1)) < 0.3, values * 1.01, values) * (1 - 1e-5)
        yield "decayed", decayed.astype(values.dtype).view(dtype.bits), given


def masks(
    rows: int, row: int, given_rows: int, keep: float, overlap: float, seed: int, *, given: bool = True
) -> tuple[Bits, Array]:
    """Return binary masks that keep a share of their entries, `overlap` of which they have in common, and their array.

    The first `given_rows` are the given ones; without `given` they are drawn and not given.
    """
    rng = np.random.default_rng(seed)
    common = rng.random(row) < keep
    drawn = np.where(
        rng.random((given_rows + rows, row)) < overlap, common, rng.random((given_rows + rows, row)) < keep
    )
    bits = drawn.astype(np.uint8).reshape(-1)
    near = bits[: given_rows * row].copy() if given_rows and given else None
    return bits[given_rows * row :].copy(), Array(DTYPES["BOOL"], rows * row, row, near)


def assert_round_trip(coder_id: str, bits: Bits, array: Array, level: Level) -> bytes | None:
    """Encode and decode; the encoder may only decline, and neither may change what it is given."""
    before, given_before = bits.copy(), np.array(0 if array.prediction is None else array.prediction)
    data = coder(coder_id).encode(bits, array, level)
    assert np.array_equal(bits, before)
    if data is None:
        assert coder_id not in ALWAYS
        return None
    decoded = coding.decode(coder_id, data, array, "section")
    assert decoded.dtype == array.dtype.bits
    assert decoded.shape == (array.count,)
    assert np.array_equal(decoded, before)
    if array.prediction is not None:
        assert np.array_equal(array.prediction, given_before)
    assert coder(coder_id).encode(bits, array, level) == data  # the same bytes again
    return data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coder_id", CODERS)
def test_every_coder_round_trips_every_dtype_and_size_or_declines(coder_id: str, dtype: str) -> None:
    known, taken, declined = DTYPES[dtype], 0, 0
    for size in SIZES:
        for what, bits in inputs(known, size):
            if size == SIZES[-1] and what not in ("random", "weights"):
                continue
            for prediction, known_near in predictions(bits, known):
                if known_near is not None and coder_id != "ulps" and prediction != "a neighbour":
                    continue
                for row in (
                    {1, 7, 64, max(1, len(bits))}
                    if coder_id in ("ulps", "masks") and size <= 1000
                    else {max(1, len(bits))}
                ):
                    array = Array(known, len(bits), row, known_near)
                    for level in LEVELS if size <= 1000 else LEVELS[:1]:
                        data = assert_round_trip(coder_id, bits, array, level)
                        taken, declined = taken + (data is not None), declined + (data is None)
    if coder_id in ALWAYS:
        assert not declined
    if coder_id in ("bitmap", "masks"):
        assert bool(taken) == (dtype == "BOOL")
    if coder_id == "gaps":
        assert bool(taken) == (known.kind == "unsigned")
    if coder_id == "ulps":
        assert taken
        assert declined  # without a prediction


@pytest.mark.exhaustive(5)
@pytest.mark.parametrize("shape", [(1, 600), (600, 1), (11, 64), (9, 97), (130, 50), (3, 3000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coder_id", [coder_id for coder_id in CODERS if coder_id not in ("raw", "bitmap", "gaps")])
def test_every_coder_round_trips_what_fine_tuning_makes(coder_id: str, dtype: str, shape: tuple[int, int]) -> None:
    known = DTYPES[dtype]
    for i, (_, bits, near) in enumerate(matrices(known, *shape, seed=1)):
        for row in (shape[1], shape[0] * shape[1] + 1) if i == 0 else (shape[1],):  # or one that does not divide
            array = Array(known, bits.size, row, near.reshape(-1))
            for level in LEVELS:
                data = assert_round_trip(coder_id, bits.reshape(-1), array, level)
                if coder_id == "masks":
                    assert (data is not None) == (dtype == "BOOL")
                else:
                    assert data is not None or (coder_id == "rows" and known.kind != "float")


@settings(max_examples=300)
@given(
    st.sampled_from([dtype for dtype in DTYPES.values() if dtype.kind == "float"]),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 2**32),
    st.sampled_from(LEVELS),
    st.integers(0, 6),
    st.integers(1, 70),
)
def test_any_rows_round_trip(
    dtype: DType, rows: int, row: int, seed: int, level: Level, which: int, stated: int
) -> None:
    every = list(matrices(dtype, rows, row, seed))
    _, bits, near = every[which % len(every)]
    for length in (row, stated):
        assert_round_trip("rows", bits.reshape(-1), Array(dtype, bits.size, length, near.reshape(-1)), level)


@pytest.mark.parametrize("dtype", DTYPES)
def test_encode_takes_the_smallest_and_raw_where_nothing_applies(dtype: str) -> None:
    known = DTYPES[dtype]
    for size in (0, 1, 1000):
        for _, bits in inputs(known, size):
            array = Array(known, len(bits), max(1, len(bits)), nudge(bits, known))
            lengths = {coder_id: coder(coder_id).encode(bits, array, "small") for coder_id in CODERS}
            coder_id, data = coding.encode(bits, array, tuple(CODERS), "small")
            assert len(data) == min(len(other) for other in lengths.values() if other is not None)
            assert data == lengths[coder_id]
            assert np.array_equal(coding.decode(coder_id, data, array, "section"), bits)
    assert coding.encode(random_bits(dtype, 50, 1), Array(known, 50, 50), (), "small")[0] == "raw"


def test_an_unknown_coder_is_refused_by_name() -> None:
    with pytest.raises(UnknownFormatError, match=r"unknown coder 'zip\\n' \(known: raw, planes"):
        coding.decode("zip\n", b"", Array(DTYPES["U8"], 0, 1), "section")


KINDS = {kind: [dtype for dtype in DTYPES.values() if dtype.kind == kind] for kind in ("float", "signed", "unsigned")}


def elements(dtype: DType) -> st.SearchStrategy[int]:
    """Return codes of a dtype: any, and more often those around its ends, its zeros, its infinities."""
    if dtype.name == "BOOL":
        return st.integers(0, 1)
    most, sign = 2**dtype.width - 1, 2 ** (dtype.width - 1)
    special = [0, 1, sign - 1, sign, sign + 1, most]
    if dtype.kind == "float":
        infinity = ((1 << dtype.exponent) - 1) << dtype.mantissa
        special += [infinity, infinity - 1, infinity + 1, infinity | sign]
    return st.integers(0, most) | st.sampled_from(special)


@pytest.mark.exhaustive(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coder_id", CODERS)
def test_any_bits_round_trip(coder_id: str, kind: str, sample: Sample) -> None:
    def pairs_of(dtype: DType) -> st.SearchStrategy[tuple[DType, list[tuple[int, int | None]]]]:
        pair = st.tuples(elements(dtype), elements(dtype) | st.none())
        return st.tuples(st.just(dtype), st.lists(pair, max_size=24))

    arrays = st.one_of([pairs_of(dtype) for dtype in KINDS[kind]])

    @settings(max_examples=300 // sample.step)
    @given(arrays, st.sampled_from([1, 2, 3, 7, 64]), st.sampled_from(LEVELS), st.booleans())
    def check(drawn: tuple[DType, list[tuple[int, int | None]]], row: int, level: Level, predicted: bool) -> None:
        known, pairs = drawn
        codes = [code for code, _ in pairs]
        if coder_id == "gaps":
            codes = sorted(set(codes))
        bits = np.array(codes, known.bits)
        near = [code if other is None else other for code, (_, other) in zip(codes, pairs, strict=False)]
        array = Array(known, len(bits), row, np.array(near, known.bits) if predicted else None)
        assert_round_trip(coder_id, bits, array, level)

    check()


@settings(max_examples=300)
@given(st.lists(st.integers(0, 9), max_size=20), st.sampled_from(sorted(DTYPES)))
def test_positions_that_do_not_rise_are_declined_and_rising_ones_are_not(positions: list[int], dtype: str) -> None:
    known = DTYPES[dtype]
    bits = np.array(positions, known.bits)
    data = coder("gaps").encode(bits, Array(known, len(bits), 1), "small")
    rising = all(a < b for a, b in itertools.pairwise(positions))
    assert (data is not None) == (rising and known.kind == "unsigned")


# Bytes that no encoder wrote


def samples(coder_id: str) -> Iterator[tuple[bytes, Array]]:
    """Yield what a coder writes for small arrays of every dtype."""
    for dtype in DTYPES.values():
        for size in (0, 1, 7, 300):
            for what, bits in inputs(dtype, size):
                if what in ("both ends", "one value"):
                    continue
                array = Array(dtype, len(bits), min(7, max(1, len(bits))), nudge(bits, dtype))
                data = coder(coder_id).encode(bits, array, "small")
                if data is not None:
                    yield data, array
        for _, bits, near in matrices(dtype, 40, 16, seed=2) if coder_id == "rows" else ():
            for level in LEVELS:
                array = Array(dtype, bits.size, 16, near.reshape(-1))
                data = coder(coder_id).encode(bits.reshape(-1), array, level)
                if data is not None:
                    yield data, array
    for rows, given_rows in ((1, 0), (6, 0), (3, 4)) if coder_id == "masks" else ():
        for keep in (0.05, 0.3, 0.9):
            bits, array = masks(rows, 200, given_rows, keep, 0.8, seed=4)
            yield coder(coder_id).encode(bits, array, "small") or b"", array
    if coder_id == "rows":  # large enough for a table of drift
        *_, (_, bits, near) = matrices(DTYPES["F32"], 300, 50, seed=3)
        array = Array(DTYPES["F32"], bits.size, 50, near.reshape(-1))
        yield coder(coder_id).encode(bits.reshape(-1), array, "small") or b"", array


def damages(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield cut, extended and flipped data: single bits, several, and bytes in and out of place."""
    for length in {0, 1, 2, 3, 5, 8, 13, len(data) // 2, len(data) - 1} & set(range(len(data))):
        yield data[:length]
    yield data + b"\0"
    yield data + bytes(rng.bytes(9))
    yield data + data
    for most in (6, 30, len(data)):
        for _ in range(6 if data else 0):
            flipped = bytearray(data)
            for _ in range(int(rng.choice([1, 1, 3]))):
                flipped[int(rng.integers(min(most, len(data))))] ^= 1 << int(rng.integers(8))
            yield bytes(flipped)
        if data:
            at = int(rng.integers(min(most, len(data))))
            yield data[:at] + data[at + 1 :]
            yield data[:at] + rng.bytes(1) + data[at:]


def decodes(coder_id: str, data: bytes, array: Array) -> bool:
    """Decode data that nobody vouches for: True where it is `count` elements, False where it is refused.

    Nothing else may happen, not even an exception that is no Exception (as a panic in Rust is).
    """
    try:
        bits = coding.decode(coder_id, data, array, "section")
    except (DamageError, UnknownFormatError) as error:
        assert error.message.isprintable(), error.message  # noqa: PT017 - most data is not refused
        assert "'section'" in error.message  # noqa: PT017
        return False
    assert bits.shape == (array.count,)
    assert bits.dtype == array.dtype.bits
    return True


@pytest.mark.parametrize("coder_id", CODERS)
def test_damaged_data_is_refused_or_decodes_to_as_many_elements(coder_id: str) -> None:
    rng, cases, refused = np.random.default_rng(0), 0, 0
    tracemalloc.start()
    try:
        for data, array in samples(coder_id):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            for damaged in damages(data, rng):
                cases, refused = cases + 1, refused + (not decodes(coder_id, damaged, array))
            assert tracemalloc.get_traced_memory()[1] - before < 2**20 + 64 * array.count * array.dtype.itemsize
    finally:
        tracemalloc.stop()
    assert cases >= (100 if coder_id == "bitmap" else 500)
    assert refused >= cases // 10


@pytest.mark.parametrize("coder_id", CODERS)
def test_any_bytes_are_refused_or_decode_to_as_many_elements(coder_id: str) -> None:
    @settings(max_examples=300)
    @given(st.binary(max_size=60), st.sampled_from(sorted(DTYPES)), st.integers(0, 40), st.booleans())
    def check(data: bytes, dtype: str, count: int, written: bool) -> None:
        known = DTYPES[dtype]
        array = Array(known, count, 3, random_bits(dtype, count, 13))
        if written:  # as it begins where a coder wrote it
            start = (
                coder(coder_id).encode(np.arange(count).astype(known.bits) & known.bits.type(1), array, "fast") or b""
            )
            data = start[: len(start) - len(data) // 2] + data
        decodes(coder_id, data, array)

    check()


@pytest.mark.parametrize("coder_id", CODERS)
def test_data_of_another_number_of_elements_is_refused(coder_id: str) -> None:
    cases = 0
    for data, array in samples(coder_id):
        for count in {array.count + 1, array.count + 8, array.count - 1, 2 * array.count + 8} - {-1, array.count}:
            if coder_id == "bitmap" and (count + 7) // 8 == (array.count + 7) // 8:
                continue
            if coder_id == "masks":  # positions say nothing of what is behind the last: see below
                continue
            other = Array(array.dtype, count, array.row, random_bits(array.dtype.name, count, 14))
            with pytest.raises(DamageError):
                coding.decode(coder_id, data, other, "section")
            cases += 1
    assert cases >= 9 or coder_id == "masks"


@pytest.mark.parametrize("coder_id", CODERS)
def test_a_count_that_no_memory_holds_is_refused(coder_id: str) -> None:
    # loading bounds every count by its unit; beyond that, a lack of memory is not called damage
    for data, array in samples(coder_id):
        if array.count in (7, 640):
            with pytest.raises((DamageError, MemoryError)):
                coding.decode(coder_id, data, Array(array.dtype, 2**47, 7, array.prediction), "section")


def frame(content: bytes, *, size: bool = True, checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(level=19, write_content_size=size, write_checksum=checksum).compress(content)


def planes(*frames: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in frames)


SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"
BOMB = frame(bytes(2**26))

BAD_PLANES: dict[str, tuple[bytes, str]] = {
    "a frame of 64 MB": (planes(BOMB), "expected a zstd frame of 8 bytes, got 67108864"),
    "a frame that hides its size": (planes(frame(bytes(8), size=False)), "expected a zstd frame of 8 bytes"),
    "a bomb that hides its size": (planes(frame(bytes(2**26), size=False)), "expected a zstd frame of 8 bytes"),
    "a bomb that states eight bytes": (planes(b"\x28\xb5\x2f\xfd\x20\x08" + BOMB[9:]), ""),
    "a frame of seven bytes": (planes(frame(bytes(7))), "expected a zstd frame of 8 bytes, got 7"),
    "an empty frame": (planes(frame(b"")), "expected a zstd frame of 8 bytes, got 0"),
    "two frames in one plane": (planes(frame(bytes(8)) + frame(bytes(8))), ""),
    "bytes behind the frame": (planes(frame(bytes(8)) + b"more"), ""),
    "a skippable frame in front": (planes(SKIPPABLE + frame(bytes(8))), "a zstd frame begins with 28b52ffd"),
    "a plane too many": (planes(frame(bytes(8)), frame(bytes(8))), "the planes need"),
    "no plane": (b"", ""),
    "half a length": (b"\x01\0", ""),
    "a length beyond the data": (struct.pack("<I", 2**32 - 1) + frame(bytes(8)), "the planes need"),
    "a length of zero": (planes(b""), ""),
    "another magic number": (planes(b"\0\0\0\0" + frame(bytes(8))[4:]), ""),
    "a checksum that is wrong": (planes(frame(b"petlpack", checksum=True)[:-1] + b"\0"), ""),
}


@pytest.mark.parametrize("case", BAD_PLANES)
def test_planes_that_no_encoder_wrote_are_refused_before_they_take_memory(case: str) -> None:
    data, reason = BAD_PLANES[case]
    tracemalloc.start()
    try:
        with pytest.raises(DamageError) as caught:
            coding.decode("planes", data, Array(DTYPES["U8"], 8, 8), "section")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert reason in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("dtype", ["F16", "F32", "F64"])
def test_a_plane_that_claims_to_be_long_takes_no_memory(dtype: str) -> None:
    data = struct.pack("<I", 100_000_000) + frame(b"")
    tracemalloc.start()
    try:
        with pytest.raises(DamageError):
            coding.decode("planes", data, Array(DTYPES[dtype], 0, 1), "section")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# Masks


@settings(max_examples=300)
@given(
    st.integers(1, 9),
    st.integers(1, 90),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.97, 1.0]),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    st.integers(0, 2**32),
    st.sampled_from(LEVELS),
)
def test_any_masks_round_trip_in_hardly_more_than_a_bit_an_entry(
    rows: int, row: int, given_rows: int, keep: float, overlap: float, seed: int, level: Level
) -> None:
    bits, array = masks(rows, row, given_rows, keep, overlap, seed)
    data = assert_round_trip("masks", bits, array, level)
    assert data is not None
    assert len(data) <= array.count / 8 * 1.01 + 200


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32))
def test_masks_whose_row_does_not_divide_them_round_trip(count: int, row: int, seed: int) -> None:
    bits = random_bits("BOOL", count, seed)
    for near in (None, random_bits("BOOL", count, seed + 1)):
        assert assert_round_trip("masks", bits, Array(DTYPES["BOOL"], count, row, near), "small") is not None


@pytest.mark.parametrize("value", [2, 3, 255])
def test_masks_of_anything_but_0_and_1_are_declined(value: int) -> None:
    bits = np.array([0, 1, value, 0], np.uint8)
    for dtype in ("BOOL", "U8"):
        assert coder("masks").encode(bits, Array(DTYPES[dtype], 4, 4), "small") is None


ENTRIES = 24 * 768 * 64
"""1.18 million: the masks of 24 matrices of 768 times 64."""


def entropy_bytes(bits: Bits) -> float:
    """Return n H(k): what no coder can go below for random masks."""
    keep = float(bits.mean())
    return -len(bits) * (keep * math.log2(keep) + (1 - keep) * math.log2(1 - keep)) / 8


@pytest.mark.parametrize("given_rows", [0, 12])
@pytest.mark.parametrize("keep", [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_random_masks_take_at_most_2_percent_more_than_their_entropy(keep: float, given_rows: int) -> None:
    bits, array = masks(24, ENTRIES // 24, given_rows, keep, 0.0, seed=16)
    data = assert_round_trip("masks", bits, array, "small")
    assert data is not None
    assert entropy_bytes(bits) * 0.99 < len(data) <= entropy_bytes(bits) * 1.02, (
        f"{len(data)} bytes, {entropy_bytes(bits):.0f} at the bound"
    )
    assert len(data) <= array.count / 8 * 1.01 + 200


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.9])
def test_masks_that_agree_take_less_and_less_still_where_others_are_given(keep: float) -> None:
    row = ENTRIES // 24
    apart, alike, known = (
        len(assert_round_trip("masks", *masks(*shape, keep, overlap, 17, given=given), "small") or b"")
        for shape, overlap, given in (((6, row, 18), 0.0, False), ((6, row, 18), 0.7, False), ((6, row, 18), 0.7, True))
    )
    assert known < 0.9 * alike < 0.9 * 0.95 * apart


def class_of(mode: int, count: int, stream: bytes) -> tuple[bytes, bytes]:
    """Return the table's entry of a class, and its bytes."""
    return struct.pack("<BII", mode, count, len(stream)), stream


def of_classes(*classes: tuple[bytes, bytes]) -> bytes:
    return bytes([len(classes)]) + b"".join(entry for entry, _ in classes) + b"".join(stream for _, stream in classes)


def gaps(*numbers: int) -> bytes:
    return pco.compress(np.array(numbers, "<u4"))


BAD_MASKS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "0 classes in"),
    "no classes": (b"\0", "0 classes in"),
    "65 classes": (bytes([65]) + class_of(0, 0, b"")[0] * 65, "65 classes in"),
    "half a table": (of_classes(class_of(0, 0, b"\1\0"))[:5], "1 classes in"),
    "a cut stream": (of_classes(class_of(0, 0, b"\1\0"))[:-1], ""),
    "a length beyond the data": (bytes([1]) + struct.pack("<BII", 0, 0, 2**32 - 1) + b"\1\0", ""),
    "bytes behind": (of_classes(class_of(0, 0, b"\1\0")) + b"\0", "1 extra bytes after the last stream"),
    "mode 3": (of_classes(class_of(3, 0, b"\1\0")), "bad class: mode 3"),
    "a bitmap with numbers": (of_classes(class_of(0, 2, b"\1\0")), "2 positions"),
    "a bitmap of 8 bits": (of_classes(class_of(0, 0, b"\1")), "has 8 bits, expected at least 10"),
    "a bitmap of 24 bits": (of_classes(class_of(0, 0, bytes(3))), "after the last entry"),
    "a bit behind the last entry": (of_classes(class_of(0, 0, b"\1\4")), "after the last entry"),
    "more numbers than entries": (of_classes(class_of(1, 11, gaps(*[0] * 11))), "more positions than the 10 entries"),
    "2^32 - 1 numbers": (of_classes(class_of(1, 2**32 - 1, gaps(0))), "more positions"),
    "a position behind the last entry": (of_classes(class_of(1, 2, gaps(3, 6))), "a position is beyond the last entry"),
    "positions that wrap": (of_classes(class_of(1, 3, gaps(3, 2**32 - 1, 2**32 - 1))), "a position is beyond"),
    "another number of positions": (of_classes(class_of(1, 3, gaps(3, 1))), ""),
    "no pcodec": (of_classes(class_of(2, 2, b"hello")), ""),
    "a class without entries that has some": (
        of_classes(class_of(0, 0, b"\1\0"), class_of(1, 1, gaps(0))),
        "",
    ),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_masks_that_no_encoder_wrote_are_refused(case: str) -> None:
    data, reason = BAD_MASKS[case]
    tracemalloc.start()
    try:
        with pytest.raises(DamageError) as caught:
            coding.decode("masks", data, Array(DTYPES["BOOL"], 10, 10), "section")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert reason in caught.value.message
    assert caught.value.message.isprintable()


def test_masks_are_read_where_an_encoder_might_have_written_them() -> None:
    array = Array(DTYPES["BOOL"], 10, 10)
    for data, kept in (
        (of_classes(class_of(0, 0, b"\1\2")), [0, 9]),
        (of_classes(class_of(1, 2, gaps(0, 8))), [0, 9]),
        (of_classes(class_of(2, 2, gaps(0, 8))), [1, 2, 3, 4, 5, 6, 7, 8]),
        (of_classes(class_of(1, 0, gaps())), []),
    ):
        assert np.flatnonzero(coding.decode("masks", data, array, "section")).tolist() == kept
    for dtype in set(DTYPES) - {"BOOL"}:
        with pytest.raises(DamageError, match=f"masks must be BOOL, got {dtype}"):
            coding.decode("masks", of_classes(class_of(0, 0, b"\1\2")), Array(DTYPES[dtype], 10, 10), "section")


def test_masks_of_fewer_entries_than_their_positions_need_are_refused() -> None:
    for keep in (0.02, 0.1, 0.9, 0.98):
        bits, array = masks(1, 3000, 0, keep, 0.0, seed=5)
        data = coder("masks").encode(bits, array, "small")
        assert data is not None
        assert (data[0], data[1]) == (1, 1 if keep < 0.5 else 2)  # one class of positions
        last = int(np.flatnonzero(bits == (keep < 0.5))[-1])
        for count in (1, last // 2, last - 1, last):
            with pytest.raises(DamageError, match=r"a position is beyond the last entry|list more positions"):
                coding.decode("masks", data, Array(array.dtype, count, count), "section")
    bits, array = masks(1, 3000, 0, 0.5, 0.0, seed=5)
    data = coder("masks").encode(bits, array, "small")
    assert data is not None
    assert (data[0], data[1]) == (1, 0)  # one class of bits
    for count in (1, 1500, 2992, 3001, 3008):
        with pytest.raises(DamageError, match=r"has [0-9]+ bits, expected|after the last entry|bad class: mode 0"):
            coding.decode("masks", data, Array(array.dtype, count, count), "section")


def test_many_classes_that_claim_all_entries_take_no_memory() -> None:
    count = 2**18
    full = class_of(1, count, pco.compress(np.zeros(count, "<u4")))
    data = of_classes(*[full] * 64)
    assert len(data) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(DamageError):
            coding.decode("masks", data, Array(DTYPES["BOOL"], count, count), "section")
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 64 * count
    finally:
        tracemalloc.stop()


# Index sets


DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@pytest.mark.parametrize("density", DENSITIES)
def test_an_index_set_takes_at_most_1_percent_more_than_its_entropy(density: float) -> None:
    positions = 2**22 if density > 0.001 else 2**25  # below 8,000 positions the coder's own tables, 80 bytes, are 1 %
    chosen = np.flatnonzero(np.random.default_rng(15).random(positions, "f4") < density).astype("<u4")
    array = Array(DTYPES["U32"], len(chosen), len(chosen))
    coder_id, data = coding.encode(chosen, array, ("gaps",), "small")
    assert coder_id == "gaps"
    assert np.array_equal(coding.decode(coder_id, data, array, "section"), chosen)
    share = len(chosen) / positions
    entropy = -positions * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    assert entropy * 0.99 < len(data) <= entropy * 1.01, f"{len(data)} bytes, {entropy:.0f} at the bound"
