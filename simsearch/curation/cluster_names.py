"""Names of a map's clusters: the label that most of a cluster's items have, or what a classifier sees in some."""

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
"""Where names come from; auto takes labels for clusters where most items have one, guesses for others."""

CENTRAL = 8
"""Items of a cluster that the classifier sees."""

MAJORITY = 0.5
"""Share of a label, or ratio of the second guess to the first, from which one word is enough for a name."""


def name_clusters(
    drawn: ItemMap,
    kind: str = "auto",
    model: Callable[[], Any] | None = None,
    progress: Progress = no_progress,
    *,
    largest: int | None = None,
) -> ItemMap:
    """Returns the map with names of its clusters.

    kind: one of `KINDS`. model: loads the classifier; it is called only if guesses are needed. With auto, a model that
    has no classes or cannot be loaded leaves numbers. progress: called with the number of clusters guessed at.
    largest: the most pixels of a picture to guess at; None for any.
    Raises UsageError for an unknown kind, and with guesses what the model raises.
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
    """Returns the network of a model, which is below the recipe of `--features`. Raises UsageError without classes."""
    network = getattr(model, "base", model)
    classify.check_classes(network)
    return network


def _classifier(model: Callable[[], Any], kind: str) -> Any:
    """Loads the classifier; returns None if names do without one."""
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
    """Names a cluster by its items' labels. few: True if any label will do. None if most items have none."""
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
    """Names clusters by the classes' mean probabilities for their central items, except those without a picture."""
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
    """Numbers names that several clusters have: cat, cat 2, cat 3."""
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
