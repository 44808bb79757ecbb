"""Planted wrong labels are found, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from simsearch.curation.labels import find_issues, suspicious_labels
from simsearch.errors import UsageError
from tests.curation.conftest import CENTRES, Fill


def test_wrong_labels_are_found(fill: Fill, clusters: NDArray[np.float64]) -> None:
    """Items 4, 8 and 12 lie where the labels say otherwise: one is where three is, and so on."""
    clusters[[3, 7, 11]] += CENTRES[[2, 0, 1]] - CENTRES[[0, 1, 2]]
    found = suspicious_labels(fill(np.maximum(clusters, 0)).engine.snapshots)
    assert sorted((f.member.item.id, f.member.item.label, f.facts["suggested"]) for f in found) == [
        (4, "one", "three"),
        (8, "two", "one"),
        (12, "three", "two"),
    ]
    assert all(0 < finding.facts["confidence"] <= 1 for finding in found)
    assert {member.item.label for member in found[0].evidence} == {found[0].facts["suggested"]}


def test_clean_labels(fill: Fill, clusters: NDArray[np.float64]) -> None:
    assert suspicious_labels(fill(clusters).engine.snapshots) == []


def test_count(fill: Fill, clusters: NDArray[np.float64]) -> None:
    clusters[[3, 7, 11]] += CENTRES[[2, 0, 1]] - CENTRES[[0, 1, 2]]
    assert len(suspicious_labels(fill(np.maximum(clusters, 0)).engine.snapshots, 2)) == 2


def test_fewer_than_two_labels(fill: Fill) -> None:
    with pytest.raises(UsageError, match="1 different label"):
        suspicious_labels(fill(np.ones((1, 3))).engine.snapshots)


def test_rule_of_confident_learning() -> None:
    """Item 2's other label is more probable but does not reach its limit; item 3's does."""
    probable = np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9], [0.2, 0.8], [0.0, 0.0]])
    suggested, margins = find_issues(probable, np.array([0, 0, 0, 1, -1]))
    assert suggested.tolist() == [-1, -1, 1, -1, -1] and margins[2] == pytest.approx(0.8)
