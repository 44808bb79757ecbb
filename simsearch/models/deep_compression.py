"""Deep Compression (Han, Mao, Dally, ICLR 2016): pruned, weight-shared, Huffman-coded tensors.

A trained and pruned tensor, in which most weights are zero, becomes three arrays:

- codebook: (2^bits,) float32: first zero, then the values that the weights share, found by k-means (section 3);
- gaps: the number of zeros before each stored weight, one byte each. A gap that is too long for a byte is split up by
  fillers: stored weights of value zero, with index 0 (section 2, figure 2);
- indices: the position of each stored weight in the codebook, one byte each.

Gaps and indices are Huffman-coded by zlib (section 4), so any Python can read them. Decoding returns the dense float32
tensor, and allocates no more than the declared shape needs, even if a damaged file holds more.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simsearch.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_TENSOR = 1 << 28
"""Largest number of elements of a tensor that is decoded; no layer of our networks has nearly as many."""


class CompressedTensor(NamedTuple):
    """One compressed tensor; the module's docstring describes its arrays.

    shape: of the dense tensor. stored: the number of stored weights, fillers included.
    codebook: (2^bits,) float32. gaps, indices: Huffman-coded.
    """

    shape: tuple[int, ...]
    stored: int
    codebook: NDArray[np.float32]
    gaps: NDArray[np.uint8]
    indices: NDArray[np.uint8]


def compress_tensor(weights: NDArray[np.float32], bits: int) -> CompressedTensor:
    """Compresses a tensor: replaces its non-zero weights by 2^bits - 1 shared values.

    weights: of any shape; zeros count as pruned. bits: the number of bits of an index into the codebook, 1 to 8. Raises
    WeightsError for any other number of bits.
    """
    if not 1 <= bits <= 8:
        raise WeightsError(f"shared weights need indices of 1 to 8 bits, not {bits}")
    flat = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1)
    places = np.flatnonzero(flat)
    values = flat[places]
    centres = k_means(values, 2**bits - 1)
    codebook = np.concatenate([np.zeros(1, np.float32), centres])
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, values).astype(np.uint8) + np.uint8(1)
    steps = np.diff(places, prepend=-1) - 1  # number of zeros before each weight
    fillers = steps // 256  # a filler stands for 255 zeros and for itself, a stored zero
    ends = np.cumsum(fillers + 1) - 1
    stored = int(ends[-1]) + 1 if len(ends) else 0
    gaps, indices = np.full(stored, 255, np.uint8), np.zeros(stored, np.uint8)
    gaps[ends], indices[ends] = steps - fillers * 256, nearest
    return CompressedTensor(weights.shape, stored, codebook, _huffman(gaps), _huffman(indices))


def decompress_tensor(encoded: CompressedTensor) -> NDArray[np.float32]:
    """Returns the dense float32 tensor. Raises WeightsError if the arrays are damaged or do not fit the shape."""
    size = math.prod(encoded.shape)
    if not 0 <= encoded.stored <= size <= LARGEST_TENSOR:
        raise WeightsError(
            f"a compressed tensor declares {encoded.stored:,} stored weights for the {size:,} elements of its shape "
            f"{encoded.shape}; at most one weight per element and {LARGEST_TENSOR:,} elements are permitted"
        )
    flat = np.zeros(size, np.float32)
    gaps, indices = (_unpack(stream, encoded.stored) for stream in (encoded.gaps, encoded.indices))
    if encoded.stored:
        places = np.cumsum(gaps, dtype=np.int64) + np.arange(encoded.stored)
        if places[-1] >= size or int(indices.max()) >= len(encoded.codebook):
            raise WeightsError("a compressed tensor's weights fall outside its shape")
        flat[places] = encoded.codebook[indices]
    return flat.reshape(encoded.shape)


def k_means(values: NDArray[np.float32], k: int, rounds: int = 30) -> NDArray[np.float32]:
    """Returns the centres of one-dimensional k-means, (k,) float32, ascending.

    The initial centres are evenly spaced from the smallest value to the largest, so that some of them lie among the few
    large weights, which matter most (Han et al., section 3.2). If there are at most k distinct values (as after
    training with shared weights), these values are the centres. If there are fewer than k, the largest is repeated
    until there are k centres.
    """
    ordered = np.sort(values.astype(np.float64))
    if not len(ordered):
        return np.zeros(k, np.float32)
    distinct = ordered[np.concatenate([[True], np.diff(ordered) > 0])]
    if len(distinct) <= k:
        return np.pad(distinct, (0, k - len(distinct)), mode="edge").astype(np.float32)
    totals = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], k)
    for _ in range(rounds):
        edges = np.concatenate([[0], np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), [len(ordered)]])
        counts = np.diff(edges)
        sums = totals[edges[1:]] - totals[edges[:-1]]
        centres = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), centres))
    return centres.astype(np.float32)


def _huffman(stream: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Huffman-codes bytes with zlib, at the memory level that gives the shortest result.

    The memory level determines the length of zlib's blocks. Short blocks adapt to statistics that change along the
    tensor; long blocks need fewer bytes for code tables.
    """

    def coded(level: int) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, 15, level, zlib.Z_HUFFMAN_ONLY)
        return packer.compress(stream.tobytes()) + packer.flush()

    return np.frombuffer(min((coded(level) for level in (9, 8, 7, 6, 5)), key=len), np.uint8)


def _unpack(stream: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Decodes what `_huffman` returned. Raises WeightsError if it is damaged or does not give `length` bytes."""
    try:
        data = zlib.decompressobj().decompress(stream.tobytes(), length + 1)
    except zlib.error as error:
        raise WeightsError(f"a compressed tensor cannot be unpacked: {error}") from error
    if len(data) != length:
        raise WeightsError(f"a compressed tensor holds {len(data)} weights where {length} are declared")
    return np.frombuffer(data, np.uint8)
