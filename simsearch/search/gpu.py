"""Exact search over features in the memory of one or several GPUs, with torch.

The rows are kept as float16 in chunks, which are assigned to the devices in turn. A search computes the squared
distances |q|^2 - 2 q.x + |x|^2 by a matrix product for each block of rows, and keeps the nearest rows of each device.
Rows that are not permitted get an infinite distance.
Queries by picture have values that float16 can hold exactly. If all queries of a search have such values and the
devices sum products in float32, the queries are multiplied directly with the float16 rows. Otherwise, blocks of rows
are decoded to float32 first. The results are candidates with a bound on the rounding error of their distances. As after
a scan on the CPU, `simsearch.search.exact` then computes these distances in float64.

Shape letters: nq queries, D dimension, n rows, width candidates.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simsearch.common.lazy import LazyModule
from simsearch.models.torch.cuda_graphs import empty_cache

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from simsearch.models.torch import runtime
else:
    torch = LazyModule("torch")
    runtime = LazyModule("simsearch.models.torch.runtime")

CHUNK = 65_536
"""Number of rows in a chunk: 512 MiB at D = 4096. When rows are added, full chunks stay in GPU memory."""

BLOCK = 16_384
"""Number of rows that are decoded to float32 at once."""

QUERIES = 512
"""Number of queries that are searched at once."""

SPARE = 1 << 30
"""Number of bytes of each device's memory that are left free, for blocks, results and the model."""

ROUNDING, ROUNDING_HALF = 2.5e-5, 1e-4
"""Largest rounding errors of squared distances that are computed by float32 products and by float16 products.

They are relative to (|q| + |x|)^2. The second is larger, since the matrix units of a GPU truncate sums of float16
products instead of rounding them.
"""


class _Chunk(NamedTuple):
    """The rows `first` to `last` - 1 on a device.

    features: (n, D) float16. lengths: (n,) float32, the squared lengths of the rows.
    """

    first: int
    last: int
    features: Any
    lengths: Any


