"""Measures how well an index retrieves: precision and recall by labels, and the recall of its approximate search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import intervals
from simsearch.common.intervals import Interval
from simsearch.common.progress import Progress
from simsearch.errors import ImageError, UsageError
from simsearch.evaluation import metrics, reliability
from simsearch.evaluation.metrics import LabelledFeatures
from simsearch.evaluation.reliability import ReliabilityReport
from simsearch.images.sources import resolve

if TYPE_CHECKING:
    from simsearch.engine import Engine
    from simsearch.images.sources.labelled import LabelledImage

NAMES = {"AP": "mAP", "knn": "knn_accuracy"}
"""Maps a measure's name to the name of its mean over all queries, if the two differ."""


@dataclass(frozen=True)
class Query:
    """One query: the id of an item or the path of another picture, its label and its average precision."""

    query: int | str
    label: str
    average_precision: float


@dataclass(frozen=True)
class RetrievalReport:
    """Retrieval scores of an index.

    items: the number of labelled items.
    unlabelled: the number of items without a label, which are left out.
    failed: the number of query pictures that could not be decoded.
    chance: the expected P@k of a random ranking.
    scores: maps the name of each mean (see `NAMES`) to the mean of the measure over all queries.
    classes: maps each label of a query to the number of queries with this label and to their scores.
    queries: the queries for which the index has another item with the same label, from the worst average precision to
    the best.
    count: the number of all queries, including those without such an item.
    reliability: how often matches of a given similarity have the query's label.
    unknown: the number of query pictures that are left out, because no item has their label.
    """

    model: str
    items: int
    unlabelled: int
    failed: int
    chance: float
    scores: dict[str, Interval]
    classes: dict[str, tuple[int, dict[str, Interval]]]
    queries: list[Query]
    count: int
    reliability: ReliabilityReport
    unknown: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as a dictionary of JSON values, without the results of individual queries.

        A score that is undefined for every query is null.
        """
        classes = {label: {"queries": count, **_plain(scores)} for label, (count, scores) in self.classes.items()}
        return {
            "model": self.model,
            "items": self.items,
            "queries": self.count,
            "unlabelled": self.unlabelled,
            "failed": self.failed,
            "unknown": self.unknown,
            "chance": self.chance,
            **_plain(self.scores),
            "reliability": self.reliability.to_dict(),
            "classes": classes,
        }


def _plain(scores: dict[str, Interval]) -> dict[str, Any]:
    return {
        name: {part: value if np.isfinite(value) else None for part, value in asdict(score).items()}
        for name, score in scores.items()
    }


def evaluate_retrieval(
    engine: Engine, pictures: Sequence[LabelledImage] | None = None, progress: Progress = lambda done, total: None
) -> RetrievalReport:
    """Ranks an index's labelled items for each query, and measures how early items with the query's label come.

    pictures: labelled pictures to search for; if None, each labelled item is a query for the other labelled items.
    progress: called with the number of pictures decoded and the number of all pictures, then with the number of queries
    done and the number of all queries.
    Raises UsageError if fewer than two items have labels, if no item has the label of any query, or if no query can be
    decoded.
    """
    with engine.reading() as reader:
        everything = list(reader.items())
        items = [item for item in everything if item.label is not None]
        if len(items) < 2:
            raise UsageError(f"{len(items)} items of {engine.path} have labels; at least 2 are needed")
        features = reader.shards.read(np.array([item.row for item in items], np.int64))
    labels = [str(item.label) for item in items]
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    base = LabelledFeatures(features, np.array([numbers[label] for label in labels], np.int64))
    keys: list[int | str] = [item.id for item in items]
    labelled_queries, query_labels, failed, unknown = None, labels, 0, 0
    if pictures is not None:
        known = [picture for picture in pictures if picture.label in set(labels)]
        if not known:
            shown = ", ".join(sorted({picture.label for picture in pictures})[:3])
            raise UsageError(f"no item of {engine.path} has one of the labels of the queries: {shown}, ...")
        unknown = len(pictures) - len(known)
        keys, query_labels, vectors = _computed(engine, known, progress)
        failed = len(known) - len(keys)
        labelled_queries = LabelledFeatures(vectors, np.array([numbers[label] for label in query_labels], np.int64))
    nearest = reliability.NearestMatches(base, labelled_queries or base)
    values = metrics.retrieval(base, labelled_queries, observe=nearest.see, progress=progress)
    queries = [Query(*row) for row in zip(keys, query_labels, values["AP"].tolist(), strict=True)]
    queries = sorted((q for q in queries if np.isfinite(q.average_precision)), key=lambda q: q.average_precision)
    order = np.array([numbers[label] for label in query_labels])
    classes = {}
    for number in np.unique(order):
        part = {name: column[order == number] for name, column in values.items()}
        classes[names[number]] = int((order == number).sum()), _renamed(intervals.with_intervals(part))
    return RetrievalReport(
        engine.meta.model,
        len(items),
        len(everything) - len(items),
        failed,
        metrics.chance(base.labels, None if labelled_queries is None else labelled_queries.labels),
        _renamed(intervals.with_intervals(values)),
        classes,
        queries,
        len(keys),
        nearest.report(engine.scale),
        unknown,
    )


def _renamed(scores: dict[str, Interval]) -> dict[str, Interval]:
    return {NAMES.get(name, name): score for name, score in scores.items()}


def _computed(
    engine: Engine, pictures: Sequence[LabelledImage], progress: Progress
) -> tuple[list[int | str], list[str], Any]:
    """Returns paths, labels and features (n, D) of the pictures that can be decoded. Raises UsageError if none can."""
    keys: list[int | str] = []
    labels: list[str] = []
    rows = []
    for start in range(0, len(pictures), 32):
        images = []
        for picture in pictures[start : start + 32]:
            try:
                data = picture.source.read(picture.path)
                images.append(resolve.open_picture(data, engine.recipe.resize).image)
            except ImageError:
                continue
            keys.append(picture.source.display(picture.path))
            labels.append(picture.label)
        if images:
            rows.append(engine.features(images))
        progress(min(start + 32, len(pictures)), len(pictures))
    if not rows:
        raise UsageError("none of the queries could be decoded")
    return keys, labels, np.concatenate(rows)


@dataclass(frozen=True)
class RecallReport:
    """The recall of an index's search: the mean fraction of the k nearest items that it finds.

    kind: the kind of search, as in the index's `meta.json`, such as "exact" or "codes".
    queries: the number of queries.
    milliseconds: the mean time of a query by the index's search.
    exact_milliseconds: the mean time of a query by exact search.
    """

    kind: str
    k: int
    queries: int
    recall: Interval
    milliseconds: float
    exact_milliseconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as a dictionary of JSON values."""
        return {
            "kind": self.kind,
            "k": self.k,
            "queries": self.queries,
            "recall": asdict(self.recall),
            "milliseconds": self.milliseconds,
            "exact_milliseconds": self.exact_milliseconds,
        }


