"""Rounding one float dtype to another, the same on every machine: what a base is before a task in another dtype."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from petlpack.tensors.dtypes import Bits, DType

_NATIVE = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def can_cast(source: DType, target: DType) -> bool:
    """Tell whether `cast_bits` knows this pair: equal dtypes, or two floats."""
    return source == target or (source.kind == target.kind == "float")


def cast_bits(bits: Bits, source: DType, target: DType) -> Bits:
    """Round the bits of floats to another float dtype, to nearest even; every NaN becomes the one quiet NaN.

    Wider dtypes hold every value of narrower ones, so widening is exact. The NaN rule exists because processors differ
    in which payload a conversion keeps.
    """
    if source == target:
        return bits
    with np.errstate(over="ignore", invalid="ignore"):
        wide = _to_f64(bits, source)
        if target.name in _NATIVE:
            out: Bits = wide.astype(_NATIVE[target.name]).view(target.bits)
        else:
            out = _round(wide.view("<u8"), target)
        return np.where(np.isnan(wide), target.bits.type(_quiet_nan(target)), out)


def _quiet_nan(dtype: DType) -> int:
    """Return the bits of the NaN of exponent and first mantissa bit; F8_E4M3 has only the one of all ones."""
    if dtype.name == "F8_E4M3":
        return 0x7F
    return ((1 << (dtype.exponent + 1)) - 1) << (dtype.mantissa - 1)


def _to_f64(bits: Bits, source: DType) -> NDArray[np.float64]:
    """Return the exact values of float bits as float64."""
    if source.name in _NATIVE:
        wide: NDArray[np.float64] = bits.view(_NATIVE[source.name]).astype(np.float64)
        return wide
    if source.name == "BF16":
        return (bits.astype("<u4") << np.uint32(16)).view("<f4").astype(np.float64)
    values: NDArray[np.float64] = _f8_values(source)[bits]
    return values


def _f8_values(source: DType) -> NDArray[np.float64]:
    """Return the value of each of the 256 bit patterns of an 8-bit float (OCP 8-bit floating point, rev. 1.0)."""
    code = np.arange(256)
    exponent = (code >> source.mantissa) & ((1 << source.exponent) - 1)
    fraction = (code & ((1 << source.mantissa) - 1)) / (1 << source.mantissa)
    bias = (1 << (source.exponent - 1)) - 1
    values = np.where(exponent > 0, 1 + fraction, fraction) * 2.0 ** (np.maximum(exponent, 1) - bias)
    top = exponent == (1 << source.exponent) - 1
    if source.name == "F8_E4M3":  # no infinities; only the largest code is NaN
        values[top & (fraction == 0.875)] = np.nan
    else:
        values[top] = np.where(fraction[top] > 0, np.nan, np.inf)
    signed: NDArray[np.float64] = np.where(code >= 128, -values, values)
    return signed


def _round(wide: Bits, target: DType) -> Bits:
    """Round float64 bits to a float of 8 or 16 bits by searching its ordered values, ties to even."""
    if target.name == "BF16":
        return _round_bf16(wide)
    values = _f8_values(target)[:128]
    finite = values[np.isfinite(values)]
    magnitude = (wide & np.uint64(2**63 - 1)).view("<f8")
    middles = (finite[1:] + finite[:-1]) / 2
    code = np.searchsorted(middles, magnitude, side="left")
    tied = np.isin(magnitude, middles)
    code += tied & (code % 2 == 1)
    limit = finite[-1] + (finite[-1] - finite[-2]) / 2
    if target.name == "F8_E4M3":  # has no infinity: too large is NaN; its largest code is even, so a tie stays
        code = np.where(magnitude > limit, 0x7F, code)
    else:
        code = np.where(magnitude >= limit, 0x7C, code)
    sign = (wide >> np.uint64(56)).astype(np.uint8) & np.uint8(0x80)
    return code.astype(np.uint8) | sign


def _round_bf16(wide: Bits) -> Bits:
    """Round float64 bits to bfloat16 once (through float32 with round-to-odd, so that nothing is rounded twice)."""
    values = wide.view("<f8")
    single = values.astype(np.float32)
    back = single.astype(np.float64)
    bits = single.view("<u4").astype(np.uint64)
    away = np.abs(back) > np.abs(values)  # rounded up in magnitude: step back, then mark as inexact
    bits = np.where(back == values, bits, (bits - away) | np.uint64(1))
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return rounded.astype("<u2")
