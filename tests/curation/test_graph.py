"""The nearest neighbours of all items."""

from __future__ import annotations

import numpy as np
import pytest

from simsearch.curation import graph
from simsearch.errors import UsageError
from tests.curation.conftest import Fill


def test_neighbours_are_those_of_all_pairs(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "BLOCK", 16)
    features = np.random.default_rng(0).integers(0, 3, (70, 5)).astype(np.float16)  # many ties and copies
    filler = fill(features)
    filler.edit([3, 50], features[[3, 50]] + 1)
    filler.remove([1, 20, 70])
    features[[2, 49]] = features[[3, 50]] + 1
    left = np.delete(features.astype(float), [0, 19, 69], axis=0)
    with graph.neighbour_graph(filler.engine.snapshots, 7) as near:
        assert [item.id for item in near.collection.items] == [n for n in range(1, 71) if n not in (1, 20, 70)]
        away = np.linalg.norm(left[:, None] - left[None], axis=2)
        np.fill_diagonal(away, np.inf)
        assert (near.places == np.argsort(away, axis=1, kind="stable")[:, :7]).all()
        assert np.allclose(near.distances, np.sort(away, axis=1)[:, :7])


def test_few_items(fill: Fill) -> None:
    with graph.neighbour_graph(fill(np.ones((2, 3))).engine.snapshots, 10) as near:
        assert near.places.tolist() == [[1], [0]] and near.distances.tolist() == [[0], [0]]
        assert [member.item.id for member in near.evidence(0, 5)] == [2]
    with graph.neighbour_graph(fill(np.ones((1, 3)), "one").engine.snapshots, 10) as near:
        assert near.places.tolist() == [[-1]] and near.evidence(0, 5) == []


def test_wrong_arguments(fill: Fill) -> None:
    with pytest.raises(UsageError), graph.neighbour_graph(fill(np.ones((2, 3))).engine.snapshots, 0):
        pass
    with (
        pytest.raises(UsageError, match="no items"),
        graph.neighbour_graph(fill(np.ones((0, 3)), "empty").engine.snapshots, 1),
    ):
        pass
