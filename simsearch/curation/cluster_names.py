"""Names the clusters of a map by their most frequent labels, or by a classifier's guesses for central items."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.map import Cluster, ItemMap
from simsearch.errors import SimsearchError, UsageError
from simsearch.models import classify
from simsearch.search.duplicates import thumbnail

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("auto", "labels", "guesses", "numbers")
"""Sources of names; auto uses labels for clusters where at least half of the items have one, else guesses."""

CENTRAL = 8
"""Number of items of each cluster that are classified."""

MAJORITY = 0.5
"""Limit for adding a second label or class to a name.

Labels: the first has at most this share, and the second at least this ratio to the first. Guesses: the ratio of the
second to the first exceeds this limit.
"""


def name_clusters(
    drawn: ItemMap,
    kind: str = "auto",
    model: Callable[[], Any] | None = None,
    progress: Progress = no_progress,
    *,
    largest: int | None = None,
) -> ItemMap:
    """Returns the map with names for its clusters.

    kind: one of `KINDS`. model: loads the classifier; called only if guesses are needed. With kind auto, clusters keep
    their numbers if the model has no classes or cannot be loaded. progress: called with the numbers of clusters
    classified and to classify. largest: pictures with more pixels are not classified; None for no limit.
    Raises UsageError for an unknown kind, and with kind guesses any error of the model.
    """
    if kind not in KINDS:
        raise UsageError(f"names are {kind!r}", hint=", ".join(KINDS))
    named = list(drawn.clusters)
    if kind in ("auto", "labels"):
        named = [_by_labels(drawn, number, kind == "labels") or named[number] for number in range(len(named))]
    unnamed = [number for number, cluster in enumerate(named) if cluster.source == "number"]
    classifier = _classifier(model, kind) if model is not None and unnamed else None
    if classifier is not None:
        for number, cluster in _guesses(drawn, unnamed, classifier, progress, largest).items():
            named[number] = cluster
    return replace(drawn, clusters=_unique(named))


def check_classifier(model: Any) -> Any:
    """Returns a model's network, without the layer that `--features` adds. Raises UsageError without classes."""
    network = getattr(model, "base", model)
    classify.check_classes(network)
    return network


def _classifier(model: Callable[[], Any], kind: str) -> Any:
    """Returns the loaded classifier; None if `kind` needs none, or if kind auto has no usable one."""
    if kind in ("labels", "numbers"):
        return None
    try:
        return check_classifier(model())
    except SimsearchError as error:
        if kind == "guesses":
            raise
        logging.getLogger("simsearch").warning(f"clusters without labels have numbers for names: {error}")
        return None


def _by_labels(drawn: ItemMap, number: int, few: bool) -> Cluster | None:
    """Returns a cluster named by its items' labels; None if too few items are labelled.

    few: True if one labelled item is enough, False if at least half of the items must have labels.
    """
    places = np.flatnonzero(drawn.cluster_ids == number).tolist()
    labels = [label for place in places if (label := drawn.members[place].item.label)]
    if not labels or (not few and len(labels) < len(places) / 2):
        return None
    (first, count), *others = sorted(Counter(labels).items(), key=lambda pair: (-pair[1], pair[0]))[:2]
    name = first
    if others and count <= MAJORITY * len(labels) and others[0][1] >= count * MAJORITY:
        name = f"{first}, {others[0][0]}"
        count += others[0][1]
    return Cluster(name, len(places), "labels", count / len(labels))


def _guesses(
    drawn: ItemMap, numbers: Sequence[int], model: Any, progress: Progress, largest: int | None
) -> dict[int, Cluster]:
    """Returns clusters named by the mean class probabilities of their central items; none without a readable image."""
    classes, found = model.classes, {}
    for done, number in enumerate(numbers, 1):
        members = [drawn.members[place] for place in central(drawn, number, CENTRAL)]
        few = [each for each in members if largest is None or each.item.width * each.item.height <= largest]
        opened = (thumbnail(member, model.recipe.resize) for member in few)
        images = [image for image in opened if image is not None]
        if images:
            mean = classify.probabilities(model, images).mean(0)
            first, second = np.argsort(-mean, kind="stable")[:2].tolist() if len(mean) > 1 else (0, 0)
            name, share = classes[first], float(mean[first])
            if second != first and mean[second] > MAJORITY * mean[first]:
                name, share = f"{name}, {classes[second]}", share + float(mean[second])
            found[number] = Cluster(name, drawn.clusters[number].size, "guesses", share)
        progress(done, len(numbers))
    return found


def central(drawn: ItemMap, number: int, count: int) -> NDArray[np.int64]:
    """Returns the places of the items that lie nearest to the median of a cluster, the nearest first."""
    places = np.flatnonzero(drawn.cluster_ids == number)
    positions = drawn.positions[places]
    away = ((positions - np.median(positions, axis=0)) ** 2).sum(1)
    nearest: NDArray[np.int64] = places[np.argsort(away, kind="stable")[:count]]
    return nearest


def _unique(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Makes names unique by appending numbers: cat, cat 2, cat 3."""
    taken: set[str] = set()
    named = []
    for cluster in clusters:
        name, number = cluster.name, 1
        while name in taken:
            number += 1
            name = f"{cluster.name} {number}"
        taken.add(name)
        named.append(replace(cluster, name=name))
    return named
