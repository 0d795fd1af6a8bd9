"""Streams of integers: what comes back, what the head alone refuses, and a decoder that has only the page."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone, wrapped

from petlpack import coding
from petlpack.coding import pco
from petlpack.coding.array import Array
from petlpack.errors import RefusedError, UnknownFormatError
from petlpack.tensors.dtypes import DTYPES
from tests.support import pcodec_reader

INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")


def decoded(data: bytes, numbers: np.ndarray) -> list[int]:
    return pcodec_reader.decode(data, numbers.size, numbers.dtype.kind, 8 * numbers.itemsize)


@st.composite
def some_integers(draw: st.DrawFn) -> np.ndarray:
    """Few or many numbers of any type, alike or not: bins, offsets and batches of every size."""
    dtype = np.dtype(f"<{draw(st.sampled_from(INTEGERS))}")
    info = np.iinfo(dtype)
    few = draw(arrays.arrays(dtype, draw(st.integers(1, 40))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, spread = draw(st.integers(1, 1200)), draw(st.sampled_from((0.3, 3.0, 40.0, 1e6)))
    near = np.clip(np.round(rng.laplace(0, spread, count)), max(info.min, -(2**40)), min(info.max, 2**40))
    return rng.permutation(np.concatenate([few, near.astype(dtype)])) if draw(st.booleans()) else near.astype(dtype)


@settings(max_examples=60, deadline=None)
@given(some_integers(), st.booleans())
@pytest.mark.rule("pcodec-unknown")
def test_a_decoder_from_the_page_alone_reads_what_the_library_writes(numbers: np.ndarray, smooth: bool) -> None:
    data = pco.compress(numbers, smooth=smooth)
    assert np.array_equal(pco.decompress(data, numbers.size, numbers.dtype), numbers)
    assert decoded(data, numbers) == numbers.tolist()


@pytest.mark.parametrize("count", [pco.PAGE - 1, pco.PAGE, pco.PAGE + 1, pco.CHUNK, pco.CHUNK + 1, 2 * pco.CHUNK + 300])
@pytest.mark.parametrize("smooth", [False, True])
def test_pages(count: int, smooth: bool) -> None:
    numbers = np.cumsum(np.random.default_rng(count).integers(-9, 10, count)).astype("<i2")
    data = pco.compress(numbers, smooth=smooth)
    assert np.array_equal(pco.decompress(data, count, numbers.dtype), numbers)
    pages = pcodec_reader.split(data, count, "i", 16)
    sizes = [size for _, _, size in pages]
    assert sum(sizes) == count
    assert max(sizes) <= pco.PAGE
    chunk, page, size = pages[-1]  # by itself: nothing in it needs a page before
    assert chunk.smooth == smooth
    latents = pcodec_reader.read_page(page, size, chunk)
    assert [latent - 2**15 for latent in latents] == numbers[-size:].tolist()


def test_what_a_later_chunk_states_is_known_before_the_first_is_decoded() -> None:
    numbers = np.zeros(pco.CHUNK + 1, "<u2")
    data = bytearray(pco.compress(numbers))
    last = len(pco.compress(numbers[:1])) - 5  # the second chunk, whose pages have no bits, behind a head of its own
    assert bytes(data[-last:]) == pco.compress(numbers[:1])[5:]
    data[-last] = 1
    with pytest.raises(UnknownFormatError):
        pco.decompress(bytes(data), numbers.size, numbers.dtype)


def test_what_pcodec_puts_in_front_of_chunks_is_the_version_that_streams_leave_out() -> None:
    assert wrapped.FileCompressor().write_header() == b"\4\1"


OTHERS = {
    "multiples": (ModeSpec.try_int_mult(1000), DeltaSpec.no_op(), np.arange(3000) % 37 * 1000),
    "back references": (ModeSpec.classic(), DeltaSpec.try_lookback(), np.tile(np.arange(500) ** 3 % 99991, 6)),
    "sums of sums": (ModeSpec.classic(), DeltaSpec.try_consecutive(2), np.arange(3000) ** 2),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_else_pcodec_can_write_is_unknown_and_nothing_of_it_is_decoded(what: str) -> None:
    mode, delta, values = OTHERS[what]
    numbers = values.astype("<u4")
    chunk = wrapped.FileCompressor().chunk_compressor(numbers, ChunkConfig(mode_spec=mode, delta_spec=delta))
    data = pco.compress(numbers)[:5] + chunk.write_meta() + chunk.write_page(0)
    with pytest.raises(UnknownFormatError, match="section 'here': a pcodec stream of mode") as caught:
        coding.decode("numbers", data, Array(DTYPES["U32"], numbers.size, 1), "here")
    assert (caught.value.code, caught.value.exit_code) == ("pcodec-unknown", 7)
    with pytest.raises(pcodec_reader.UnknownStreamError):
        decoded(data, numbers)


def test_a_file_of_pcodec_is_no_stream() -> None:
    data = standalone.simple_compress(np.arange(9, dtype="<u4"), ChunkConfig())
    with pytest.raises(RefusedError, match="numbers of type 112, expected 1"):
        pco.decompress(data, 9, np.dtype("<u4"))


def test_nothing_is_allocated_for_numbers_that_a_stream_does_not_state() -> None:
    data = pco.compress(np.zeros(100, "<u4"))
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match=f"a stream of 100 numbers, expected {2**30}"):
            pco.decompress(data, 2**30, np.dtype("<u4"))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("smooth", [False, True])
def test_a_cut_or_longer_stream_is_refused(smooth: bool) -> None:
    numbers = np.random.default_rng(3).integers(-99, 99, pco.PAGE + 700).astype("<i2")
    data = pco.compress(numbers, smooth=smooth)
    for cut in (*range(1, 40), len(data) // 2, len(data) - 1):
        with pytest.raises(RefusedError):
            pco.decompress(data[:cut], numbers.size, numbers.dtype)
    with pytest.raises(RefusedError, match="a page of"):
        pco.decompress(data + b"\0", numbers.size, numbers.dtype)
