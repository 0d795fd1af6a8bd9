"""Dtypes by their safetensors names, each with the unsigned integer that holds its bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from petlpack.errors import UnknownFormatError, printable

Bits: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""The bits of a tensor as unsigned integers of its width."""


@dataclass(frozen=True)
class DType:
    """A tensor dtype: its safetensors name, the kind of number, and for floats the widths of exponent and mantissa."""

    name: str
    kind: str  # "float", "signed", "unsigned"
    width: int  # in bits
    exponent: int = 0
    mantissa: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.width // 8

    @property
    def bits(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The numpy dtype (little-endian unsigned) that holds the bits of one element."""
        return np.dtype(f"<u{self.itemsize}")


def _float(name: str, exponent: int, mantissa: int) -> DType:
    return DType(name, "float", 1 + exponent + mantissa, exponent, mantissa)


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        _float("F64", 11, 52),
        _float("F32", 8, 23),
        _float("F16", 5, 10),
        _float("BF16", 8, 7),
        _float("F8_E4M3", 4, 3),
        _float("F8_E5M2", 5, 2),
        DType("I64", "signed", 64),
        DType("I32", "signed", 32),
        DType("I16", "signed", 16),
        DType("I8", "signed", 8),
        DType("U64", "unsigned", 64),
        DType("U32", "unsigned", 32),
        DType("U16", "unsigned", 16),
        DType("U8", "unsigned", 8),
        DType("BOOL", "unsigned", 8),
    )
}


def dtype_named(name: str) -> DType:
    """Return the dtype of a safetensors name; raises UnknownFormatError for any other."""
    try:
        return DTYPES[name]
    except KeyError:
        message = f"unknown dtype '{printable(name)}' (known: {', '.join(DTYPES)})"
        raise UnknownFormatError(message, code="dtype-unknown") from None


def width_of(name: object) -> int:
    """Return the bytes of an element of a dtype; those of a tensor whose dtype is not known are its elements."""
    known = DTYPES.get(name) if isinstance(name, str) else None
    return 1 if known is None else known.itemsize
