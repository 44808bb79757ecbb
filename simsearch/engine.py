"""The Python API: open an index, search it, change it.

engine = simsearch.open("indexes/photos")
for match in engine.search("cat.jpg", k=6, where={"label": "cat"}):
    print(match.path, match.distance)
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
from PIL import Image

from simsearch.cluster.milvus.address import is_address
from simsearch.common.float16 import to_float16
from simsearch.errors import ImageError, IndexDamagedError, ModelMismatchError, SimsearchError, UsageError
from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import resolve
from simsearch.images.sources.resolve import RecordedSource, Sources
from simsearch.indexing import ann_maintenance
from simsearch.models import load, registry
from simsearch.search import binary_codes
from simsearch.search.ann import AnnIndex
from simsearch.search.exact import FlatIndex
from simsearch.search.options import PictureOptions, SearchOptions, check_names, split
from simsearch.search.queries import Picture, as_list, as_numbers, as_vector
from simsearch.search.query_vectors import QueryResolver
from simsearch.search.results import Matches
from simsearch.search.searcher import Search
from simsearch.search.snapshot import Snapshot
from simsearch.storage import components, lookup
from simsearch.storage import roots as source_roots
from simsearch.storage.database import Database
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.filters import Where
from simsearch.storage.lookup import SINGLE, Name
from simsearch.storage.meta import Meta
from simsearch.storage.reader import Item, Reader, SourceRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.indexing.options import Summary
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
        if is_address(path):
            raise UsageError(f"{os.fspath(path)} is no index on disk",
                             hint="a collection is read by the verbs that search, and written by `push`")  # fmt: skip
        self.path = Path(path)
        registry.check_device(device)
        self.device, self.roots = device, dict(roots or {})
        self.meta = Meta.read(self.path)
        shards = FeatureFiles(self.path / "features", self.meta.dimension, self.meta.rows_per_shard)
        self.store = Database(self.path / "items.sqlite", shards=shards)
        self.recipe = Preprocessing.from_dict(self.meta.recipe)
        self._lock = threading.RLock()
        self._snapshot: Snapshot | None = None
        self._structure: tuple[Any, AnnIndex | None] = (None, None)
        self._adopt(model)
        with self.store.reading() as reader:
            reader.state("rows")
            source_roots.check(self.roots, reader.sources())

    def _adopt(self, model: str | Model | None) -> None:
        """Notes what to load the model by, or takes a loaded one. Raises ModelMismatchError."""
        self._model: Model | None = None
        self._model_name = self.meta.model
        if isinstance(model, str):
            self._model_name = model
            if not model.startswith(registry.TORCHVISION):
                self._check(model, registry.find_weights(model).sha256)
            elif model != self.meta.model:
                self._check(model, load.load_model(model, "cpu").weights_sha256)
        elif model is not None:
            self._check(model.name, model.weights_sha256)
            self._model_name = model.name
            if registry.precision_of(model.engine) == self.precision:
                self._model = components.descriptor_model_of(model, self.path, self.meta)

    # -- opening and closing

    def __repr__(self) -> str:
        return f"<simsearch.Engine {str(self.path)!r}, model {self.meta.model}>"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of files. The engine cannot be used afterwards."""
        self.store.close()
        with self._lock:
            snapshot, self._snapshot = self._snapshot, None
        for source in snapshot.sources.values() if snapshot else ():
            source.close()

    @staticmethod
    def identity(path: Path) -> tuple[int, int, int, int] | None:
        """What tells one index at a path from another; None where there is none, or half of one."""
        try:
            folder, store = os.stat(path), os.stat(path / "items.sqlite")
            os.stat(path / "meta.json")
        except OSError:
            return None
        return folder.st_dev, folder.st_ino, store.st_dev, store.st_ino

    def __len__(self) -> int:
        """The number of items."""
        with self.store.reading() as reader:
            return reader.count()

    def _check(self, name: str, digest: str) -> None:
        if digest != self.meta.weights_sha256 and registry.sha256_before_ranges(name) != self.meta.weights_sha256:
            raise ModelMismatchError(
                f"the index {self.path} was made by model {self.meta.model} with weights {self.meta.weights_sha256},"
                f" but {name} has weights {digest}",
                hint="use the model that made the index, or build another index with this one",
            )

    def load_model(self, expected: int | None = None, threads: bool = False) -> Model:
        """The index's model, loaded on first use.

        expected: how many images are about to be computed. threads: by several threads at once.
        """
        with self._lock:
            many = expected is None or expected > registry.FEW
            if self._model is None or (many and getattr(self._model, "few", False)):
                if self._model_name.endswith(".safetensors") and not Path(self._model_name).is_file():
                    raise UsageError(f"no weights file at {self._model_name}, where the index was made with it",
                                     hint="--model FILE says where it is now")  # fmt: skip
                model = load.load_model(
                    self._model_name, self.device, images=expected, threads=threads, precision=self.precision
                )
                self._check(model.name, model.weights_sha256)
                self._model = components.descriptor_model_of(model, self.path, self.meta)
            return self._model

    @property
    def precision(self) -> str:
        """What the index was made in and all else is computed in: float32 or int8, which are never mixed."""
        return registry.precision_of(self.meta.engine)

    @property
    def model_name(self) -> str:
        """What the model is loaded by."""
        return self._model_name

    @property
    def engine_used(self) -> str | None:
        """What the loaded model computes with; None while none is loaded."""
        return self._model.engine if self._model is not None else None

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
        if not isinstance(number, int | np.integer):
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
        self, vectors: NDArray[np.float32], k: int = 6, *,
        without: Sequence[Sequence[int]] = (), **options: Unpack[SearchOptions],
    ) -> list[Matches]:  # fmt: skip
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
        compute = (lambda pixels: self.features_of_pixels(np.stack(pixels))) if serving else self._compute
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

    def _search(self, reader: Reader) -> Search:
        snapshot = self._current(reader)
        return Search(reader, snapshot, reader.shards, self.meta.distances, self._approximate(reader.epoch()))

    def _approximate(self, epoch: int) -> AnnIndex | None:
        """The search structure that `tune` chose, loaded on first use; None if there is none, or it is gone.

        epoch: of the feature files whose rows it shall name.
        """
        with self._lock:
            parameters = self.meta.search["parameters"]
            name = parameters.get("folder", "") if isinstance(parameters, dict) else ""
            key = name, epoch, parameters.get("encoded") if name else None
            if self._structure[0] != key:
                loaded = None
                with contextlib.suppress(IndexDamagedError):  # derived data: what is gone costs time, not answers
                    loaded = binary_codes.load(self.path / "derived" / Path(name).name, parameters, epoch)
                self._structure = key, loaded
            return self._structure[1] if name else None

    @property
    def structure(self) -> AnnIndex | None:
        """The search structure that `tune` chose; None if every search is exact."""
        with self.store.reading() as reader:
            return self._approximate(reader.epoch())

    @property
    def exact(self) -> bool:
        """Whether every search is exact: no structure was chosen by `tune`, or its files are gone."""
        with self.store.reading() as reader:
            return self._approximate(reader.epoch()) is None

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing: always, but for a collection whose push has not ended."""
        return True

    @property
    def shards(self) -> FeatureFiles:
        """The feature files as last committed. Those that belong to a reader are `reader.shards`."""
        with self.store.reading() as reader:
            return reader.shards

    def features(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """The features (n, D) of pictures, rounded as the index keeps them."""
        decoded = (resolve.open_picture(picture, self.recipe.resize).image for picture in pictures)
        return self._compute([self.recipe.pixels(image) for image in decoded])

    def _compute(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(n, D) features of (S, S, 3) uint8 pixels each, with a model that is loaded for as many."""
        if not pixels:
            return np.zeros((0, self.meta.dimension), np.float32)
        model = self.load_model(expected=len(pixels))
        rows = [
            to_float16(model.features(np.stack(pixels[start : start + 32]))).astype(np.float32)
            for start in range(0, len(pixels), 32)
        ]
        return np.concatenate(rows)

    # -- items

    def item(self, number: int) -> Item:
        """The item with that id. Raises ItemNotFoundError."""
        with self.store.reading() as reader:
            return reader.item(number)

    def snapshot(self, reader: Reader) -> Snapshot:
        """What the index holds, as of the reader's snapshot."""
        return self._current(reader)

    def opened(self, reader: Reader) -> Sources:
        """The index's sources by number, as of the reader's snapshot."""
        return self._current(reader).sources

    def paths(self, items: Iterable[Item]) -> list[str]:
        """Each item's path, as it opens."""
        with self.store.reading() as reader:
            opened = self.opened(reader)
            return [opened[item.source].display(item.path) for item in items]

    def read(self, number: int) -> bytes:
        """The bytes of an item's image file. Raises ItemNotFoundError, ImageError."""
        with self.store.reading() as reader:
            item = reader.item(number)
            return self._current(reader).sources[item.source].read(item.path)

    def thumbnail(self, picture: Picture | int, shorter_side: int = 256) -> Image.Image | None:
        """A picture or item in RGB, for showing; None if it cannot be read (any more)."""
        try:
            data = self.read(int(picture)) if isinstance(picture, int | np.integer) else picture
            return resolve.open_picture(data, shorter_side).image
        except ImageError:
            return None

    def failures(self) -> list[tuple[str, str]]:
        """Path and reason of every image that could not be indexed."""
        with self.store.reading() as reader:
            opened = self.opened(reader)
            return [(opened[source].display(path), reason) for source, path, reason in reader.failures()]

    def info(self) -> dict[str, Any]:
        """What is in the index, as plain JSON values."""
        with self.store.reading() as reader:
            opened = self.opened(reader)
            counts = reader.counts()
            meta = self.meta
            return {
                "path": os.fspath(self.path), "items": reader.count(), "failures": reader.failure_count(),
                "labels": reader.label_count(), "model": meta.model, "weights_sha256": meta.weights_sha256,
                "features": meta.features, "dimension": meta.dimension, "metric": meta.metric,
                "storage": meta.storage, "engine": meta.engine,
                "search": ann_maintenance.describe(meta.search, self.path, self._approximate(reader.epoch())),
                "bytes": _size(self.path),
                "rows": reader.state("rows"), "recipe": meta.recipe, "created": meta.created, "format": meta.format,
                "sources": [
                    {"kind": row.kind, "root": opened[row.id].root, "items": counts.get(row.id, 0)}
                    for row in reader.sources()
                ],
            }  # fmt: skip

    # -- changing

    def add(
        self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], **options: Unpack[AddOptions]
    ) -> Summary:
        """Adds one or more images, folders or other sources to the index; nothing is removed from it."""
        from simsearch.indexing import options as indexing_options
        from simsearch.indexing import sync

        found = [resolve.resolve(os.fspath(path)) for path in ([paths] if isinstance(paths, SINGLE) else paths)]
        return sync.sync(self, found, indexing_options.BuildOptions(prune=False, **options))

    def find(self, names: Name | Iterable[Name]) -> list[Item]:
        """The items that ids (7 or "id:7"), paths, folders or globs mean, by id. Raises UsageError for one in vain."""
        with self.store.reading() as reader:
            return lookup.find_items(names, reader, self._current(reader).sources)

    def remove(self, names: Name | Iterable[Name]) -> int:
        """Removes items by id, path, folder or glob, and returns how many. The images themselves are not touched."""
        from simsearch.indexing import sync

        return sync.remove(self, self.find(names))

    def relocate(self, roots: Mapping[str, str]) -> None:
        """Records where sources are now, for good; see `roots` of the class. Raises UsageError for an unknown one."""
        from simsearch.storage.lock import writer_lock

        with writer_lock(self.path):
            with self.store.reading() as reader:
                known = reader.sources()
            source_roots.check(roots, known)
            for row in known:
                if root := roots.get(row.root, roots.get("")):
                    self.store.relocate(row.id, os.path.abspath(root), self.path.absolute())

    def root_of(self, row: SourceRow) -> str:
        """Where a source is: as given by `roots`, where it was, or where it would be had it moved with the index."""
        return source_roots.of(row, self.roots, self.path)

    # -- snapshots

    def _current(self, reader: Reader) -> Snapshot:
        """The snapshot that belongs to the reader's, reusing what is open already."""
        generation = reader.state("generation")
        with self._lock:
            known = self._snapshot
            if known is not None and known.generation == generation:
                if self.meta.generation < generation:  # who has committed writes meta.json only afterwards
                    self.meta = Meta.read(self.path)
                return known
            rows = reader.state("rows")
            live = None if reader.count() == rows else reader.rows()
            same = known is not None and known.flat.rows == rows and known.flat.shards is reader.shards
            flat = known.flat if known is not None and same else self._flat(reader, rows, known)
            held = {(source.kind, source.root): source for source in known.sources.values()} if known else {}
            opened = Sources()
            for row in reader.sources():
                place = row.kind, self.root_of(row)
                opened[row.id] = held.get(place) or RecordedSource(*place)
            self.meta = Meta.read(self.path)
            self._snapshot = Snapshot(generation, flat, live, opened)
            return self._snapshot

    def _flat(self, reader: Reader, rows: int, known: Snapshot | None) -> FlatIndex:
        """All rows for exact search: on GPUs if such a device was named and they fit, else on the CPU.

        Raises DeviceError where it was named and is not there.
        """
        if not self.device.startswith("cuda"):
            return FlatIndex(reader.shards, rows)
        from simsearch.models.onnx import runtime

        runtime.choose_device(self.device)

        def devices(count: int) -> list[str]:
            from simsearch.search import gpu

            return gpu.devices_for(self.device, count, self.meta.dimension)

        before = known.flat if known is not None and known.flat.shards is reader.shards else None
        return FlatIndex(reader.shards, rows, devices, before)


def _size(folder: Path) -> int:
    """The bytes of all files in a folder; some may come and go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
