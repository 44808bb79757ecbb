"""Names the clusters of a map after their most frequent labels, or after the classes that a classifier sees."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import suggestions
from simsearch.common.progress import Progress, no_progress
from simsearch.curation.map import Cluster, ItemMap
from simsearch.errors import SimsearchError, UsageError
from simsearch.models import classify
from simsearch.search.duplicates import thumbnail

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("auto", "labels", "guesses", "numbers")
"""The ways to name clusters.

labels: after the labels of a cluster's items. guesses: after the classes that a classifier gives to its images.
numbers: "cluster 1", "cluster 2" and so on. auto: labels for a cluster where at least half of the items have a label,
guesses for every other cluster.
"""

CENTRAL = 8
"""Number of images of a cluster that are classified to name it: those nearest to its centre."""

MAJORITY = 0.5
"""Threshold that decides if a cluster is named after two labels or classes instead of one.

With 0.5, a second label is added if at most half of the labelled items have the first label, and the second label is at
least half as frequent as the first. A second class of a classifier is added if it is more than half as probable as the
first.
"""


def name_clusters(
    drawn: ItemMap,
    kind: str = "auto",
    model: Callable[[], Any] | None = None,
    progress: Progress = no_progress,
    *,
    largest: int | None = None,
) -> ItemMap:
    """Returns a copy of the map whose clusters have names.

    kind: "labels", "guesses" (of the classifier), "numbers", or "auto" (for each cluster, labels or guesses); see
    `KINDS`.
    model: a function that loads the classifier, called only if clusters must be classified. None: such clusters keep
    their numbers as names.
    progress: called with the number of clusters classified so far, and the number of all clusters to classify.
    largest: images of more pixels are not classified; None for no limit.
    If the model has no classes or cannot be loaded, the clusters to classify keep their numbers for the kind "auto";
    for the kind "guesses", the error is raised. Raises UsageError for an unknown kind.
    """
    if kind not in KINDS:
        raise UsageError(f"clusters cannot be named by {kind!r}", hint=suggestions.hint(kind, KINDS))
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
    """Returns the network of a model, if it classifies images. Raises UsageError if the network has no classes.

    model: usually the network itself. A model with other features than fc7 (option `--features`) contains a network,
    which is then returned.
    """
    network = getattr(model, "base", model)
    classify.check_classes(network)
    return network


def _classifier(model: Callable[[], Any], kind: str) -> Any:
    """Loads and returns the classifier; returns None if `kind` is "labels" or "numbers".

    If the classifier cannot be used, the error is raised for "guesses"; for "auto", a warning is logged, and the result
    is None.
    """
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
    """Returns the cluster with this number, named after its items' labels; None if too few items have labels.

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
    """Returns a dict from the number of a cluster to the cluster, named after the most probable class of its images.

    The second class is added to the name if it is nearly as probable (see `MAJORITY`). The class probabilities are
    averaged over the `CENTRAL` items nearest to the centre of a cluster. If none of them can be used, the cluster is
    left out.
    numbers: the numbers of the clusters to name. largest: images of more pixels are not used; None for no limit.
    """
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
    """Returns the `count` items nearest to the median position of a cluster, as indices into `drawn.members`.

    The nearest comes first. If the cluster has fewer items, all are returned. number: the number of the cluster.
    """
    places = np.flatnonzero(drawn.cluster_ids == number)
    positions = drawn.positions[places]
    away = ((positions - np.median(positions, axis=0)) ** 2).sum(1)
    nearest: NDArray[np.int64] = places[np.argsort(away, kind="stable")[:count]]
    return nearest


def _unique(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Returns the clusters with unique names: a repeated name gets a number, as in "cat", "cat 2", "cat 3"."""
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
