"""A worker of a build on a cluster: computes the features of images on its machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from simsearch.cluster import work as cluster_work
from simsearch.errors import ModelMismatchError
from simsearch.images.sources import resolve
from simsearch.indexing import prefetch
from simsearch.indexing.extract import extract, usual_batch
from simsearch.models import load, registry
from simsearch.storage import components
from simsearch.storage.folder import Folder
from simsearch.storage.meta import Meta

if TYPE_CHECKING:
    from simsearch.images.sources.base import Source


class Worker:
    """Computes chunks of a work folder in a process of its own, which loads the model once.

    folder: the path of the work folder. device: see `load.load_model`. threads: number of decoding threads;
    None for the default.
    """

    def __init__(self, folder: str, device: str, threads: int | None) -> None:
        self.folder, self.device, self.threads = folder, device, threads
        self.sources: dict[int, Source] = {}

    def ready(self) -> str:
        """Opens the work folder, loads the model, and returns the name of the machine.

        Raises UsageError if the folder cannot be opened, ModelMismatchError if the index was made with other weights.
        """
        self.work = cluster_work.open_on_worker(self.folder)
        info = self.work.info
        self.items = self.work.items()
        name = registry.current_name(info.model)
        model = load.load_model(name, self.device, images=info.total, threads=True, precision=info.precision)
        same = info.weights_sha256 in (model.weights_sha256, registry.sha256_before_ranges(name))
        if not same:
            raise ModelMismatchError(
                f"{info.model} has weights {model.weights_sha256} on {os.uname().nodename},"
                f" but the index was made with weights {info.weights_sha256}"
            )
        self.model = model
        if info.descriptor:
            index = Folder.at(self.work.folder.parent.parent)
            self.model = components.apply(model, index, Meta.read(index))
        return os.uname().nodename

    def compute(self, chunk: int) -> int:
        """Computes a chunk and writes its results. Returns the number of images that failed.

        If the chunk has results already, they are read and nothing is computed.
        """
        results = self.work.read(chunk)
        if results is None:
            items = self.work.chunk_items(self.items, chunk)
            tasks = prefetch.tasks(
                (None, self._source(item.source), item.path, item.size, item.stamp) for item in items
            )
            size = self.work.info.batch_size or usual_batch(self.model)
            groups = extract(self.model, tasks, batch_size=size, workers=self.threads)
            results = [result for group in groups for _, result in group]
            self.work.write(chunk, results)
        return sum(result.problem is not None for result in results)

    def _source(self, number: int) -> Source:
        if number not in self.sources:  # the driver has checked that remote ones may be read
            self.sources[number] = resolve.reopen(*self.work.info.sources[number], checked=True)
        return self.sources[number]