def measure_recall(
    engine: Engine, k: int = 10, count: int = 200, seed: int = 0, progress: Progress = lambda done, total: None
) -> RecallReport:
    """Measures how many of the exact nearest neighbours of random items are found by the index's search.

    An item is not its own neighbour. A match counts as right if it is no farther than the k-th exact neighbour.
    k: the number of neighbours. count: the number of queries; an index with fewer items has a query for each item.
    Raises UsageError for an index with fewer than two items.
    """
    with engine.reading() as reader:
        ids, _ = reader.ids_and_rows()
    if len(ids) < 2:
        raise UsageError(f"{engine.path} has {len(ids)} items; at least 2 are needed")
    chosen = np.random.default_rng(seed).choice(ids, min(count, len(ids)), replace=False).tolist()
    engine.search_by_id(chosen[0], k)  # opens the index's files, whose time is not measured
    shares, spent = [], np.zeros(2)
    for done, number in enumerate(chosen, 1):
        began = time.perf_counter()
        found = engine.search_by_id(number, k)
        middle = time.perf_counter()
        exact = engine.search_by_id(number, k, exact=True)
        spent += middle - began, time.perf_counter() - middle
        farthest = exact[-1].distance
        shares.append(sum(match.distance <= farthest for match in found) / len(exact))
        progress(done, len(chosen))
    mean = intervals.with_intervals({"recall": np.array(shares)}, seed)["recall"]
    per = 1000 * spent / len(chosen)
    return RecallReport(str(engine.meta.search["kind"]), k, len(chosen), mean, float(per[0]), float(per[1]))
