"""Labels spread to items without one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from simsearch.curation.tags import spread_labels
from simsearch.errors import UsageError
from tests.curation.conftest import Fill


def test_one_label_for_each_cluster(fill: Fill, clusters: NDArray[np.float64]) -> None:
    found = spread_labels(fill(clusters).engine.snapshots, {1: "one", 2: "two", 3: "three"})
    assert len(found) == 57 and all(f.facts["label"] == f.member.item.label for f in found)
    sure = [finding.facts["confidence"] for finding in found]
    assert sure == sorted(sure, reverse=True) and sure[-1] > 0.5


def test_chain_passes_a_label_on(fill: Fill) -> None:
    """Labels walk along a chain, where the nearest labelled item would be another one."""
    chain = np.array([[n * 1.0, 0.0] for n in range(20)])
    wall = np.array([[n * 1.0, 4.0] for n in range(20)])
    found = spread_labels(fill(np.concatenate([chain, wall])).engine.snapshots, {1: "low", 40: "high"}, k=2)
    assert {f.member.item.id: f.facts["label"] for f in found} == (
        dict.fromkeys(range(2, 21), "low") | dict.fromkeys(range(21, 40), "high")
    )


def test_items_out_of_reach(fill: Fill) -> None:
    islands = np.array([[0.0], [1], [2], [100], [101], [102], [200], [201], [202]])
    found = spread_labels(fill(islands).engine.snapshots, {1: "a", 4: "b"}, k=2)
    assert sorted(finding.member.item.id for finding in found) == [2, 3, 5, 6]


def test_wrong_seeds(fill: Fill, clusters: NDArray[np.float64]) -> None:
    snapshots = fill(clusters).engine.snapshots
    with pytest.raises(UsageError, match="no item 99"):
        spread_labels(snapshots, {99: "a", 1: "b"})
    with pytest.raises(UsageError, match="different labels"):
        spread_labels(snapshots, {1: "a"})
    with pytest.raises(UsageError, match="all items have labels"):
        spread_labels(snapshots)
