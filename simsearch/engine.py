"""The Python API: open an index, search it, change it.

engine = simsearch.open("indexes/photos")
for match in engine.search("cat.jpg", k=6, where={"label": "cat"}):
    print(match.path, match.distance)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from PIL import Image, ImageOps

from simsearch import calibration, images, models, sources
from simsearch.errors import ImageError, ModelMismatchError, UsageError
from simsearch.extract import stored
from simsearch.filters import Where, conditions
from simsearch.index import FlatIndex
from simsearch.meta import Meta
from simsearch.recipe import Recipe
from simsearch.shards import Shards
from simsearch.snapshot import RecordedSource, Snapshot, blend, matcher, merge
from simsearch.store import Item, Reader, SourceRow, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models import Model
    from simsearch.sync import Summary

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]
"""An image to search by: a path, encoded bytes, a PIL image, or an (H, W, 3) uint8 array."""

NEAR_IDENTICAL = 0.1
"""With `dedup`, matches nearer to each other than this share of the median random pair count as one picture."""


class SearchOptions(TypedDict, total=False):
    """What every search accepts besides the query and k.

    where: conditions on items. max_distance: the farthest match to report. dedup: one match per near-identical group.
    exact: do not use an approximate structure, even if the index has one.
    """

    where: Where | None
    max_distance: float | None
    dedup: bool
    exact: bool


class PictureOptions(SearchOptions, total=False):
    """What a search by pictures accepts as well.

    crop: (x, y, width, height) of the upright query. flip: a mirrored picture counts as the same.
    plus, minus: more pictures to be like and unlike; an int is an item's id.
    """

    crop: tuple[int, int, int, int] | None
    flip: bool
    plus: Sequence[Picture | int]
    minus: Sequence[Picture | int]


@dataclass(frozen=True)
class Match:
    """An item at a distance. rank counts from 1; path opens as printed; see `calibration` for similarity."""

    rank: int
    id: int
    path: str
    label: str | None
    distance: float
    similarity: float
    metadata: dict[str, Any]
    relative: str = ""
    """The path as stored, relative to its source."""


class Engine:
    """An open index. Safe for many threads; what other processes commit is seen by the next search.

    path: the index. model: its model, where the recorded one is not to be loaded by name: a name, a path or a Model.
    device: see `models.load`. Raises IndexNotFoundError, IndexDamagedError, ModelMismatchError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | Model | None = None,
        device: str = "auto",
        roots: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        models.check_device(device)
        self.device, self.roots = device, dict(roots or {})
        self.meta = Meta.read(self.path)
        self.shards = Shards(self.path / "features", self.meta.dimension, self.meta.rows_per_shard)
        self.store = Store(self.path / "items.sqlite")
        self.recipe = Recipe.from_dict(self.meta.recipe)
        self._lock = threading.RLock()
        self._snapshot: Snapshot | None = None
        self._model: Model | None = None
        self._model_name = self.meta.model
        if isinstance(model, str):
            self._model_name = model
            if not model.startswith(models.TORCHVISION):
                self._check(model, models.find(model).sha256)
        elif model is not None:
            self._check(model.name, model.weights_sha256)
            self._model = model
        with self.store.reading() as reader:
            reader.state("rows")

    # -- opening and closing

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of files. The engine cannot be used afterwards."""
        self.store.close()
        self._snapshot = None

    def __len__(self) -> int:
        """The number of items."""
        with self.store.reading() as reader:
            return reader.count()

    def _check(self, name: str, digest: str) -> None:
        if digest != self.meta.weights_sha256:
            raise ModelMismatchError(
                f"the index {self.path} was made by model {self.meta.model} with weights {self.meta.weights_sha256},"
                f" but {name} has weights {digest}",
                hint="use the model that made the index, or build another index with this one",
            )

    def load_model(self, expected: int | None = None) -> Model:
        """The index's model, loaded on first use. expected: how many images are about to be computed."""
        with self._lock:
            many = expected is None or expected > models.FEW
            if self._model is None or (many and getattr(self._model, "few", False)):
                model = models.load(self._model_name, self.device, images=expected)
                self._check(model.name, model.weights_sha256)
                self._model = model
            return self._model

    @property
    def engine_used(self) -> str | None:
        """What the loaded model computes with; None while none is loaded."""
        return self._model.engine if self._model is not None else None

    # -- searching

    def search(self, image: Picture, k: int = 6, **options: Unpack[PictureOptions]) -> list[Match]:
        """The k items nearest to a picture, nearest first; ties go to the lower id.

        Fewer than k only if the index holds fewer that meet the conditions. Raises ImageError if the picture cannot
        be read, UsageError for unusable options.
        """
        return self.search_many([image], k, **options)[0]

    def search_many(
        self, pictures: Sequence[Picture | int], k: int = 6, **options: Unpack[PictureOptions]
    ) -> list[list[Match]]:
        """`search` for several pictures at once, which is faster than one by one. An int is an item's id."""
        crop, flip = options.pop("crop", None), options.pop("flip", False)
        plus, minus = list(options.pop("plus", ())), list(options.pop("minus", ()))
        chosen = SearchOptions(**options)  # type: ignore[typeddict-unknown-key]
        with self.store.reading() as reader:
            snapshot = self._current(reader)
            context = self._vectors([*plus, *minus], reader, snapshot)
            queries = self._vectors(pictures, reader, snapshot, crop)
            mirrored = self._vectors(pictures, reader, snapshot, crop, mirror=True) if flip else None
            results = []
            for number, picture in enumerate(pictures):
                variants = [queries[number]] + ([mirrored[number]] if mirrored is not None else [])
                blends = [blend(vector, context[: len(plus)], context[len(plus) :]) for vector in variants]
                left_out = [p for p in (picture, *plus) if isinstance(p, int)]
                results.append(self._matches(reader, snapshot, np.stack(blends), k, left_out, chosen))
        return results

    def search_by_id(self, number: int, k: int = 6, **options: Unpack[PictureOptions]) -> list[Match]:
        """The k items nearest to item `number`, itself left out. Raises ItemNotFoundError."""
        return self.search_many([int(number)], k, **options)[0]

    def search_by_vector(
        self, vector: NDArray[np.floating[Any]], k: int = 6, **options: Unpack[SearchOptions]
    ) -> list[Match]:
        """The k items nearest to a (D,) feature vector."""
        query = np.asarray(vector, np.float32).reshape(-1)
        if query.shape != (self.meta.dimension,):
            raise UsageError(f"the vector has {query.size} dimensions, the index {self.meta.dimension}")
        if not np.isfinite(query).all():
            raise UsageError("the vector has values that are not finite")
        with self.store.reading() as reader:
            return self._matches(reader, self._current(reader), query[None], k, [], options)

    def features(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """The features (n, D) of pictures, rounded as the index keeps them."""
        return self._compute([self._open(picture, self.recipe.resize).image for picture in pictures])

    def _matches(
        self, reader: Reader, snapshot: Snapshot, queries: NDArray[np.float32], k: int,
        left_out: Iterable[int], options: SearchOptions,
    ) -> list[Match]:  # fmt: skip
        """Searches by one query, given in one or more variants (1 or more, D) of which the nearest counts."""
        if k < 1:
            raise UsageError(f"k is {k}, but at least one match must be asked for")
        farthest = options.get("max_distance")
        if farthest is not None and not farthest >= 0:
            raise UsageError(f"the largest distance is {farthest}, but distances are not negative")
        wanted = conditions(options.get("where"))
        permitted = reader.rows(wanted) if wanted else snapshot.live
        skipped = [reader.item(number).row for number in left_out]
        if skipped:
            everything = np.arange(snapshot.flat.rows) if permitted is None else permitted
            permitted = np.setdiff1d(everything, skipped, assume_unique=False)
        available = snapshot.flat.rows if permitted is None else len(permitted)
        width = k
        while True:
            found = merge(snapshot.flat.search(queries, width, permitted))
            items = reader.items_at(found.rows.tolist())
            order = sorted(zip(found.distances.tolist(), found.rows.tolist(), strict=True),
                           key=lambda pair: (pair[0], items[pair[1]].id))  # fmt: skip
            if options.get("dedup"):
                order = self._distinct(order, items, k)
            if len(order) >= k or width >= available:
                break
            width = min(available, 4 * width)
        near = [(d, row) for d, row in order[:k] if farthest is None or d <= farthest]
        return [self._match(rank, d, items[row], snapshot) for rank, (d, row) in enumerate(near, 1)]

    def _match(self, rank: int, distance: float, item: Item, snapshot: Snapshot) -> Match:
        path = snapshot.sources[item.source].display(item.path)
        similarity = calibration.similarity(distance, self.meta.distances)
        return Match(rank, item.id, path, item.label, distance, similarity, item.metadata, item.path)

    def _distinct(self, order: list[tuple[float, int]], items: dict[int, Item], k: int) -> list[tuple[float, int]]:
        """Drops what is near-identical to a better match, until k are left."""
        same = NEAR_IDENTICAL * calibration.median(self.meta.distances)
        kept: list[tuple[float, int]] = []
        vectors: list[NDArray[np.float32]] = []
        digests: set[bytes] = set()
        for distance, row in order:
            if len(kept) == k:
                break
            vector = self.shards.read(np.array([row]))[0].astype(np.float32)
            if items[row].digest in digests or any(np.linalg.norm(other - vector) <= same for other in vectors):
                continue
            kept.append((distance, row))
            vectors.append(vector)
            digests.add(items[row].digest)
        return kept

    def _vectors(
        self, pictures: Sequence[Picture | int], reader: Reader, snapshot: Snapshot,
        crop: tuple[int, int, int, int] | None = None, *, mirror: bool = False,
    ) -> NDArray[np.float32]:  # fmt: skip
        """The (n, D) features of pictures and items; those of items come from the index unless cropped or mirrored."""
        vectors = np.zeros((len(pictures), self.meta.dimension), np.float32)
        decoded: list[tuple[int, Image.Image]] = []
        for number, picture in enumerate(pictures):
            if isinstance(picture, int):
                item = reader.item(picture)
                if crop is None and not mirror:
                    vectors[number] = self.shards.read(np.array([item.row]))[0]
                    continue
                picture = snapshot.sources[item.source].read(item.path)
            image = self._open(picture, None if crop else self.recipe.resize).image
            image = image if crop is None else images.crop(image, crop)
            decoded.append((number, ImageOps.mirror(image) if mirror else image))
        if decoded:
            vectors[[number for number, _ in decoded]] = self._compute([image for _, image in decoded])
        return vectors

    def _compute(self, decoded: Sequence[Image.Image]) -> NDArray[np.float32]:
        model = self.load_model(expected=len(decoded))
        rows = [np.zeros((0, self.meta.dimension), np.float32)]
        for start in range(0, len(decoded), 32):
            pixels = np.stack([model.recipe.pixels(image) for image in decoded[start : start + 32]])
            rows.append(stored(model.features(pixels)).astype(np.float32))
        return np.concatenate(rows)

    def _open(self, picture: Picture, shorter_side: int | None) -> images.Decoded:
        """Decodes a query; at its original size where no shorter side is given, as coordinates of a crop need."""
        if isinstance(picture, Image.Image):
            rgb = images.to_rgb(ImageOps.exif_transpose(picture))
            return images.Decoded(rgb, *rgb.size)
        if isinstance(picture, np.ndarray):
            image = images.from_array(picture)
            return images.Decoded(image, *image.size)
        name = "the image given as bytes" if isinstance(picture, bytes) else os.fspath(picture)
        try:
            data = picture if isinstance(picture, bytes) else sources.read_path(name)
            return images.decode(data, shorter_side)
        except ImageError as error:
            raise ImageError(f"{name}: {error}", hint=error.hint) from error

    # -- items

    def item(self, number: int) -> Item:
        """The item with that id. Raises ItemNotFoundError."""
        with self.store.reading() as reader:
            return reader.item(number)

    def opened(self, reader: Reader) -> dict[int, sources.Source]:
        """The index's sources by number, as of the reader's snapshot."""
        return self._current(reader).sources

    def read(self, number: int) -> bytes:
        """The bytes of an item's image file. Raises ItemNotFoundError, ImageError."""
        with self.store.reading() as reader:
            item = reader.item(number)
            return self._current(reader).sources[item.source].read(item.path)

    def thumbnail(self, picture: Picture | int, shorter_side: int = 256) -> Image.Image | None:
        """A picture or item in RGB, for showing; None if it cannot be read (any more)."""
        try:
            data = self.read(picture) if isinstance(picture, int) else picture
            return self._open(data, shorter_side).image
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
                "dimension": meta.dimension, "metric": meta.metric, "storage": meta.storage, "engine": meta.engine,
                "search": meta.search, "bytes": sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file()),
                "rows": reader.state("rows"), "recipe": meta.recipe, "created": meta.created, "format": meta.format,
                "sources": [
                    {"kind": row.kind, "root": opened[row.id].root, "items": counts.get(row.id, 0)}
                    for row in reader.sources()
                ],
            }  # fmt: skip

    # -- changing

    def add(self, paths: Iterable[str | os.PathLike[str]], **options: Any) -> Summary:
        """Adds images, folders or other sources to the index; nothing is removed. See `sync.sync` for the options."""
        from simsearch import sync

        found = [sources.resolve(os.fspath(path)) for path in paths]
        return sync.sync(self, found, sync.Options(prune=False, **options))

    def find(self, names: Iterable[str | int]) -> list[Item]:
        """The items that ids (7 or "id:7"), paths, folders or globs mean, by id. Raises UsageError for one in vain."""
        found: dict[int, Item] = {}
        with self.store.reading() as reader:
            opened = self._current(reader).sources
            rest: list[str] = []
            for name in names:
                if isinstance(name, int) or name.removeprefix("id:").isdecimal():
                    number = name if isinstance(name, int) else int(name.removeprefix("id:"))
                    found[number] = reader.item(number)
                else:
                    rest.append(name)
            if rest:
                hits = dict.fromkeys(rest, 0)
                tests = [(name, matcher(name)) for name in rest]
                for item in reader.items():
                    shown = opened[item.source].display(item.path)
                    for name, test in tests:
                        if test(shown, item.path):
                            found[item.id] = item
                            hits[name] += 1
                for name, count in hits.items():
                    if not count:
                        raise UsageError(
                            f"no item of the index matches {name!r}", hint="a path, id:N, or a glob in quotes"
                        )
        return [found[number] for number in sorted(found)]

    def remove(self, names: Iterable[str | int]) -> int:
        """Removes items by id, path, folder or glob, and returns how many. The images themselves are not touched."""
        from simsearch import sync

        return sync.remove(self, self.find(names))

    def relocate(self, roots: Mapping[str, str]) -> None:
        """Records where sources are now; see `roots` of the constructor. Raises UsageError for an unknown one."""
        from simsearch.meta import writer_lock

        with writer_lock(self.path):
            with self.store.reading() as reader:
                known = reader.sources()
            unknown = set(roots) - {row.root for row in known} - {""}
            if unknown:
                hint = f"its sources: {', '.join(row.root for row in known)}"
                raise UsageError(f"the index has no source {sorted(unknown)[0]}", hint=hint)
            for row in known:
                if root := roots.get(row.root, roots.get("")):
                    self.store.relocate(row.id, os.path.abspath(root), self.path.absolute())
            self._snapshot = None

    def root_of(self, row: SourceRow) -> str:
        """Where a source is: as given by `root`, where it was, or where it would be had it moved with the index."""
        if self.roots:
            return self.roots.get(row.root, self.roots.get("", row.root))
        if os.path.isabs(row.root) and not os.path.exists(row.root):
            moved = os.path.normpath(os.path.join(self.path.absolute(), row.relative))
            return moved if os.path.exists(moved) else row.root
        return row.root

    # -- snapshots

    def _current(self, reader: Reader) -> Snapshot:
        """The snapshot that belongs to the reader's, reusing what is open already."""
        generation = reader.state("generation")
        with self._lock:
            known = self._snapshot
            if known is not None and known.generation == generation:
                return known
            rows = reader.state("rows")
            live = None if reader.count() == rows else reader.rows()
            same = known is not None and known.flat.rows == rows
            flat = known.flat if known is not None and same else FlatIndex(self.shards, rows)
            opened: dict[int, sources.Source] = {
                row.id: RecordedSource(row.kind, self.root_of(row)) for row in reader.sources()
            }
            if known is not None:
                self.meta = Meta.read(self.path)
            self._snapshot = Snapshot(generation, flat, live, opened)
            return self._snapshot
