"""The searches of one open index: by pictures and by vectors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.float16 import to_float16
from simsearch.common.machine import MemoryBudget
from simsearch.errors import UsageError
from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.search import similarity
from simsearch.search.options import PictureOptions, SearchOptions, check_names, split
from simsearch.search.queries import Picture, as_list, as_variants, as_vectors
from simsearch.search.query_images import LazySnapshot
from simsearch.search.query_vectors import QueryResolver, existing_rows
from simsearch.search.results import Matches
from simsearch.search.searcher import Searcher, known_neighbours
from simsearch.search.similarity import Scale
from simsearch.storage import item_files
from simsearch.storage.filters import Where
from simsearch.storage.model import IndexModel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from simsearch.images.sources.base import Source
    from simsearch.storage.protocols import ApproximateSearch, ItemReader, OpenIndex, Searchable


class IndexSearch:
    """Searches an open index; each search uses one snapshot of the index. Safe for many threads.

    index: the open index.
    snapshots: provides the snapshots of the index.
    model: the model of the index.
    recipe: the preprocessing of pictures for the model.
    """

    def __init__(self, index: OpenIndex, snapshots: Searchable, model: IndexModel, recipe: Preprocessing) -> None:
        self.index, self.snapshots, self.model, self.recipe = index, snapshots, model, recipe
        self._estimated: tuple[int, Scale] | None = None
        self._median: tuple[object, float] = (None, 0.0)  # of `index.meta`

    def by_pictures(self, pictures: Sequence[Picture | int], k: int, options: PictureOptions) -> list[Matches]:
        """Returns the k matches of each picture or item; an item is given by its id. See `Engine.search_many`."""
        chosen, changes = split(options)
        with self.query_resolver() as resolver:
            queries = resolver.prepare_many(as_list(pictures), **changes)
            vectors, left_out = resolver.resolve_all(queries), resolver.rows_left_out(queries)
            return self._shown(self._searcher(resolver.reader).search(vectors, k, left_out, chosen))

    def by_vectors(
        self, vectors: NDArray[np.float32], k: int, without: Sequence[Sequence[int]], options: SearchOptions
    ) -> list[Matches]:
        """Returns the k matches of each query; see `Engine.search_by_vectors`.

        vectors: (n, D), or (n, v, D) for n queries with v vectors each.
        without: for each query, the ids of items that must not be matches; empty if all items may be matches.
        """
        check_names(options, by_vector=True)
        variants = as_variants(vectors, self.index.meta.dimension)
        if len(without) not in {0, len(variants)}:
            raise UsageError(f"`without` has {len(without)} lists of ids, but there are {len(variants)} queries")
        with self.index.reading() as reader:
            left_out = [existing_rows(reader, ids) for ids in without] or [[] for _ in variants]
            return self._shown(self._searcher(reader).search(variants, k, left_out, options))

    def neighbours(
        self, vectors: NDArray[np.float32], k: int, where: Where | None, exact: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the ids and distances of the k nearest items of each vector; see `Engine.neighbours`."""
        queries = as_vectors(vectors, self.index.meta.dimension)
        known = self.snapshots.known() if where is None else None
        found = None if known is None else known_neighbours(known, queries, k, exact)
        if found is not None:
            return found
        with self.index.reading() as reader:
            if where is None:
                self.snapshots.learn(reader, len(queries))
            return self._searcher(reader).neighbours(queries, k, where, exact)

    def stored_features(self, key: int | bytes) -> NDArray[np.float32] | None:
        """Returns the stored (D,) features of an item; None for an unknown SHA-256. See `Engine.stored_features`.

        key: the item's id, or the SHA-256 of its file.
        """
        with self.index.reading() as reader:
            row = reader.row_of(key) if isinstance(key, bytes) else reader.item(key).row
            return None if row is None else reader.shards.read(np.array([row]))[0].astype(np.float32)

    @contextlib.contextmanager
    def query_resolver(
        self, *, serving: bool = False, max_pixels: int = decode.LARGEST_PIXELS, budget: MemoryBudget | None = None
    ) -> Iterator[QueryResolver]:
        """Yields a `QueryResolver`, which turns queries into vectors, for one snapshot of the index.

        The arguments are explained at `Engine.query_resolver`.
        """
        with contextlib.ExitStack() as stack:

            def read() -> tuple[ItemReader, Mapping[int, Source]]:
                reader = stack.enter_context(self.index.reading())
                return reader, self.snapshots.current(reader).sources

            yield QueryResolver(
                LazySnapshot(read),
                self.index.meta.dimension,
                self.recipe,
                self.index.meta.weights_sha256,
                self._compute_served if serving else self.model.compute,
                max_pixels=max_pixels,
                names_in_errors=not serving,
                budget=budget,
            )

    def structure(self) -> ApproximateSearch | None:
        """Returns the approximate search of the index; None if there is none, or if its files are damaged."""
        with self.index.reading() as reader:
            self.snapshots.current(reader)
            return self.snapshots.structure(reader)

    def _shown(self, answers: list[Matches]) -> list[Matches]:
        """Sets `thumbnail` of each answer, so that a notebook can show its pictures; returns the answers."""
        for matches in answers:
            matches.thumbnail = self._thumbnail
        return answers

    def _thumbnail(self, number: int) -> Image.Image | None:
        return item_files.thumbnail(self.index, number, 128)

    def _compute_served(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return to_float16(self.model.load().features(np.stack(pixels))).astype(np.float32)

    def _searcher(self, reader: ItemReader) -> Searcher:
        snapshot, structure = self.snapshots.current(reader), self.snapshots.structure(reader)
        meta, known = self.index.meta, self._median
        if known[0] is not meta:
            known = self._median = meta, similarity.median(meta.distances)
        return Searcher(reader, snapshot, reader.shards, functools.partial(self.scale, reader), known[1], structure)

    def scale(self, reader: ItemReader) -> Scale:
        """Returns the scale that turns distances into similarities.

        If an older version wrote the index and recorded no scale, the scale is estimated. The estimate is repeated
        after each change of a small index, and made once for a large index.
        """
        snapshot, meta = self.snapshots.current(reader), self.index.meta
        if not meta.similarity and self.index.folder is not None:
            live = np.arange(snapshot.flat.rows) if snapshot.live is None else snapshot.live
            generation = reader.state("generation") if len(live) <= similarity.SAMPLE else 0
            if self._estimated is None or self._estimated[0] != generation:
                found = similarity.estimate(reader.shards, live)
                self._estimated = generation, found or Scale.of({}, meta.distances)
            return self._estimated[1]
        return Scale.of(meta.similarity, meta.distances)
