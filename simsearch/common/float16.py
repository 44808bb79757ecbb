"""Fast, exact conversion of float16 to float32.

NumPy and FAISS's `sa_decode` convert one value at a time. Shifted 13 bits to the left, a float16 has the bits of the
same float32 value, except that the exponent biases differ by 112. Multiplying by 2^112 corrects this, for subnormal
numbers too. Each step compiles to vector instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INFINITE = 0x7C00
_SCALE = np.float32(2.0**112)
_KEPT = np.array(0x8FFFE000, np.uint32).view(np.int32)
"""Mask for the shifted int32: keeps the sign bit and the 15 value bits, clears the repeated sign bits between."""


def to_float32(features: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Converts an array to float32 with the fast method for float16 and with NumPy for all other types.

    out: contiguous array of the same shape to write into; a new one by default.
    """
    x: NDArray[Any] = np.ascontiguousarray(features)
    values: NDArray[np.float32] = np.empty(x.shape, np.float32) if out is None else out
    if x.dtype != np.float16 or not x.size:
        values[...] = x
    elif int(x.view(np.uint16).max()) < _INFINITE:  # no negative values (top bit set), infinities or NaN
        bits: NDArray[Any] = values.view(np.uint32)
        bits[...] = x.view(np.uint16)
        bits <<= 13
        values *= _SCALE
    elif int((x.view(np.uint16) & 0x7FFF).max()) < _INFINITE:
        bits = values.view(np.int32)
        bits[...] = x.view(np.int16)
        bits <<= 13
        bits &= _KEPT
        values *= _SCALE
    else:
        values[...] = x
    return values


def to_float16(features: NDArray[np.float32]) -> NDArray[np.float16]:
    """Converts features to float16, the stored type. Values out of range are clipped to ±65504."""
    return np.clip(features, -65504, 65504).astype(np.float16)
