"""What a coder is: one array to bytes and back, exactly. Coders know no models, paths or packs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from petlpack.tensors.dtypes import Bits, DType

Level = Literal["fast", "small"]
"""`fast` decodes fastest, `small` takes the fewest bytes."""


@dataclass(frozen=True)
class Array:
    """What a decoder knows of an array before it reads a byte of it."""

    dtype: DType
    count: int
    row: int
    """Elements of one row of the matrices that the array is made of."""
    prediction: Bits | None = None
    """A prediction that encoder and decoder both have, bit for bit: `count` elements of the same dtype."""

    @property
    def whole_row(self) -> int:
        """Elements of one row, or of the whole array where it is not made of whole rows."""
        return self.row if self.count % self.row == 0 else self.count


class Coder(Protocol):
    """One way to write an array. Its id names one byte format for ever.

    One that decodes fast says so: `decode_ns`, the nanoseconds that it takes an element, and level `fast` prefers it.
    One that can tell by a sample what it takes has `estimate`, of the same arguments as `encode`: about so many bits,
    or None where a sample does not tell. One that takes very long at level `small` says `slow`.
    """

    id: str

    def encode(self, bits: Bits, array: Array, level: Level) -> bytes | None:
        """Return the bytes of a flat array, or None where this coder does not apply."""

    def decode(self, data: bytes, array: Array) -> Bits:
        """Return the flat array; raises ValueError where the bytes are not such an array."""
