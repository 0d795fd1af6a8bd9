"""One tensor that can be read piece by piece, wherever its bits come from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from petlpack.errors import UnknownFormatError, printable
from petlpack.tensors.dtypes import Bits, DType

if TYPE_CHECKING:
    import torch

PIECE = 1 << 22
"""Elements read at a time while streaming: 8-32 MB, large enough that the calls cost nothing."""

HASHED = 1 << 20
"""Bytes read at a time to be hashed and forgotten: what of them is still in the processor's cache is hashed faster."""

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?"}
TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""What torch calls each dtype."""

_CARRIED = {
    "C64": "complex64",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}
"""What torch calls the dtypes of safetensors that are carried as bytes."""

_PAIRS = "F4"
"""The dtype whose elements torch has two to a byte, so that its last size is half of what safetensors says."""


@dataclass(frozen=True)
class Stored:
    """What a header says of a tensor: its dtype and shape; a dtype that only torch knows is called as torch does."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def only_torch(self) -> bool:
        """Whether safetensors has no name for the dtype."""
        return self.dtype not in TORCH_NAMES and self.dtype.islower()

    def of_bytes(self, octets: NDArray[np.uint8]) -> torch.Tensor:
        """Return the torch tensor of these bytes; raises UnknownFormatError for a dtype that torch does not have."""
        import torch

        name = {**TORCH_NAMES, **_CARRIED}.get(self.dtype, self.dtype)
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise UnknownFormatError(
                f"dtype {printable(self.dtype)} is none of torch {torch.__version__}",
                hint="`decode` writes it back unchanged",
                code="dtype-unknown",
            )
        shape = self.shape
        if self.dtype == _PAIRS and shape:
            shape = (*shape[:-1], shape[-1] // 2)
        try:
            return torch.from_numpy(octets).view(dtype).reshape(shape)
        except RuntimeError as error:  # pairs that no last size makes, or a size beyond what torch counts
            raise UnknownFormatError(
                f"torch {torch.__version__} has no {printable(self.dtype)} tensor of shape {list(self.shape)}",
                hint="`decode` writes it back unchanged",
                code="dtype-unknown",
            ) from error


def stored_as(dtype: torch.dtype, shape: tuple[int, ...]) -> Stored:
    """Return what a header says of a torch tensor."""
    name = str(dtype).removeprefix("torch.")
    known = {torch_name: known for known, torch_name in {**TORCH_NAMES, **_CARRIED}.items()}.get(name, name)
    if known == _PAIRS:  # without a last size, safetensors cannot say that there are two
        return Stored(known, (*shape[:-1], 2 * shape[-1])) if shape else Stored(name, shape)
    return Stored(known, shape)


@dataclass(frozen=True)
class Sums:
    """What tells the bytes of a tensor from others: the sha256 from all, the checksum from what came by accident."""

    sha256: str
    checksum: str


@dataclass(frozen=True)
class Tensor:
    """A tensor on disk, in memory or in a pack; `read_flat(start, stop)` gives its flat elements as bits."""

    dtype: DType
    shape: tuple[int, ...]
    read_flat: Callable[[int, int], Bits]

    @classmethod
    def of(cls, bits: Bits, dtype: DType) -> Tensor:
        """Return a tensor over bits in memory (any shape, width of the dtype)."""
        flat = np.ascontiguousarray(bits).reshape(-1)
        return cls(dtype, bits.shape, lambda start, stop: flat[start:stop])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    def pieces(self) -> Iterator[Bits]:
        """Yield the flat bits in order, PIECE elements at a time."""
        for start in range(0, self.size, PIECE):
            yield self.read_flat(start, min(start + PIECE, self.size))

    def bits(self) -> Bits:
        """Read the whole tensor as unsigned integers, in its shape."""
        return self.read_flat(0, self.size).reshape(self.shape)

    def sha256(self) -> str:
        """Return the sha256 of the elements' little-endian bytes, in hex."""
        return self.sums().sha256

    def checksum(self) -> str:
        """Return XXH3 of the elements' little-endian bytes, 64 bits in hex: an eighth of the time of the sha256."""
        checksum = xxhash.xxh3_64()
        for data in self._hashed():
            checksum.update(data)
        return checksum.hexdigest()

    def sums(self) -> Sums:
        """Return the sha256 and the checksum, from one pass over the elements."""
        digest, checksum = hashlib.sha256(), xxhash.xxh3_64()
        for data in self._hashed():
            digest.update(data)
            checksum.update(data)
        return Sums(digest.hexdigest(), checksum.hexdigest())

    def _hashed(self) -> Iterator[memoryview]:
        step = HASHED // self.dtype.itemsize
        for start in range(0, self.size, step):
            yield as_bytes(self.read_flat(start, min(start + step, self.size)))

    def numpy(self) -> NDArray[Any]:
        """Read the whole tensor as a numpy array; dtypes that numpy lacks (BF16, F8) come as float32, exactly."""
        bits = self.bits()
        if self.dtype.name in _NUMPY:
            return bits.view(_NUMPY[self.dtype.name])
        if self.dtype.kind == "float":
            from petlpack.tensors.casting import cast_bits
            from petlpack.tensors.dtypes import DTYPES

            return cast_bits(bits, self.dtype, DTYPES["F32"]).view("<f4")
        return bits.view(f"<i{self.dtype.itemsize}") if self.dtype.kind == "signed" else bits

    def torch(self) -> torch.Tensor:
        """Read the whole tensor as a torch tensor on the CPU, bit for bit."""
        return Stored(self.dtype.name, self.shape).of_bytes(octets_of(self.read_flat(0, self.size)))


def octets_of(bits: Bits) -> NDArray[np.uint8]:
    """Return the little-endian bytes of an array of unsigned integers, as an array of their own."""
    return np.array(bits).reshape(-1).view(np.uint8)


def as_bytes(bits: Bits) -> memoryview:
    """Return the little-endian bytes of an array of unsigned integers, without a copy where it is contiguous."""
    return np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data
