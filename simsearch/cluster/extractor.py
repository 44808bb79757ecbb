"""Collects the results of a build from the workers of a cluster, in the same order as a local build has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from simsearch.cluster import work as cluster_work
from simsearch.cluster.work import WorkFolder, WorkInfo, WorkItem
from simsearch.errors import UnavailableError
from simsearch.images.sources.remote import addresses, permission
from simsearch.indexing.load import LoadedImage
from simsearch.storage.derived import WORK_FOLDER

if TYPE_CHECKING:
    from collections.abc import Container

    from simsearch.images.sources.base import Entry
    from simsearch.indexing.plan import Plan
    from simsearch.storage.index import Index
    from simsearch.storage.model import IndexModel
    from simsearch.storage.reader import Item

Key = tuple["Plan", "Entry", "Item | None"]
Run = Callable[[WorkFolder, Sequence[int]], Iterator[int]]
"""Computes chunks and yields their numbers in the given order, each number when the chunk's results are written."""


class ClusterExtractor:
    """The `BuildOptions.extractor` that computes the features of a build's images in other processes.

    run: a function that computes chunks, which are parts of the list of images; see `Run` and `ray.on_ray`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.folder: Path | None = None

    def groups(
        self, index: Index, model: IndexModel, keys: Sequence[Key], known: Container[bytes], batch_size: int
    ) -> Iterator[list[tuple[Key, LoadedImage]]]:
        """Yields the results of all images in their order, one chunk at a time.

        For the parameters, see `simsearch.indexing.options.Extractor.groups`.
        Raises UnavailableError if the results of a chunk cannot be read.
        """
        index.check_in_place()  # workers find the work by its path
        self.folder = index.path.absolute() / "derived" / WORK_FOLDER
        wanted = {_place(plan, entry): (plan, entry, known_item) for plan, entry, known_item in keys}
        work = WorkFolder.open(self.folder)
        if work is not None and _belongs(work.info, index) and _may_be_read(work.info):
            yield from self._results(work, wanted, known)
        if wanted:  # all images, or those that are new since the work was written
            yield from self._results(self._create_work(index, model.name, wanted, batch_size), wanted, known)

    def finished(self) -> None:
        """Deletes the folder with the work; called when all results are committed."""
        if self.folder is not None:
            cluster_work.discard(self.folder)

    def _create_work(
        self, index: Index, model: str, wanted: dict[tuple[str, str, str, int, int], Key], batch_size: int
    ) -> WorkFolder:
        numbers: dict[tuple[str, str], int] = {}
        items = [WorkItem(numbers.setdefault((kind, root), len(numbers)), *rest) for kind, root, *rest in wanted]  # type: ignore[arg-type]
        assert self.folder is not None
        meta = index.meta
        return WorkFolder.create(
            self.folder, model, meta.weights_sha256, list(numbers), items, batch_size, index.precision, meta.descriptor
        )

    def _results(
        self, work: WorkFolder, wanted: dict[tuple[str, str, str, int, int], Key], known: Container[bytes]
    ) -> Iterator[list[tuple[Key, LoadedImage]]]:
        """Yields the results of the wanted images that `work` lists, and removes these images from `wanted`.

        wanted: a dict from (kind of source, root of source, path, size, stamp) to the key of the image.
        known: the SHA-256 of the files for which the index has features.
        """
        items, sources = work.items(), work.info.sources
        places = [
            (sources[item.source][0], sources[item.source][1], item.path, item.size, item.stamp) for item in items
        ]
        needed = sorted({n // work.info.chunk_size for n, place in enumerate(places) if place in wanted})
        for chunk in self.run(work, needed) if needed else ():
            results = work.read(chunk)
            if results is None:
                raise UnavailableError(
                    f"chunk {chunk} of the work was computed, but {work.path(chunk)} cannot be read",
                    hint="index and sources must be at the same paths on all nodes",
                )
            first, seen = chunk * work.info.chunk_size, set[bytes]()
            group = []
            for place, result in zip(places[first : first + len(results)], results, strict=True):
                key = wanted.get(place)
                if key is None:
                    continue
                known_content = result.digest in known or result.digest in seen
                if result.features is None and result.problem is None and not known_content:
                    continue  # has no features as a copy of an image that is now gone; the next work computes them
                del wanted[place]
                if known_content:  # as in a local build, the features of the first image with the content are kept
                    result = replace(result, features=None)
                seen.add(result.digest)
                group.append((key, result))
            yield group


def _belongs(info: WorkInfo, index: Index) -> bool:
    """Returns True if the features of interrupted work fit the index: same weights, precision and descriptor."""
    meta = index.meta
    ours = meta.weights_sha256, index.precision, meta.descriptor
    return (info.weights_sha256, info.precision, info.descriptor) == ours


def _may_be_read(info: WorkInfo) -> bool:
    """Returns True if the user permits reading all remote sources that `info` lists.

    This list is not trusted, because the work folder may have come with an index that somebody else
    made, and reading a remote source uses the user's credentials.
    """
    return all(permission.is_granted(root) for kind, root in info.sources if addresses.is_kind(kind))


def _place(plan: Plan, entry: Entry) -> tuple[str, str, str, int, int]:
    return plan.source.kind, plan.source.root, entry.path, entry.size, entry.stamp
