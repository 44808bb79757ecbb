"""Names of clusters: labels of the majority, guesses of a classifier, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from simsearch.curation import cluster_names
from simsearch.curation.cluster_names import name_clusters
from simsearch.curation.map import Cluster, ItemMap
from simsearch.errors import UsageError
from simsearch.search.duplicates import Member
from simsearch.storage.reader import Item
from tests.helpers.models import Colours
from tests.helpers.reports import solid


def drawing(*kinds: Sequence[str | None]) -> ItemMap:
    """A map with a cluster of items for each argument: their labels."""
    labels = [label for kind in kinds for label in kind]
    members = [
        Member(Item(n, 0, f"{n}", label, {}, b"", 0, 0, 1, 1, n), f"/{n}", 0.0, None)  # type: ignore[arg-type]
        for n, label in enumerate(labels)
    ]
    ids = np.repeat(np.arange(len(kinds)), [len(kind) for kind in kinds]).astype(np.int32)
    positions = np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 2)
    numbered = [Cluster(f"cluster {number}", len(kind)) for number, kind in enumerate(kinds, 1)]
    none = np.zeros((len(labels), 0))
    return ItemMap(members, positions, ids, numbered, none.astype(np.int64), none)


class Classifier(Colours):
    """Always sees a hat, and nearly as much a cap."""

    classes = ("cap", "hat", "shoe")

    def __init__(self, second: float) -> None:
        super().__init__()
        self.second = second

    def logits(self, pixels: Any) -> Any:
        return np.log(np.tile([self.second, 0.5, 1e-3], (len(pixels), 1)))


def named(drawn: ItemMap, *arguments: Any) -> list[tuple[str, str]]:
    return [(cluster.name, cluster.source) for cluster in name_clusters(drawn, *arguments).clusters]


def test_labels_of_the_majority() -> None:
    drawn = drawing(["cat"] * 7 + ["dog"] * 3, ["dog", "cat"], ["cat"] * 3, ["dog", None], [None] * 3 + ["ape"])
    assert named(drawn) == [
        ("cat", "labels"),
        ("cat, dog", "labels"),
        ("cat 2", "labels"),
        ("dog", "labels"),
        ("cluster 5", "number"),
    ]
    assert [cluster.share for cluster in name_clusters(drawn).clusters] == [0.7, 1.0, 1.0, 1.0, None]
    assert named(drawn, "labels")[4] == ("ape", "labels")
    assert {source for _, source in named(drawn, "numbers")} == {"number"}


def test_guesses_where_labels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_names, "thumbnail", lambda member, side: solid())
    drawn = drawing(["cat"] * 3, [None] * 3, [None] * 2)
    assert named(drawn, "auto", lambda: Classifier(0.1)) == [
        ("cat", "labels"),
        ("hat", "guesses"),
        ("hat 2", "guesses"),
    ]
    assert named(drawn, "guesses", lambda: Classifier(0.4))[0] == ("hat, cap", "guesses")
    assert named(drawing(["a"]), "auto", lambda: pytest.fail("no model is needed")) == [("a", "labels")]


def test_pictures_that_are_gone_and_models_without_classes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster_names, "thumbnail", lambda member, side: None)
    drawn = drawing([None] * 3)
    assert named(drawn, "auto", lambda: Classifier(0.1)) == [("cluster 1", "number")]
    assert named(drawn, "auto", Colours) == [("cluster 1", "number")]
    assert "numbers for names: model colours has no classes" in caplog.text
    with pytest.raises(UsageError, match="has no classes"):
        named(drawn, "guesses", Colours)


def test_central_items_are_those_in_the_middle() -> None:
    drawn = drawing(["a"] * 9)
    assert cluster_names.central(drawn, 0, 3).tolist()[0] == 4
