"""A decoder of the streams in `formats/pcodec.md`, written from that page alone: no library decodes anything.

It is slow, and here to show that the page suffices. Bits are taken from one large integer, the lowest first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PAGE = 65_536
CHUNK = 262_144
BATCH = 256
TYPES = {1: ("u", 32), 2: ("u", 64), 3: ("i", 32), 4: ("i", 64), 7: ("u", 16), 8: ("i", 16), 10: ("u", 8), 11: ("i", 8)}


class UnknownStreamError(ValueError):
    """The stream may be one of pcodec's, but not one of the page."""


class Bits:
    """Bits of bytes, taken from the lowest of the first byte on."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> int:
        """Return the next bits as an integer, the first bit lowest."""
        begin, end = self.at, self.at + count
        check(end <= 8 * len(self.data), "the bits end too soon")
        self.at = end
        octets = int.from_bytes(self.data[begin // 8 : (end + 7) // 8], "little")
        return octets >> begin % 8 & ((1 << count) - 1)

    def finish_byte(self) -> None:
        """Skip to the next whole byte; the bits on the way are 0."""
        check(self.take(-self.at % 8) == 0, "bits behind the end are set")


@dataclass(frozen=True)
class State:
    """One state of the table: what it stands for, and where it leads."""

    bin: int
    lower: int
    offset_bits: int
    bits: int
    next: int


@dataclass(frozen=True)
class Chunk:
    """The chunk's metadata, read."""

    width: int
    smooth: bool
    table_log: int
    bins: tuple[tuple[int, int, int], ...]
    """Weight, lower bound and offset bits of each."""
    states: tuple[State, ...]


def check(rule: bool, why: str) -> None:
    """Refuse as damage what breaks a rule."""
    if not rule:
        raise ValueError(why)


def spread(weights: list[int], table_log: int) -> list[int]:
    """Return the bin of every state."""
    size = 1 << table_log
    check(sum(weights) == size, "the weights do not add up to the table")
    stride = 3 * size // 5
    stride += stride % 2 == 0
    bins = [0] * size
    step = 0
    for number, weight in enumerate(weights):
        for _ in range(weight):
            bins[stride * step % size] = number
            step += 1
    return bins


def read_chunk(bits: Bits, width: int) -> Chunk:
    """Read the chunk's metadata."""
    mode, delta = bits.take(4), bits.take(4)
    if mode or delta > 1 or (delta and bits.take(4) != 1):
        raise UnknownStreamError(f"mode {mode}, delta {delta}")
    table_log, count = bits.take(4), bits.take(15)
    check(table_log <= 14 and count <= 1 << table_log, "more bins than states")
    check(count != 1 or table_log == 0, "one bin needs no table")
    rows = [(bits.take(table_log) + 1, bits.take(width), bits.take(width.bit_length())) for _ in range(count)]
    bits.finish_byte()
    check(all(offset <= width for _, _, offset in rows), "an offset wider than the numbers")
    weights = [weight for weight, _, _ in rows] or [1]
    following = list(weights)
    states = []
    for number in spread(weights, table_log):
        x = following[number]
        following[number] += 1
        more = table_log + 1 - x.bit_length()
        _, lower, offset = rows[number] if rows else (1, 0, 0)
        states.append(State(number, lower, offset, more, (x << more) - (1 << table_log)))
    return Chunk(width, delta == 1, table_log, tuple(rows), tuple(states) if rows else ())


def page_head(bits: Bits, chunk: Chunk) -> tuple[int, list[int]]:
    """Read the first latent, 0 where the page does not state it, and the four states."""
    moment = bits.take(chunk.width) if chunk.smooth else 0
    states = [bits.take(chunk.table_log) for _ in range(4)]
    bits.finish_byte()
    return moment, states


def read_page(data: bytes, count: int, chunk: Chunk) -> list[int]:
    """Return the latents of one page, which fills its bytes."""
    bits, mask = Bits(data), (1 << chunk.width) - 1
    moment, states = page_head(bits, chunk)
    coded = count - 1 if chunk.smooth else count
    check(bool(chunk.states) or not coded, "numbers without a bin")
    latents: list[int] = []
    for start in range(0, coded, BATCH):
        found = []
        for i in range(min(BATCH, coded - start)):
            state = chunk.states[states[i % 4]]
            found.append(state)
            states[i % 4] = state.next + bits.take(state.bits)
        latents += [(state.lower + bits.take(state.offset_bits)) & mask for state in found]
    bits.finish_byte()
    check(bits.at == 8 * len(data), "bytes behind a page")
    if not chunk.smooth:
        return latents
    summed = [moment]
    for latent in latents:
        summed.append((summed[-1] + latent - (1 << chunk.width - 1)) & mask)
    return summed


def even(count: int, most: int) -> list[int]:
    """Return the sizes of as few parts of at most so many as there can be, the first ones larger by one."""
    parts = (count + most - 1) // most
    return [count // parts + 1] * (count % parts) + [count // parts] * (parts - count % parts)


def split(data: bytes, count: int, kind: str, width: int) -> list[tuple[Chunk, bytes, int]]:
    """Return the pages of a stream: the chunk of each, its bytes without the metadata, how many numbers it has."""
    check(len(data) >= 5, "the head has five bytes")
    number_type, stated = struct.unpack_from("<BI", data)
    check(TYPES.get(number_type) == (kind, width), "numbers of another type")
    check(stated == count, "another number of numbers")
    sizes: list[int] = []
    first_pages = set()
    for chunk_size in even(count, CHUNK):
        first_pages.add(len(sizes))
        sizes += even(chunk_size, PAGE)
    at = 5 + 4 * (len(sizes) - 1)
    check(len(data) >= at, "the table of pages is cut")
    lengths = struct.unpack_from(f"<{len(sizes) - 1}I", data, 5)
    check(at + sum(lengths) <= len(data), "a page beyond the stream")
    pages = []
    for number, (size, length) in enumerate(zip(sizes, [*lengths, len(data) - at - sum(lengths)], strict=True)):
        page = data[at : at + length]
        at += length
        if number in first_pages:
            bits = Bits(page)
            chunk = read_chunk(bits, width)
            page = page[bits.at // 8 :]
        pages.append((chunk, page, size))
    return pages


def decode(data: bytes, count: int, kind: str, width: int) -> list[int]:
    """Return the numbers of a stream: `count` of them, unsigned (`u`) or signed (`i`), of so many bits.

    Raises ValueError for damage, UnknownStreamError for what the page does not have.
    """
    if not count:
        check(not data, "no numbers are no bytes")
        return []
    pages = split(data, count, kind, width)
    latents = [latent for chunk, page, size in pages for latent in read_page(page, size, chunk)]
    center = 1 << (width - 1)
    return latents if kind == "u" else [latent - center for latent in latents]
