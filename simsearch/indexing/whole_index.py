"""The methods of `Engine` that concern all items: listing, checking, duplicates, tuning and export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simsearch.common.lazy import LazyModule
from simsearch.common.progress import Progress, no_progress
from simsearch.errors import UsageError
from simsearch.search.queries import Picture, as_list
from simsearch.storage import item_files
from simsearch.storage.filters import Where
from simsearch.storage.index import on_disk
from simsearch.storage.item_table import IndexedItem, indexed_items, items_to_arrow, to_pandas

if TYPE_CHECKING:
    from simsearch.indexing import tune as tuning
    from simsearch.models import classify
    from simsearch.search import duplicates as near
    from simsearch.search.tuning import Choice
    from simsearch.storage import export as exports
    from simsearch.storage import verify as checks
    from simsearch.storage.model import IndexModel
    from simsearch.storage.protocols import OpenIndex, Searchable
else:  # a search needs none of them
    tuning = LazyModule("simsearch.indexing.tune")
    classify = LazyModule("simsearch.models.classify")
    near = LazyModule("simsearch.search.duplicates")
    exports = LazyModule("simsearch.storage.export")
    checks = LazyModule("simsearch.storage.verify")


class WholeIndex:
    """The part of `Engine` that is about all items; `opened_index`, `snapshots` and `model` are the engine's."""

    opened_index: OpenIndex
    snapshots: Searchable
    model: IndexModel

    def __len__(self) -> int:
        """The number of items."""
        with self.opened_index.reading() as reader:
            return int(reader.count())

    def __iter__(self) -> Iterator[IndexedItem]:
        return self.items()

    def items(self, where: Where | None = None) -> Iterator[IndexedItem]:
        """Yields the items that meet the conditions, by id. Raises UsageError for conditions that cannot be used."""
        return indexed_items(self.opened_index, where)

    def failures(self) -> list[tuple[str, str]]:
        """Returns the path of each image that could not be indexed, and the reason."""
        return item_files.failures(self.opened_index)

    def to_arrow(self, where: Where | None = None, *, features: bool = False) -> Any:
        """Returns the items as a pyarrow.Table: id, path, label, metadata (JSON), width, height, bytes.

        features: True for another column with the stored features, lists of D float16 values.
        Raises UsageError, MissingExtraError.
        """
        return items_to_arrow(self.opened_index, where, features)

    def to_pandas(self, where: Where | None = None) -> Any:
        """Returns the items as a pandas.DataFrame with a column for each field of `IndexedItem`.

        Raises UsageError, MissingExtraError.
        """
        return to_pandas(asdict(item) for item in self.items(where))

    def duplicates(
        self, max_distance: float | None = None, *, exact: bool = False, progress: Progress = no_progress
    ) -> list[list[near.Member]]:
        """Returns groups of near-identical items, the largest first, the members of each by id.

        max_distance: the largest distance within a chain; None measures that of slightly changed copies.
        exact: True to compare all pairs of a large index too. Raises UsageError for an invalid distance.
        """
        if max_distance is None:
            max_distance = near.copy_threshold(self.opened_index, self.model).distance
        return near.duplicate_groups(self.snapshots, max_distance, progress, exact)

    def classify(
        self, pictures: Picture | Sequence[Picture], k: int = 5, crops: Literal[1, 10] = 1
    ) -> list[list[classify.Guess]]:
        """Returns the k most probable classes of each picture, most probable first.

        Raises UsageError for a model without classes, ImageError for a picture that cannot be read.
        """
        if crops not in (1, 10):
            raise UsageError(f"crops is {crops!r}", hint="1 or 10")
        given: list[Any] = list(as_list(pictures))
        return list(classify.classify(self.model.load(len(given) * crops), given, k, crops))

    def tune(self, recall: float = 0.99, *, memory: int | None = None, progress: Progress = no_progress) -> Choice:
        """Chooses the fastest way to search that reaches a recall, by measurement, and records it.

        memory: the most bytes of the search structure. Raises UsageError, IndexLockedError.
        """
        return tuning.tune(on_disk(self.opened_index), recall, memory, progress)

    def export(
        self,
        folder: str | os.PathLike[str],
        form: Literal["npy", "parquet"] = "npy",
        *,
        progress: Progress = no_progress,
    ) -> int:
        """Writes the features and the items that they belong to, and returns the number of items.

        npy: features.npy, (N, D) float32, and items.jsonl, a line for each row. parquet: items.parquet.
        Raises UsageError, MissingExtraError.
        """
        if form not in ("npy", "parquet"):
            raise UsageError(f"form is {form!r}", hint="npy or parquet")
        write = exports.export_npy if form == "npy" else exports.export_parquet
        return write(self.opened_index, Path(folder), progress)

    def verify(self, progress: Progress = no_progress) -> checks.VerifyReport:
        """Checks that the files of the index agree, byte for byte; see `VerifyReport.problems`."""
        return checks.verify(self.opened_index, progress)
