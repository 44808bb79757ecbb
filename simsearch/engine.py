"""An index, its model and a search in one object: the Python API.

engine = simsearch.open("indexes/photos")
for match in engine.search("cat.jpg", k=6, where={"label": "cat"}):
    print(match.path, match.distance)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Unpack

import numpy as np
from PIL import Image

from simsearch.common.lazy import LazyModule
from simsearch.common.machine import MemoryBudget
from simsearch.errors import SimsearchError, UsageError
from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import resolve
from simsearch.indexing.whole_index import WholeIndex
from simsearch.models import registry
from simsearch.search.index_search import IndexSearch
from simsearch.search.options import PictureOptions, SearchOptions
from simsearch.search.queries import Picture, as_vector, is_id
from simsearch.search.query_vectors import QueryResolver
from simsearch.search.results import Matches
from simsearch.search.similarity import Scale
from simsearch.search.snapshot import Snapshots
from simsearch.storage import item_files
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.filters import Where
from simsearch.storage.index import Index, on_disk
from simsearch.storage.lookup import Name, find_items
from simsearch.storage.meta import Meta
from simsearch.storage.model import IndexModel
from simsearch.storage.protocols import ApproximateSearch, ItemReader, OpenIndex, Searchable, SearchSnapshot
from simsearch.storage.reader import Item

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.indexing import ann_maintenance, sync
    from simsearch.indexing import options as indexing_options
    from simsearch.models.base import Model
else:  # imported on first use: a search does not need these modules
    indexing_options = LazyModule("simsearch.indexing.options")
    ann_maintenance = LazyModule("simsearch.indexing.ann_maintenance")
    sync = LazyModule("simsearch.indexing.sync")


class Engine(WholeIndex):
    """An open index. It can be used by many threads at once. Each search sees the latest commits of other processes.

    An engine keeps searching the index that it opened, even if another index has replaced it at the same path. Methods
    that change the index then raise IndexReplacedError.

    path: the folder of the index.
    model: a name, a path or a Model to use in place of the model that the index records. A Model whose precision
    differs from the index's precision is loaded again, by its name and with the index's precision.
    device: see `load.load_model`.
    roots: for each source that has moved, its recorded root as the key and its current location as the value. The key
    "" stands for the source of an index that has only one source.
    Raises IndexNotFoundError, IndexDamagedError, ModelMismatchError, UsageError, DeviceError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | Model | None = None,
        device: str = "auto",
        roots: Mapping[str, str] | None = None,
    ) -> None:
        registry.check_device(device)
        opened = Index(path, roots=roots)
        self._set(opened, Snapshots(opened, device), model, device)

    @classmethod
    def from_index(
        cls, opened: OpenIndex, snapshots: Searchable, model: str | Model | None = None, device: str = "auto"
    ) -> Engine:
        """Returns an engine for an open index. Closing the engine closes the index too.

        snapshots: gives access to the exact and approximate searches of the index. model, device: as for `Engine`.
        """
        engine = cls.__new__(cls)
        engine._set(opened, snapshots, model, device)
        return engine

    def _set(self, opened: OpenIndex, snapshots: Searchable, model: str | Model | None, device: str) -> None:
        self.opened_index, self.snapshots, self.device = opened, snapshots, device
        try:
            self.model = IndexModel(opened, model, device)
            self.recipe = Preprocessing.from_dict(self.meta.recipe)
            self._searches = IndexSearch(opened, snapshots, self.model, self.recipe)
        except BaseException:
            opened.close()
            raise

    def __repr__(self) -> str:
        try:
            size = f"{len(self):,} items"
        except SimsearchError:  # closed, or gone
            size = "closed"
        return f"<simsearch.Engine {str(self.path)!r}, {size}, model {self.meta.model}>"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files. The engine cannot be used afterwards."""
        self.snapshots.close()
        self.opened_index.close()

    @property
    def index(self) -> Index:
        """The index on disk. Raises UsageError for a Milvus collection, which cannot be changed in place."""
        return on_disk(self.opened_index)

    @property
    def path(self) -> Path:
        """The folder of the index; for a Milvus collection, its address."""
        return self.opened_index.path

    @property
    def meta(self) -> Meta:
        """The facts in the index's `meta.json`, as last read: model, features, numbers of items and rows, ..."""
        return self.opened_index.meta

    def reading(self) -> AbstractContextManager[Any]:
        """Returns a context manager that gives an `ItemReader`, which sees one snapshot of the index."""
        return self.opened_index.reading()

    def load_model(self, expected: int | None = None, threads: bool = False) -> Model:
        """Returns the index's model. The first call loads it.

        expected: the number of images to process; None if unknown. For few images, the model is loaded in a way that
        starts faster but computes more slowly; it is loaded again when many images are expected for the first time.
        threads: True if several threads will use the model.
        """
        return self.model.load(expected, threads)

    # -- searching

    def search(self, image: Picture, k: int = 6, **options: Unpack[PictureOptions]) -> Matches:
        """Returns the k items nearest to a picture, nearest first; equal distances are ordered by id.

        There are fewer than k matches only if fewer items meet the conditions.
        image: a path, encoded bytes, a binary file, a PIL image, or an (H, W, 3) uint8 array.

        Options, all by keyword (`options.PictureOptions`):
        where: conditions on items, {"label": "cat"} or ["year>2000", "path~*/2023/*"].
        max_distance: the largest distance of a match.
        min_similarity: the smallest similarity of a match, from 0 to 1.
        crop: (x, y, width, height), the part of the upright picture to search by, in pixels or in percent. x and y are
        counted from the picture's upper left corner: (0, "50%", "50%", "50%") is the lower left quarter.
        plus, minus: lists of more pictures or ids that matches should resemble (plus) or not resemble (minus). An entry
        can also be a pair (picture, weight).
        flip: True to also find items that look like the mirror image of the picture.
        no_self: True to leave out items whose file has the same content as the picture.
        dedup: True for only one match per group of near-identical items.
        exact: True to never search approximately.
        expand: the number of best matches whose features are averaged with the query's, for a second search.

        Raises ImageError if the picture cannot be read, UsageError for unusable options.
        """
        return self.search_many([image], k, **options)[0]

    def search_many(
        self, pictures: Sequence[Picture | int], k: int = 6, **options: Unpack[PictureOptions]
    ) -> list[Matches]:
        """Returns the matches of each picture. This is faster than calling `search` for each picture.

        pictures: pictures as in `search`, or ids of items. Options and errors: as in `search`.
        """
        return self._searches.by_pictures(pictures, k, options)

    def search_by_id(self, number: int, k: int = 6, **options: Unpack[PictureOptions]) -> Matches:
        """Returns the k other items nearest to the item with the id `number`. Raises ItemNotFoundError."""
        if not is_id(number):
            raise UsageError(f"{number!r} is not the id of an item")
        return self.search_many([int(number)], k, **options)[0]

    def search_by_vector(
        self, vector: NDArray[np.floating[Any]], k: int = 6, **options: Unpack[SearchOptions]
    ) -> Matches:
        """Returns the k items nearest to a (D,) feature vector. Options: the fields of `options.SearchOptions`."""
        query = as_vector(vector, self.meta.dimension)
        return self._searches.by_vectors(query[None, None], k, (), options)[0]

    def search_by_vectors(
        self,
        vectors: NDArray[np.float32],
        k: int = 6,
        *,
        without: Sequence[Sequence[int]] = (),
        **options: Unpack[SearchOptions],
    ) -> list[Matches]:
        """Returns the k items nearest to each query, for several queries at once.

        vectors: (n, D) float32, a feature vector for each query; or (n, v, D), v variants for each query. An item's
        distance to a query with variants is its distance to the nearest variant.
        without: for each query, the ids of items to leave out.
        """
        return self._searches.by_vectors(vectors, k, without, options)

    def neighbours(
        self, vectors: NDArray[np.float32], k: int = 6, *, where: Where | None = None, exact: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the ids and the distances of the k items nearest to each of (n, D) vectors: two arrays (n, k).

        Meant for programs that look items up themselves. If fewer than k items are found, the remaining ids are -1 and
        the remaining distances inf. where, exact: as in `search`.
        """
        return self._searches.neighbours(vectors, k, where, exact)

    def stored_features(self, key: int | bytes) -> NDArray[np.float32] | None:
        """Returns the stored (D,) features of an item. key: the item's id, or the SHA-256 of its file.

        Raises ItemNotFoundError for an unknown id; returns None for an unknown SHA-256.
        """
        return self._searches.stored_features(key)

    def query_resolver(
        self, *, serving: bool = False, max_pixels: int = decode.LARGEST_PIXELS, budget: MemoryBudget | None = None
    ) -> AbstractContextManager[QueryResolver]:
        """Returns a context manager that gives a `QueryResolver`, which turns pictures and ids into query vectors.

        The resolver sees one snapshot of the index.
        serving: True for a service. The model is then loaded in the way that is fastest for many images, and error
        messages contain no file names.
        max_pixels: pictures of more pixels are not decoded.
        budget: a memory limit for decoding that several resolvers share; None for a separate limit.
        """
        return self._searches.query_resolver(serving=serving, max_pixels=max_pixels, budget=budget)

    @property
    def scale(self) -> Scale:
        """The scale that converts distances into similarities: the two distances whose similarities are 0.5 and 0."""
        with self.reading() as reader:
            return self._searches.scale(reader)

    def snapshot(self, reader: ItemReader) -> SearchSnapshot:
        """Returns the features that `reader` sees, ready for searching."""
        return self.snapshots.current(reader)

    @property
    def structure(self) -> ApproximateSearch | None:
        """The approximate search, made by `tune` or by Milvus; None if there is none, or its files are damaged."""
        return self._searches.structure()

    @property
    def exact(self) -> bool:
        """True if every search is exact, because there is no usable `structure`."""
        return self.structure is None

    @property
    def complete(self) -> bool:
        """False for a Milvus collection while `push` has not finished copying an index into it; True otherwise."""
        return bool(getattr(self.opened_index, "complete", True))

    @property
    def shards(self) -> FeatureFiles:
        """The files of the stored features, as of the last commit. `reader.shards` has the files that a reader sees."""
        return self.index.feature_files

    def features(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Returns the features of pictures: (n, D) float32, rounded to float16 as in the index. Raises ImageError."""
        return self.model.features(pictures)

    # -- items

    def item(self, number: int) -> Item:
        """Returns the item with the id `number`. Raises ItemNotFoundError."""
        with self.reading() as reader:
            found: Item = reader.item(number)
            return found

    def paths(self, items: Iterable[Item]) -> list[str]:
        """Returns the full path of each item: the location of the item's source, then the item's path in the source."""
        return item_files.paths(self.opened_index, items)

    def read(self, number: int) -> bytes:
        """Returns the bytes of the image file of the item with the id `number`; raises the errors of `open_image`."""
        return item_files.read(self.opened_index, number)

    def open_image(self, number: int, *, decodes: bool = True, budget: MemoryBudget | None = None) -> IO[bytes]:
        """Opens the image file of the item with the id `number` for reading. The caller closes the file.

        decodes: True to check that the image can be decoded. budget: a memory limit for decoding, which several calls
        can share; None for no limit. Raises ItemNotFoundError, and ImageError if the file is gone, has
        changed since it was indexed, or is outside its source.
        """
        return item_files.open_image(self.opened_index, number, decodes=decodes, budget=budget)

    def thumbnail(self, picture: Picture | int, shorter_side: int = 256) -> Image.Image | None:
        """Returns a picture, given as in `search` or by an item's id, as an RGB image; None if it cannot be read.

        shorter_side: a larger picture may be scaled down, but its shorter side keeps at least this number of pixels.
        """
        return item_files.thumbnail(self.opened_index, picture, shorter_side)

    def info(self) -> dict[str, Any]:
        """Returns facts about the index and its contents, as plain JSON values."""
        structure = self.structure
        values = self.opened_index.info()
        with self.reading() as reader:
            exact = self.snapshots.exact_facts(reader)
        search = ann_maintenance.describe(values["search"], self.path, structure)
        return {**values, "search": {**search, "exact": exact}}

    # -- changing

    def add(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        **options: Unpack[indexing_options.AddOptions],
    ) -> indexing_options.Summary:
        """Adds one or more images, folders or other sources to the index, and returns a summary of the changes.

        Nothing is removed. Options: those of `AddOptions`. Raises UsageError, IndexLockedError, IndexReplacedError.
        """
        chosen = indexing_options.BuildOptions.from_keywords({**options, "prune": False})
        found = [resolve.resolve(path) for path in resolve.as_names(paths)]
        return sync.sync(self.index, self.model, found, chosen)

    def find(self, names: Name | Iterable[Name]) -> list[Item]:
        """Returns the items with the given ids (7 or "id:7"), paths, folders or globs, sorted by id.

        Raises UsageError for a name that matches no item.
        """
        with self.index.reading() as reader:
            return find_items(names, reader, self.opened_index.sources(reader))

    def remove(self, names: Name | Iterable[Name]) -> int:
        """Removes the items that `find` finds, and returns their number. Image files are not touched."""
        return sync.remove(self.index, self.find(names))

    def relocate(self, roots: Mapping[str, str]) -> None:
        """Records new locations of sources in the index. roots: see `Engine`. Raises UsageError."""
        self.index.relocate(roots)
