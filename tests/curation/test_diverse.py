"""The choice of a few items that cover all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from simsearch.curation import diverse as module
from simsearch.curation.diverse import diverse
from simsearch.errors import UsageError
from tests.curation.conftest import Fill


@pytest.mark.parametrize("seed", range(5))
def test_radius_is_at_most_twice_the_best(fill: Fill, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(module, "BLOCK", 5)
    features = np.random.default_rng(seed).normal(0, 3, (14, 3)).astype(np.float16)
    away = np.linalg.norm(features[:, None].astype(float) - features[None].astype(float), axis=2)
    found = diverse(fill(features).engine.snapshots, 4)
    places = [finding.member.item.id - 1 for finding in found]
    for count, finding in enumerate(found, 1):
        assert finding.facts["radius"] == pytest.approx(away[:, places[:count]].min(1).max(), rel=1e-5)
        best = min(away[:, list(each)].min(1).max() for each in itertools.combinations(range(14), count))
        assert best <= finding.facts["radius"] * (1 + 1e-6) and finding.facts["radius"] <= 2 * best * (1 + 1e-6)


def test_one_of_each_cluster(fill: Fill, clusters: NDArray[np.float64]) -> None:
    found = diverse(fill(clusters).engine.snapshots, 3)
    assert sorted(finding.member.item.label or "" for finding in found) == ["one", "three", "two"]


def test_copies_are_not_chosen(fill: Fill) -> None:
    found = diverse(fill(np.eye(3).repeat(4, 0)).engine.snapshots, 12)
    assert len(found) == 3 and found[-1].facts["radius"] == 0


def test_wrong_count(fill: Fill) -> None:
    with pytest.raises(UsageError):
        diverse(fill(np.eye(3)).engine.snapshots, 0)
