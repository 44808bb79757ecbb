"""Searching an index as it is now: what one generation of it holds, and what is open already used again."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simsearch.errors import IndexDamagedError
from simsearch.models.onnx import runtime
from simsearch.search import binary_codes, gpu
from simsearch.search.exact import FlatIndex

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.images.sources.resolve import Sources
    from simsearch.search.ann import AnnIndex
    from simsearch.storage.index import Index
    from simsearch.storage.reader import Reader


@dataclass(frozen=True)
class Snapshot:
    """What one generation of the index holds. live: the rows that items own, or None if all do."""

    generation: int
    flat: FlatIndex
    live: NDArray[np.int64] | None
    sources: Sources


class Snapshots:
    """The snapshots of an index for searches on one device: "cpu", "auto" (which scans on the CPU), "cuda", "cuda:N".

    Safe for many threads.
    """

    def __init__(self, index: Index, device: str = "cpu") -> None:
        self.index, self.device = index, device
        self._lock = threading.RLock()
        self._last: Snapshot | None = None
        self._structure: tuple[Any, AnnIndex | None] = (None, None)

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        """One snapshot of the database, and the feature files that belong to it."""
        return self.index.reading()

    def current(self, reader: Reader) -> Snapshot:
        """The snapshot that belongs to the reader's. Raises DeviceError where a device was named and is not there."""
        generation = reader.state("generation")
        with self._lock:
            last = self._last
            if last is not None and last.generation == generation:
                if self.index.meta.generation < generation:  # who has committed writes meta.json only afterwards
                    self.index.refresh()
                return last
            rows = reader.state("rows")
            live = None if reader.count() == rows else reader.rows()
            same = last is not None and last.flat.rows == rows and last.flat.shards is reader.shards
            flat = last.flat if last is not None and same else self._flat(reader, rows)
            self.index.refresh()
            self._last = Snapshot(generation, flat, live, self.index.sources(reader))
            return self._last

    def structure(self, reader: Reader) -> AnnIndex | None:
        """The search structure that `tune` chose, loaded on first use; None if there is none, or it is gone."""
        epoch = reader.epoch()  # of the feature files whose rows it shall name
        with self._lock:
            parameters = self.index.meta.search["parameters"]
            name = parameters.get("folder", "") if isinstance(parameters, dict) else ""
            key = name, epoch, parameters.get("encoded") if name else None
            if self._structure[0] != key:
                loaded = None
                with contextlib.suppress(IndexDamagedError, OSError):  # derived data: its loss costs time, not answers
                    loaded = binary_codes.load(self.index.derived / Path(name).name, parameters, epoch)
                self._structure = key, loaded
            return self._structure[1] if name else None

    def close(self) -> None:
        """Forgets what is open."""
        with self._lock:
            self._last, self._structure = None, (None, None)

    def _flat(self, reader: Reader, rows: int) -> FlatIndex:
        """All rows for exact search: on GPUs if such a device was named and they fit, else on the CPU."""
        if not self.device.startswith("cuda"):
            return FlatIndex(reader.shards, rows)
        runtime.choose_device(self.device)

        def devices(count: int) -> list[str]:
            return gpu.devices_for(self.device, count, self.index.meta.dimension)

        last = self._last
        before = last.flat if last is not None and last.flat.shards is reader.shards else None
        return FlatIndex(reader.shards, rows, devices, before)
