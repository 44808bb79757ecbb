"""Planted strangers are found."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from simsearch.curation.outliers import outliers
from simsearch.errors import UsageError
from tests.curation.conftest import Fill


def test_stranger_comes_first(fill: Fill, clusters: NDArray[np.float64]) -> None:
    stranger = np.full((1, 6), 7.0)
    found = outliers(fill(np.concatenate([clusters, stranger])).engine.snapshots, 3)
    assert found[0].member.item.id == 61 and found[0].facts["score"] > 3 * found[1].facts["score"]
    assert len(found) == 3 and len(found[0].evidence) == 5
    distances = [member.distance for member in found[0].evidence]
    assert distances == sorted(distances) and distances[0] > 5


def test_wide_cluster_has_no_outliers(fill: Fill) -> None:
    """A stranger beside a dense cluster is nearer to it than the members of a wide one are to each other."""
    random = np.random.default_rng(1)
    wide, dense = random.normal(50, 8, (40, 6)), random.normal(200, 0.1, (40, 6))
    found = outliers(fill(np.concatenate([wide, dense, dense[:1] + 2])).engine.snapshots, 1)
    assert found[0].member.item.id == 81


def test_copies_make_nobody_an_outlier(fill: Fill, clusters: NDArray[np.float64]) -> None:
    near = clusters[:1] + 0.1
    found = outliers(fill(np.concatenate([clusters, clusters[:1].repeat(15, 0), near])).engine.snapshots, 1)
    assert found[0].facts["score"] < 4


def test_wrong_arguments(fill: Fill, clusters: NDArray[np.float64]) -> None:
    snapshots = fill(clusters).engine.snapshots
    for count, k in [(0, 5), (5, 0)]:
        with pytest.raises(UsageError):
            outliers(snapshots, count, k)
    assert len(outliers(snapshots, 1000)) == 60
