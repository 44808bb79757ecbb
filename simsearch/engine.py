"""The Python API: open an index, search it, change it.

engine = simsearch.open("indexes/photos")
for match in engine.search("cat.jpg", k=6, where={"label": "cat"}):
    print(match.path, match.distance)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
from PIL import Image

from simsearch.common.float16 import to_float16
from simsearch.errors import ImageError, SimsearchError, UsageError
from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import resolve
from simsearch.images.sources.resolve import Sources
from simsearch.indexing import ann_maintenance, sync
from simsearch.indexing import options as indexing_options
from simsearch.indexing.options import Summary
from simsearch.models import registry
from simsearch.search.options import PictureOptions, SearchOptions, check_names, split
from simsearch.search.queries import Picture, as_list, as_numbers, as_vector, is_id
from simsearch.search.query_vectors import QueryResolver
from simsearch.search.results import Matches
from simsearch.search.searcher import Search
from simsearch.search.snapshot import Snapshots
from simsearch.storage import lookup
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.filters import Where
from simsearch.storage.index import Index
from simsearch.storage.lookup import SINGLE, Name
from simsearch.storage.meta import Meta
from simsearch.storage.model import IndexModel
from simsearch.storage.protocols import ApproximateSearch, ItemReader, OpenIndex, Searchable, SearchSnapshot
from simsearch.storage.reader import Item, SourceRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models.base import Model


class AddOptions(TypedDict, total=False):
    """The options of `Engine.add`; see `options.BuildOptions`."""

    exclude: tuple[str, ...]
    labels: Literal["auto", "folder", "none"]
    batch_size: int | None
    workers: int | None
    progress: Callable[[int, int], None]


class Engine:
    """An open index. Safe for many threads; what other processes commit is seen by the next search.

    It answers from the index that it opened, whole, also when another has taken its place at the path; a change then
    raises IndexReplacedError.

    path: the index. model: its model, where the recorded one is not to be loaded by name: a name, a path or a Model
    (which is loaded anew where it computes in another precision than the index).
    device: see `load.load_model`. roots: where sources are now, by their recorded root; "" stands for the only one.
    Raises IndexNotFoundError, IndexDamagedError, ModelMismatchError.
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
    def over(
        cls, opened: OpenIndex, snapshots: Searchable, model: str | Model | None = None, device: str = "auto"
    ) -> Engine:
        """An engine for an index that is open already, which it closes in the end."""
        engine = cls.__new__(cls)
        engine._set(opened, snapshots, model, device)
        return engine

    def _set(self, opened: OpenIndex, snapshots: Searchable, model: str | Model | None, device: str) -> None:
        self.opened_index, self.snapshots, self.device = opened, snapshots, device
        try:
            self.model = IndexModel(opened, model, device)
            self.recipe = Preprocessing.from_dict(self.meta.recipe)
        except BaseException:
            opened.close()
            raise

    # -- opening and closing

    def __repr__(self) -> str:
        return f"<simsearch.Engine {str(self.path)!r}, model {self.meta.model}>"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of files. The engine cannot be used afterwards."""
        self.snapshots.close()
        self.opened_index.close()

    @property
    def index(self) -> Index:
        """The index on disk. Raises UsageError for a collection."""
        if isinstance(self.opened_index, Index):
            return self.opened_index
        raise UsageError(
            f"{self.path} is not changed in place", hint="change the index that it was pushed from, and push again"
        )

    @property
    def path(self) -> Path:
        """The folder of the index."""
        path: Path = self.opened_index.path
        return path

    @property
    def meta(self) -> Meta:
        """What `meta.json` says, as last read."""
        return self.opened_index.meta

    @property
    def roots(self) -> Mapping[str, str]:
        """Where sources are now, by their recorded root, as given when the index was opened."""
        return self.opened_index.roots

    @property
    def store(self) -> OpenIndex:
        """What `reading` opens a snapshot of."""
        return self.opened_index

    def reading(self) -> AbstractContextManager[Any]:
        """An `ItemReader` of one snapshot of the index."""
        return self.opened_index.reading()

    @property
    def identity(self) -> tuple[int, ...]:
        """What tells the open index from any other."""
        return self.opened_index.identity

    def identity_now(self) -> tuple[int, ...] | None:
        """The identity of the index that is now at the path; None where there is none, or half of one."""
        return self.opened_index.identity_now()

    def __len__(self) -> int:
        """The number of items."""
        with self.reading() as reader:
            return int(reader.count())

    def load_model(self, expected: int | None = None, threads: bool = False) -> Model:
        """The index's model, loaded on first use.

        expected: how many images are about to be computed. threads: by several threads at once.
        """
        return self.model.load(expected, threads)

    # -- searching

    def search(self, image: Picture, k: int = 6, **options: Unpack[PictureOptions]) -> Matches:
        """The k items nearest to a picture, nearest first; ties go to the lower id.

        options, all by keyword (`options.PictureOptions`):
        where: conditions on items, {"label": "cat"} or ["year>2000", "path~*/2023/*"].
        max_distance: the farthest match to report. crop: (x, y, width, height) of the upright query, in pixels.
        plus, minus: more pictures or ids to be like and unlike, alone or as (picture, weight).
        flip: a mirrored picture counts as the same.
        dedup: one match per group of near-identical ones. exact: never search approximately. expand: search again by
        the mean of the query and so many of its first matches.

        Fewer than k only if the index holds fewer that meet the conditions. Raises ImageError if the picture cannot
        be read, UsageError for unusable options.
        """
        return self.search_many([image], k, **options)[0]

    def search_many(
        self, pictures: Sequence[Picture | int], k: int = 6, **options: Unpack[PictureOptions]
    ) -> list[Matches]:
        """`search` for several pictures at once, which is faster than one by one. An int is an item's id."""
        chosen, changes = split(options)
        with self.query_resolver() as resolver:
            queries = resolver.prepare_many(as_list(pictures), **changes)
            resolved = resolver.resolve(queries)
            for vectors in resolved:
                if isinstance(vectors, SimsearchError):
                    raise vectors
            reader = resolver.reader
            left_out = [[reader.item(number).row for number in query.left_out] for query in queries]
            shape = len(queries), queries[0].variants if queries else 1, self.meta.dimension
            return self._search(reader).answers(np.array(resolved, np.float32).reshape(shape), k, left_out, chosen)

    def search_by_id(self, number: int, k: int = 6, **options: Unpack[PictureOptions]) -> Matches:
        """The k items nearest to item `number`, itself left out. Raises ItemNotFoundError."""
        if not is_id(number):
            raise UsageError(f"{number!r} is not the id of an item")
        return self.search_many([int(number)], k, **options)[0]

    def search_by_vector(
        self, vector: NDArray[np.floating[Any]], k: int = 6, **options: Unpack[SearchOptions]
    ) -> Matches:
        """The k items nearest to a (D,) feature vector."""
        check_names(options, by_vector=True)
        query = as_vector(vector, self.meta.dimension)
        with self.store.reading() as reader:
            return self._search(reader).answers(query[None, None], k, [[]], options)[0]

    def search_by_vectors(
        self,
        vectors: NDArray[np.float32],
        k: int = 6,
        *,
        without: Sequence[Sequence[int]] = (),
        **options: Unpack[SearchOptions],
    ) -> list[Matches]:
        """The k items nearest to each of (n, D) float32 features in one scan; `without`: for each, ids left out.

        (n, v, D) are n queries in v variants each, of which the nearest counts.
        """
        check_names(options, by_vector=True)
        vectors = as_numbers(vectors, "the vectors are")
        flat = self._queries(vectors.reshape(-1, vectors.shape[-1]) if vectors.ndim == 3 else vectors)
        variants = flat.reshape(len(vectors), vectors.shape[1] if vectors.ndim == 3 else 1, flat.shape[1])
        if len(without) not in {0, len(vectors)}:
            raise UsageError(f"ids are to be left out of {len(without)} searches, but there are {len(vectors)} vectors")
        with self.store.reading() as reader:
            named = [[reader.item(number).row for number in each] for each in without] or [[] for _ in vectors]
            return self._search(reader).answers(variants, k, named, options)

    def neighbours(
        self, vectors: NDArray[np.float32], k: int = 6, *, where: Where | None = None, exact: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The ids of the k items nearest to each of (n, D) features and their distances, both (n, k), nearest first.

        The bare search, for programs that look items up themselves. Where there are fewer than k, -1 and inf follow.
        """
        queries = self._queries(vectors)
        with self.store.reading() as reader:
            return self._search(reader).neighbours(queries, k, where, exact)

    def stored_features(self, what: int | bytes) -> NDArray[np.float32] | None:
        """The (D,) features that the index has of an item, by id, or of a file, by its SHA-256 or None."""
        with self.store.reading() as reader:
            row = reader.row_of(what) if isinstance(what, bytes) else reader.item(what).row
            return None if row is None else reader.shards.read(np.array([row]))[0].astype(np.float32)

    def _queries(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Checked (n, D) features. Raises UsageError."""
        vectors = as_numbers(vectors, "the vectors are")
        if vectors.ndim != 2 or vectors.shape[1] != self.meta.dimension:
            raise UsageError(f"the vectors have shape {vectors.shape}, the index {self.meta.dimension} dimensions")
        if not np.isfinite(vectors).all():
            raise UsageError("the vectors have values that are not finite")
        return np.ascontiguousarray(vectors)

    @contextlib.contextmanager
    def query_resolver(
        self, *, serving: bool = False, max_pixels: int = decode.LARGEST_PIXELS
    ) -> Iterator[QueryResolver]:
        """The means of making query vectors, over the index as it is now.

        serving: for a service, which computes with the model that is loaded for many images, and whose errors name no
        files. max_pixels: of the largest picture to decode.
        """
        compute = (lambda pixels: self.features_of_pixels(np.stack(pixels))) if serving else self.model.compute
        with self.store.reading() as reader:
            sources = self._current(reader).sources
            yield QueryResolver(
                reader,
                sources,
                self.recipe,
                self.meta.weights_sha256,
                compute,
                max_pixels=max_pixels,
                names_in_errors=not serving,
            )

    def features_of_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, S, S, 3) uint8 from `preprocessing.pixels` -> (n, D) features, rounded as the index keeps them."""
        return to_float16(self.load_model().features(pixels)).astype(np.float32)

    def _search(self, reader: ItemReader) -> Search:
        snapshot = self._current(reader)
        return Search(reader, snapshot, reader.shards, self.meta.distances, self.snapshots.structure(reader))

    def _current(self, reader: ItemReader) -> SearchSnapshot:
        return self.snapshots.current(reader)

    @property
    def structure(self) -> ApproximateSearch | None:
        """The search structure that `tune` chose; None if every search is exact."""
        with self.reading() as reader:
            self._current(reader)
            return self.snapshots.structure(reader)

    @property
    def exact(self) -> bool:
        """Whether every search is exact: no structure was chosen by `tune`, or its files are gone."""
        with self.reading() as reader:
            self._current(reader)
            return self.snapshots.structure(reader) is None

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing: always, but for a collection whose push has not ended."""
        return bool(getattr(self.opened_index, "complete", True))

    @property
    def shards(self) -> FeatureFiles:
        """The feature files as last committed. Those that belong to a reader are `reader.shards`."""
        return self.index.feature_files

    def features(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """The features (n, D) of pictures, rounded as the index keeps them."""
        return self.model.features(pictures)

    # -- items

    def item(self, number: int) -> Item:
        """The item with that id. Raises ItemNotFoundError."""
        with self.reading() as reader:
            found: Item = reader.item(number)
            return found

    def snapshot(self, reader: ItemReader) -> SearchSnapshot:
        """What the index holds, as of the reader's snapshot."""
        return self._current(reader)

    def opened(self, reader: ItemReader) -> Sources:
        """The index's sources by number, as of the reader's snapshot."""
        return self.opened_index.sources(reader)

    def root_of(self, row: SourceRow) -> str:
        """Where a source is: as given by `roots`, where it was, or where it would be had it moved with the index."""
        return self.opened_index.root_of(row)

    def paths(self, items: Iterable[Item]) -> list[str]:
        """Each item's path, as it opens."""
        with self.reading() as reader:
            opened = self.opened(reader)
            return [opened[item.source].display(item.path) for item in items]

    def read(self, number: int) -> bytes:
        """The bytes of an item's image file. Raises ItemNotFoundError, ImageError."""
        with self.reading() as reader:
            item = reader.item(number)
            return self.opened(reader)[item.source].read(item.path)

    def thumbnail(self, picture: Picture | int, shorter_side: int = 256) -> Image.Image | None:
        """A picture or item in RGB, for showing; None if it cannot be read (any more)."""
        try:
            data = self.read(int(picture)) if isinstance(picture, int | np.integer) else picture
            return resolve.open_picture(data, shorter_side).image
        except ImageError:
            return None

    def failures(self) -> list[tuple[str, str]]:
        """Path and reason of every image that could not be indexed."""
        with self.reading() as reader:
            opened = self.opened(reader)
            return [(opened[source].display(path), reason) for source, path, reason in reader.failures()]

    def info(self) -> dict[str, Any]:
        """What is in the index, as plain JSON values."""
        structure = self.structure
        facts = self.opened_index.info()
        return {**facts, "search": ann_maintenance.describe(facts["search"], self.path, structure)}

    # -- changing

    def add(
        self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], **options: Unpack[AddOptions]
    ) -> Summary:
        """Adds one or more images, folders or other sources to the index; nothing is removed from it."""
        found = [resolve.resolve(os.fspath(path)) for path in ([paths] if isinstance(paths, SINGLE) else paths)]
        return sync.sync(self.index, self.model, found, indexing_options.BuildOptions(prune=False, **options))

    def find(self, names: Name | Iterable[Name]) -> list[Item]:
        """The items that ids (7 or "id:7"), paths, folders or globs mean, by id. Raises UsageError for one in vain."""
        with self.index.reading() as reader:
            return lookup.find_items(names, reader, self.opened(reader))

    def remove(self, names: Name | Iterable[Name]) -> int:
        """Removes items by id, path, folder or glob, and returns how many. The images themselves are not touched."""
        return sync.remove(self.index, self.find(names))

    def relocate(self, roots: Mapping[str, str]) -> None:
        """Records where sources are now, for good; see `roots` of the class. Raises UsageError for an unknown one."""
        self.index.relocate(roots)
