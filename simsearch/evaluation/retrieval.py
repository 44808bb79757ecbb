"""How well an index retrieves: labels as relevance, each item querying once, or pictures from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import intervals
from simsearch.common.intervals import Interval
from simsearch.errors import ImageError, UsageError
from simsearch.evaluation import metrics
from simsearch.evaluation.metrics import LabelledFeatures
from simsearch.images.sources import resolve

if TYPE_CHECKING:
    from simsearch.engine import Engine
    from simsearch.images.sources.labelled import LabelledImage
from simsearch.common.progress import Progress

NAMES = {"AP": "mAP", "knn": "knn_accuracy"}

"""What means over queries are called, where it is not the name of the measure."""


@dataclass(frozen=True)
class Query:
    """One query: the item's id, or the path of a picture from elsewhere, its label and its average precision."""

    query: int | str
    label: str
    average_precision: float


@dataclass(frozen=True)
class RetrievalReport:
    """scores: by name. classes: by label, the number of queries and their scores. chance: P@k of a random ranking.

    queries: those that some item is relevant to, worst first. unlabelled: items left out. failed: pictures that could
    not be decoded.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a score that is undefined for every query is null."""
        classes = {label: {"queries": count, **_plain(scores)} for label, (count, scores) in self.classes.items()}
        return {
            "model": self.model,
            "items": self.items,
            "queries": self.count,
            "unlabelled": self.unlabelled,
            "failed": self.failed,
            "chance": self.chance,
            **_plain(self.scores),
            "classes": classes,
        }


def _plain(scores: dict[str, Interval]) -> dict[str, Any]:
    return {
        name: {part: value if np.isfinite(value) else None for part, value in score._asdict().items()}
        for name, score in scores.items()
    }


def evaluate_retrieval(
    engine: Engine, pictures: Sequence[LabelledImage] | None = None, progress: Progress = lambda done, total: None
) -> RetrievalReport:
    """Measures the ranking of an index's labelled items; unlabelled ones are left out of it.

    pictures: labelled queries; without them every labelled item queries once, itself left out. Raises UsageError where
    there is nothing to measure.
    """
    with engine.store.reading() as reader:
        everything = list(reader.items())
        items = [item for item in everything if item.label is not None]
        if len(items) < 2:
            raise UsageError(f"{len(items)} items of {engine.path} have labels, too few to measure anything by them")
        features = reader.shards.read(np.array([item.row for item in items], np.int64))
    labels = [str(item.label) for item in items]
    names = sorted({*labels, *(picture.label for picture in pictures or ())})
    numbers = {name: number for number, name in enumerate(names)}
    base = LabelledFeatures(features, np.array([numbers[label] for label in labels], np.int64))
    keys: list[int | str] = [item.id for item in items]
    asked, asked_labels, failed = None, labels, 0
    if pictures is not None:
        keys, asked_labels, vectors = _computed(engine, pictures, progress)
        failed = len(pictures) - len(keys)
        asked = LabelledFeatures(vectors, np.array([numbers[label] for label in asked_labels], np.int64))
    values = metrics.retrieval(base, asked, progress=progress)
    queries = [Query(*row) for row in zip(keys, asked_labels, values["AP"].tolist(), strict=True)]
    queries = sorted((q for q in queries if np.isfinite(q.average_precision)), key=lambda q: q.average_precision)
    order = np.array([numbers[label] for label in asked_labels])
    classes = {}
    for number in np.unique(order):
        part = {name: column[order == number] for name, column in values.items()}
        classes[names[number]] = int((order == number).sum()), _renamed(intervals.with_intervals(part))
    return RetrievalReport(
        engine.meta.model,
        len(items),
        len(everything) - len(items),
        failed,
        metrics.chance(base.labels, None if asked is None else asked.labels),
        _renamed(intervals.with_intervals(values)),
        classes,
        queries,
        len(keys),
    )


def _renamed(scores: dict[str, Interval]) -> dict[str, Interval]:
    return {NAMES.get(name, name): score for name, score in scores.items()}


def _computed(
    engine: Engine, pictures: Sequence[LabelledImage], progress: Progress
) -> tuple[list[int | str], list[str], Any]:
    """Path, label and features of the pictures that can be decoded."""
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
    """Of the k nearest items by an exact search, the share that the index's own search found, over `queries` items.

    kind: of the search that was measured. milliseconds: of one query, alone, by either.
    """

    kind: str
    k: int
    queries: int
    recall: Interval
    milliseconds: float
    exact_milliseconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "k": self.k,
            "queries": self.queries,
            "recall": self.recall._asdict(),
            "milliseconds": self.milliseconds,
            "exact_milliseconds": self.exact_milliseconds,
        }


def measure_recall(
    engine: Engine, k: int = 10, count: int = 200, seed: int = 0, progress: Progress = lambda done, total: None
) -> RecallReport:
    """Compares the index's search with its exact one on random items, each left out of its own answer.

    An item at exactly the distance of the k-th counts as found, whichever of those that tie was named. Raises
    UsageError for an index of fewer than two items.
    """
    import time

    with engine.store.reading() as reader:
        ids, _ = reader.ids()
    if len(ids) < 2:
        raise UsageError(f"{engine.path} has {len(ids)} items, too few to measure a search by them")
    chosen = np.random.default_rng(seed).choice(ids, min(count, len(ids)), replace=False).tolist()
    engine.search_by_id(chosen[0], k)  # opens the files
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