class GpuIndex:
    """Exact search over the first `rows` rows, in the memory of `devices`. Safe for many threads.

    read: takes (n,) rows and returns their features, (n, D) float16.
    before: an index over fewer of the same rows. Its full chunks are reused if it has the same devices.
    """

    def __init__(
        self,
        read: Callable[[NDArray[np.int64]], NDArray[np.float16]],
        rows: int,
        devices: Sequence[str],
        before: GpuIndex | None = None,
    ) -> None:
        self.rows, self.devices = rows, tuple(devices)
        self._masked: tuple[Any, list[Any]] = (None, [])
        self._lock = threading.Lock()
        kept: list[_Chunk] = before._chunks if before is not None and before.devices == self.devices else []
        self._chunks: list[_Chunk] = [
            chunk for chunk in kept if chunk.last - chunk.first == CHUNK and chunk.last <= rows
        ]
        for number in range(len(self._chunks), -(-rows // CHUNK)):
            first, last = number * CHUNK, min(rows, (number + 1) * CHUNK)
            features = torch.from_numpy(read(np.arange(first, last))).to(self.devices[number % len(self.devices)])
            lengths = [features[n : n + BLOCK].float().square_().sum(1) for n in range(0, last - first, BLOCK)]
            self._chunks.append(_Chunk(first, last, features, torch.cat(lengths)))
        self._half_products = bool(self._chunks) and all(map(_multiplies_half, self._chunks[: len(self.devices)]))

    def scan(
        self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]] | None:
        """Finds the `width` permitted rows nearest to each of (nq, D) queries, by float32 arithmetic.

        Returns three arrays: squared distances, ascending, (nq, width); their rows, (nq, width); and the largest
        rounding error of each query's distances, (nq,). Missing rows have the distance inf and the row -1. Returns None
        if the devices have too little memory left.
        permitted: the rows that may be returned; None for all.
        """
        try:
            parts = [self._scan(queries[n : n + QUERIES], width, permitted) for n in range(0, len(queries), QUERIES)]
        except torch.OutOfMemoryError:
            return None
        distances, rows, slack = (np.concatenate([part[n] for part in parts]) for n in range(3))
        return distances, rows, slack

    def _scan(
        self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        masks = self._masks(permitted)
        best: dict[str, tuple[Any, Any]] = {}
        largest: list[Any] = []
        with torch.inference_mode(), runtime.full_precision(torch.device(self.devices[0])):
            on_host = torch.from_numpy(queries)
            in_half = self._half_products and bool((on_host.half() == on_host).all())
            copies = {device: (on_host.half() if in_half else on_host).to(device) for device in self.devices}
            own = {device: copy.float().square().sum(1, keepdim=True) for device, copy in copies.items()}
            for number, chunk in enumerate(self._chunks):  # no step waits for its device: they work in parallel
                device = self.devices[number % len(self.devices)]
                step = chunk.last - chunk.first if in_half else BLOCK
                for start in range(0, chunk.last - chunk.first, step):
                    lengths = chunk.lengths[start : start + step]
                    features = chunk.features[start : start + step]
                    if in_half:
                        squared = torch.mm(copies[device], features.T, out_dtype=torch.float32)  # (nq, n)
                    else:
                        squared = copies[device] @ features.float().T
                    squared.mul_(-2).add_(own[device]).add_(lengths).nan_to_num_(torch.inf, torch.inf, torch.inf)
                    if masks is not None:
                        squared.masked_fill_(~masks[number][start : start + step], torch.inf)
                    near, places = squared.topk(min(width, squared.shape[1]), largest=False)
                    rows = places + (chunk.first + start)
                    if device in best:
                        near, rows = torch.cat([best[device][0], near], 1), torch.cat([best[device][1], rows], 1)
                        near, order = near.topk(min(width, near.shape[1]), largest=False)
                        rows = rows.gather(1, order)
                    best[device] = near, rows
                largest.append(chunk.lengths.max())
            near = torch.cat([pair[0].cpu() for pair in best.values()], 1)
            rows = torch.cat([pair[1].cpu() for pair in best.values()], 1)
            near, order = near.topk(min(width, near.shape[1]), largest=False)
            distances, found = near.numpy(), rows.gather(1, order).numpy()
            farthest = max(float(length) for length in largest)
        with np.errstate(over="ignore"):
            lengths = np.sqrt(np.einsum("nd,nd->n", queries, queries).astype(np.float64))
            slack = (ROUNDING_HALF if in_half else ROUNDING) * (lengths + np.sqrt(farthest)) ** 2
        return distances, np.where(np.isfinite(distances), found, -1), slack

    def _masks(self, permitted: NDArray[np.int64] | None) -> list[Any] | None:
        """Returns a mask of the permitted rows for each chunk, on the chunk's device; None if all are permitted."""
        if permitted is None:
            return None
        with self._lock:
            known, masks = self._masked
            if known is not permitted:
                mask = np.zeros(self.rows, bool)
                mask[permitted] = True
                masks = [torch.from_numpy(mask[c.first : c.last]).to(c.lengths.device) for c in self._chunks]
                self._masked = permitted, masks
            return masks


def _multiplies_half(chunk: _Chunk) -> bool:
    """Returns True if the device multiplies float16 rows with accurate float32 results; tries it with some rows."""
    x = chunk.features[:64]
    try:
        found = torch.mm(x, x.T, out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # out_dtype needs a GPU and torch 2.8 or later
        return False
    errors = (found - x.float() @ x.float().T).abs()
    lengths = chunk.lengths[:64].sqrt()
    return bool((errors <= ROUNDING_HALF / 2 * (lengths[:, None] + lengths).square()).all())


def load(
    read: Callable[[NDArray[np.int64]], NDArray[np.float16]], rows: int, devices: Sequence[str], before: GpuIndex | None
) -> GpuIndex | None:
    """Loads the rows into the devices' memory; returns None if the memory turns out to be too small.

    read, before: as for `GpuIndex`.
    """
    with contextlib.suppress(torch.OutOfMemoryError):
        return GpuIndex(read, rows, devices, before)
    empty_cache()
    return None


def devices_for(device: str, rows: int, dimension: int) -> list[str]:
    """Returns the names of the GPUs among which to divide the rows.

    Returns an empty list if there is no GPU, or if the rows do not fit.
    device: "cuda" for all GPUs, or the name of a single GPU, such as "cuda:0".
    """
    if not torch.cuda.is_available():
        return []
    names = [device] if ":" in device else [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    chunks = -(-rows // CHUNK)
    empty_cache()  # else memory that torch has cached counts as used
    each = -(-chunks // len(names)) * min(CHUNK, rows) * (2 * dimension + 4)
    return names if all(torch.cuda.mem_get_info(name)[0] > each + SPARE for name in names) else []
