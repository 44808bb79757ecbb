"""Fast, exact conversion of float16 to float32.

NumPy and FAISS's `sa_decode` convert one value at a time. Here, the bits of a float16 are shifted 13 places to the
left. They then are the bits of the same value as a float32, except that the exponent is too small by 112. Multiplying
by 2^112 corrects the exponent, for subnormal numbers too. Both steps use the processor's vector instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INFINITE = 0x7C00
_SCALE = np.float32(2.0**112)
_KEPT = np.array(0x8FFFE000, np.uint32).view(np.int32)
"""Mask for a shifted int32. It keeps the sign bit and the 15 value bits, and clears the copies of the sign bit."""


def to_float32(features: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Returns an array converted to float32.

    A float16 array is converted by the fast method if all of its values are finite. NumPy converts every other array.
    out: contiguous float32 array of the same shape to write into; by default, a new array.
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
    """Returns features as float16, the type in which they are stored. Values out of range are clipped to ±65504."""
    return np.clip(features, -65504, 65504).astype(np.float16)
