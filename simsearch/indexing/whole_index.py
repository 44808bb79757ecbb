"""The methods of `Engine` that concern all items: listing, checking, duplicates and clean-up, tuning and export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simsearch.common.keywords import check_keywords
from simsearch.common.lazy import LazyModule
from simsearch.common.progress import Progress, no_progress
from simsearch.errors import UsageError
from simsearch.images.sources import resolve
from simsearch.search.queries import Picture, as_list
from simsearch.storage import item_files
from simsearch.storage.compatible import check_same_features
from simsearch.storage.filters import Where, conditions
from simsearch.storage.index import on_disk
from simsearch.storage.item_table import IndexedItem, indexed_items, items_to_arrow, to_pandas

if TYPE_CHECKING:
    from simsearch.curation import cluster_names
    from simsearch.curation import map as maps
    from simsearch.curation.cleanup import ignored as ignoring
    from simsearch.curation.cleanup import journal as journals
    from simsearch.curation.cleanup import keep as keeping
    from simsearch.curation.cleanup import plan as planning
    from simsearch.curation.cleanup import run as cleaning
    from simsearch.indexing import presence as presences
    from simsearch.indexing import tune as tuning
    from simsearch.models import classify
    from simsearch.search import copy_threshold as copy_thresholds
    from simsearch.search import duplicates as near
    from simsearch.search.tuning import Choice
    from simsearch.storage import export as exports
    from simsearch.storage import unmet as conditions_unmet
    from simsearch.storage import verify as checks
    from simsearch.storage.model import IndexModel
    from simsearch.storage.protocols import OpenIndex, Searchable
else:  # imported on first use: a search does not need these modules
    cluster_names = LazyModule("simsearch.curation.cluster_names")
    maps = LazyModule("simsearch.curation.map")
    ignoring = LazyModule("simsearch.curation.cleanup.ignored")
    journals = LazyModule("simsearch.curation.cleanup.journal")
    keeping = LazyModule("simsearch.curation.cleanup.keep")
    planning = LazyModule("simsearch.curation.cleanup.plan")
    cleaning = LazyModule("simsearch.curation.cleanup.run")
    presences = LazyModule("simsearch.indexing.presence")
    tuning = LazyModule("simsearch.indexing.tune")
    classify = LazyModule("simsearch.models.classify")
    copy_thresholds = LazyModule("simsearch.search.copy_threshold")
    near = LazyModule("simsearch.search.duplicates")
    exports = LazyModule("simsearch.storage.export")
    conditions_unmet = LazyModule("simsearch.storage.unmet")
    checks = LazyModule("simsearch.storage.verify")


class WholeIndex:
    """The base class of `Engine`, with the methods that concern all items.

    `Engine` sets the attributes: the open index, the model that computed its features, and `snapshots`, the object that
    gives access to the searches of the open index.
    """

    opened_index: OpenIndex
    snapshots: Searchable
    model: IndexModel

    def __len__(self) -> int:
        """Returns the number of items."""
        with self.opened_index.reading() as reader:
            return int(reader.count())

    def __iter__(self) -> Iterator[IndexedItem]:
        return self.items()

    @check_keywords
    def items(self, where: Where | None = None) -> Iterator[IndexedItem]:
        """Yields the items that meet the conditions, sorted by id.

        where: a mapping such as {"label": "cat"}, or conditions such as ["label=cat"]; None for all items.
        Raises UsageError for conditions that cannot be used.
        """
        return indexed_items(self.opened_index, where)

    @check_keywords
    def unmet(self, where: Where) -> list[str]:
        """Returns a sentence about each condition that no item meets, with the values that were probably meant.

        Raises UsageError for conditions that cannot be used.
        """
        with self.opened_index.reading() as reader:
            return conditions_unmet.unmet(reader, conditions(where))

    @check_keywords
    def failures(self) -> list[tuple[str, str]]:
        """Returns (path, reason) of each image that could not be indexed."""
        return item_files.failures(self.opened_index)

    def presence(self, names: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[presences.Presence]:
        """Returns for each file, folder or archive the ids of its items in the index, or the reason why there are none.

        Raises UsageError for an empty name.
        """
        return presences.find_presence(self.opened_index, resolve.as_names(names))

    @check_keywords
    def to_arrow(self, where: Where | None = None, *, features: bool = False) -> Any:
        """Returns the items as a pyarrow.Table: id, path, label, metadata (JSON), width, height, bytes.

        where: conditions on the items, as in `items`.
        features: True for another column with the stored features, lists of D float16 values.
        Raises UsageError for conditions that cannot be used, and MissingExtraError without pyarrow.
        """
        return items_to_arrow(self.opened_index, where, features)

    @check_keywords
    def to_pandas(self, where: Where | None = None) -> Any:
        """Returns the items as a pandas.DataFrame with a column for each field of `IndexedItem`.

        where: conditions on the items, as in `items`.
        Raises UsageError for conditions that cannot be used, and MissingExtraError without pandas.
        """
        return to_pandas(asdict(item) for item in self.items(where))

    @check_keywords
    def duplicates(
        self,
        max_distance: float | copy_thresholds.Threshold | None = None,
        *,
        keep: str | None = None,
        against: WholeIndex | None = None,
        ignored: bool = False,
        exact: bool = False,
        progress: Progress = no_progress,
    ) -> list[list[near.Member]]:
        """Returns groups of near-identical items, the largest group first.

        Two items are linked if their distance is at most `max_distance`. A group consists of all items that are
        connected by a chain of links.
        max_distance: if it is None, a suitable distance is measured with slightly changed copies of the index's own
        pictures. In this case, the pixels of close pairs are compared as well, and decide whether two items are linked.
        keep: the rule that chooses the first member of each group, one of `cleanup.keep.RULES`; None chooses the item
        with the lowest id.
        against: another open index of the same model; only groups with items of both indexes are returned.
        ignored: True to include groups that the user has marked as not being duplicates.
        exact: True to compare all pairs even in a large index, where some links may otherwise be missed.
        Raises UsageError for an invalid distance or rule, and ModelMismatchError if the features of `against` cannot be
        compared with those of this index.
        """
        rule = None if keep is None else keeping.KeepRule.parse(keep, against is not None)
        limit = self._limit(max_distance, progress)
        if against is not None:
            check_same_features(self.opened_index, against.opened_index)
        other = None if against is None else against.snapshots
        groups = near.duplicate_groups(self.snapshots, limit, progress, exact, against=other, keep=rule)
        return groups if ignored else ignoring.without_ignored(self.opened_index, groups)

    @check_keywords
    def clean_up(
        self,
        action: Literal["move", "trash", "hardlink"],
        *,
        keep: str = "largest",
        into: str | os.PathLike[str] | None = None,
        against: WholeIndex | None = None,
        max_distance: float | None = None,
        exact: bool = False,
        dry_run: bool = True,
        journal: str | os.PathLike[str] | None = None,
        progress: Progress = no_progress,
    ) -> cleaning.Report:
        """Keeps one file of each group of duplicates, and moves, trashes or hard-links the other files.

        keep: the rule that chooses the file that stays, as in `duplicates`.
        against, max_distance, exact: as in `duplicates`.
        into: the folder to move files to, for the action "move" only.
        dry_run: True to change nothing and only return the plan.
        journal: the file to record the changes in, for `cleanup.restore.restore`; None for a new file in the current
        folder.
        Raises UsageError for an invalid action, rule or distance.
        """
        if action not in journals.ACTIONS or (action == "move") != (into is not None):
            raise UsageError(
                f"the action {action!r} is unknown, or cannot be used with into={into!r}",
                hint="'move' needs the argument `into`, a folder; 'trash' and 'hardlink' are used without it",
            )
        rule = keeping.KeepRule.parse(keep, against is not None)
        limit = self._limit(max_distance, progress)
        groups = self.duplicates(limit, keep=keep, against=against, exact=exact)
        plan = planning.make_plan(groups, rule, action, limit.distance, into or "")
        if dry_run:
            return cleaning.Report(plan)
        return cleaning.carry_out(
            plan, str(self.opened_index.path), None if journal is None else Path(journal), progress
        )

    def _limit(
        self, distance: float | copy_thresholds.Threshold | None, progress: Progress
    ) -> copy_thresholds.Threshold:
        """Returns `distance` as a `Threshold`. If it is None, measures the largest distance of duplicates."""
        if distance is None:
            return copy_thresholds.copy_threshold(self.opened_index, self.model, progress=progress)
        return distance if isinstance(distance, copy_thresholds.Threshold) else copy_thresholds.Threshold(distance)

    @check_keywords
    def map(
        self,
        *,
        clusters: int | None = None,
        names: Literal["auto", "labels", "guesses", "numbers"] = "auto",
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> maps.ItemMap:
        """Returns a map of all items: positions on a plane, with similar items close together, and named clusters.

        clusters: the maximum number of clusters; None for as many as the data suggests.
        names: the origin of the clusters' names; see `cluster_names.name_clusters`.
        seed: the same index and seed give the same map.
        progress: called during the search for neighbours, then during the layout.
        Raises UsageError for fewer items than `map.LEAST` or for `clusters` below 1, and MissingExtraError without
        openTSNE.
        """
        near = maps.read_neighbours(self.snapshots, seed=seed, progress=progress)
        drawn = maps.draw_map(near, clusters, seed, progress)
        return cluster_names.name_clusters(drawn, names, self.model.load)

    @check_keywords
    def classify(
        self, pictures: Picture | Sequence[Picture], k: int = 5, crops: Literal[1, 10] = 1
    ) -> list[list[classify.Guess]]:
        """Returns the k most probable classes of each picture, most probable first.

        crops: 1 to classify the middle of a picture, or 10 to average over ten parts of it.
        Raises UsageError for a model without classes, ImageError for a picture that cannot be read.
        """
        if crops not in (1, 10):
            raise UsageError(f"crops is {crops!r}, not 1 or 10")
        given: list[Any] = list(as_list(pictures))
        return list(classify.classify(self.model.load(len(given) * crops), given, k, crops))

    @check_keywords
    def tune(self, recall: float = 0.99, *, memory: int | None = None, progress: Progress = no_progress) -> Choice:
        """Chooses, by measurement, the fastest way to search that reaches `recall`, and records it in the index.

        recall: the share of a query's 10 true neighbours that a search must find, above 0 and at most 1.
        memory: the maximum size of the approximate search in bytes; None for no limit.
        Raises UsageError for an invalid argument, and IndexLockedError if another process is writing.
        """
        return tuning.tune(on_disk(self.opened_index), recall, memory, progress)

    @check_keywords
    def export(
        self,
        folder: str | os.PathLike[str],
        form: Literal["npy", "parquet"] = "npy",
        *,
        drawn: maps.ItemMap | None = None,
        progress: Progress = no_progress,
    ) -> int:
        """Writes the ids, paths, labels, metadata and features of all items to a folder; returns the number of items.

        form: "npy" writes features.npy, (N, D) float32, and items.jsonl, one line per item; "parquet" writes
        items.parquet.
        drawn: a map that `map` has returned. Its columns are added to items.parquet; see `export.export_parquet`.
        Raises UsageError if the folder cannot be written, and MissingExtraError without pyarrow for "parquet".
        """
        if form not in ("npy", "parquet"):
            raise UsageError(f"form is {form!r}, not npy or parquet")
        if form == "npy":
            if drawn is not None:
                raise UsageError("a map can be exported with parquet only, not with npy", hint='form="parquet"')
            return exports.export_npy(self.opened_index, Path(folder), progress)
        columns = None if drawn is None else drawn.columns()
        return exports.export_parquet(self.opened_index, Path(folder), progress, columns)

    @check_keywords
    def verify(self, progress: Progress = no_progress) -> checks.VerifyReport:
        """Checks byte for byte that the files of the index are intact and agree with each other; returns a report."""
        return checks.verify(self.opened_index, progress)
