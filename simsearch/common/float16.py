"""float16 to float32, exactly and at the memory's speed.

NumPy and FAISS's `sa_decode` convert value by value. The bits of a half, moved 13 places to the left, are those of the
same value as a float32 but for the exponents' biases, which are 112 apart; a multiplication by 2^112 makes up for that,
subnormal numbers included, and all three steps are vector instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INFINITE = 0x7C00
_SCALE = np.float32(2.0**112)
_KEPT = np.array(0x8FFFE000, np.uint32).view(np.int32)
"""What is left of an int32's bits after the shift: the sign, which it repeats, and the 15 bits that follow."""


def to_float32(features: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Any array as float32: float16 fast, everything else by NumPy.

    out: a contiguous array of the same shape to write into; else a new one is made.
    """
    x: NDArray[Any] = np.ascontiguousarray(features)
    values: NDArray[np.float32] = np.empty(x.shape, np.float32) if out is None else out
    if x.dtype != np.float16 or not x.size:
        values[...] = x
    elif int(x.view(np.uint16).max()) < _INFINITE:  # neither negative, which has the top bit, nor infinite
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
    """Features as an index keeps them. What float16 cannot hold becomes its largest value, never infinity."""
    return np.clip(features, -65504, 65504).astype(np.float16)
