"""Exact search over features that lie in the memory of one or several devices, by torch.

The rows are kept as float16 in chunks, dealt out to the devices in turn. A search takes |q|^2 - 2 q.x + |x|^2 by a
matrix product, block by block, and keeps the best of each device; rows that may not be found are at an infinite
distance. Queries that are float16 as well, as those from pictures are, are multiplied as they stand where the device
adds such products up in float32, so that a row is read once; otherwise blocks are decoded to float32 first. What comes
back are candidates with a bound on their rounding, which `simsearch.search.exact` settles in float64, as it does
after a scan on the CPU.

Letters: nq queries, D dimension, n rows, width candidates.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simsearch.models.torch.cuda_graphs import empty_cache

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 65_536
"""Rows of a chunk: 512 MiB at D = 4096. Whole chunks are kept when rows are added."""

BLOCK = 16_384
"""Rows decoded at once."""

QUERIES = 512
"""Queries answered at once."""

SPARE = 1 << 30
"""Bytes of each device that are left free for blocks, results, and the network."""

ROUNDING, ROUNDING_HALF = 2.5e-5, 1e-4
"""How much a product may err in float32, relative to the squared sum of both lengths; and of float16, whose sums the
matrix units of a GPU cut off rather than round."""


class _Chunk(NamedTuple):
    """Rows first to last - 1. features: (n, D) float16, lengths: (n,) float32, squared, both on a device."""

    first: int
    last: int
    features: Any
    lengths: Any


class GpuIndex:
    """The rows 0 to `rows` - 1 on `devices`. Safe for many threads.

    read: (n,) rows -> (n, D) float16. before: the same rows at an earlier time, whose whole chunks are taken over.
    """

    def __init__(
        self,
        read: Callable[[NDArray[np.int64]], NDArray[np.float16]],
        rows: int,
        devices: Sequence[str],
        before: GpuIndex | None = None,
    ) -> None:
        import torch

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
        self._halves = bool(self._chunks) and all(map(_multiplies, self._chunks[: len(self.devices)]))

    def scan(
        self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]] | None:
        """The `width` permitted rows nearest to each of (nq, D) queries, by float32 arithmetic.

        Squared distances (nq, width), ascending, inf where there are none, their rows, and by how much each query's may
        be wrong (nq,). None where the devices have no memory left for it.
        """
        import torch

        try:
            parts = [self._scan(queries[n : n + QUERIES], width, permitted) for n in range(0, len(queries), QUERIES)]
        except torch.OutOfMemoryError:
            return None
        distances, rows, slack = (np.concatenate([part[n] for part in parts]) for n in range(3))
        return distances, rows, slack

    def _scan(
        self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        import torch

        from simsearch.models.torch.runtime import full_precision

        masks = self._masks(permitted)
        best: dict[str, tuple[Any, Any]] = {}
        largest: list[Any] = []
        with torch.inference_mode(), full_precision(torch.device(self.devices[0])):
            asked = torch.from_numpy(queries)
            as_they_are = self._halves and bool((asked.half() == asked).all())
            copies = {device: (asked.half() if as_they_are else asked).to(device) for device in self.devices}
            own = {device: copy.float().square().sum(1, keepdim=True) for device, copy in copies.items()}
            for number, chunk in enumerate(self._chunks):  # devices work at the same time: nothing here waits for one
                device = self.devices[number % len(self.devices)]
                step = chunk.last - chunk.first if as_they_are else BLOCK
                for start in range(0, chunk.last - chunk.first, step):
                    lengths = chunk.lengths[start : start + step]
                    features = chunk.features[start : start + step]
                    if as_they_are:
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
            slack = (ROUNDING_HALF if as_they_are else ROUNDING) * (lengths + np.sqrt(farthest)) ** 2
        return distances, np.where(np.isfinite(distances), found, -1), slack

    def _masks(self, permitted: NDArray[np.int64] | None) -> list[Any] | None:
        """For each chunk, which of its rows may be found, on its device; None for all."""
        import torch

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


def _multiplies(chunk: _Chunk) -> bool:
    """Whether float16 rows can be multiplied with results in float32, tried on some of a chunk."""
    import torch

    x = chunk.features[:64]
    try:
        found = torch.mm(x, x.T, out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # only GPUs can, by torch 2.8 and later
        return False
    errors = (found - x.float() @ x.float().T).abs()
    lengths = chunk.lengths[:64].sqrt()
    return bool((errors <= ROUNDING_HALF / 2 * (lengths[:, None] + lengths).square()).all())


def load(
    read: Callable[[NDArray[np.int64]], NDArray[np.float16]], rows: int, devices: Sequence[str], before: GpuIndex | None
) -> GpuIndex | None:
    """The rows in the devices' memory; None if it does not hold them after all."""
    import torch

    with contextlib.suppress(torch.OutOfMemoryError):
        return GpuIndex(read, rows, devices, before)
    empty_cache()
    return None


def devices_for(device: str, rows: int, dimension: int) -> list[str]:
    """The GPUs that are to hold so many rows: the one named, or with "cuda" all; none where they do not fit."""
    import torch

    if not torch.cuda.is_available():
        return []
    names = [device] if ":" in device else [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    chunks = -(-rows // CHUNK)
    empty_cache()  # what torch keeps for itself counts as taken
    each = -(-chunks // len(names)) * min(CHUNK, rows) * (2 * dimension + 4)
    return names if all(torch.cuda.mem_get_info(name)[0] > each + SPARE for name in names) else []
