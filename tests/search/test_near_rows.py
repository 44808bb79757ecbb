"""Which pairs of near rows a judge is asked about."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from simsearch.common.progress import no_progress
from simsearch.search import near_rows


class Rows:
    """Features in memory."""

    def __init__(self, features: NDArray[np.float16]) -> None:
        self.features, self.rows = features, len(features)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        return self.features[rows]


def asked(features: NDArray[np.float16], order: NDArray[np.int64]) -> set[tuple[int, int]]:
    """The pairs of rows that a judge that agrees to none is asked about, of features stored in this order."""
    pairs: set[tuple[int, int]] = set()

    def judge(places: NDArray[np.int64], distances: NDArray[np.float64]) -> NDArray[np.bool_]:
        pairs.update((min(pair), max(pair)) for pair in order[places].tolist())
        return np.zeros(len(places), bool)

    flat = near_rows.JoinedRows([Rows(features[order])])  # type: ignore[list-item]
    near_rows.linked(flat, np.arange(len(order)), 1e3, no_progress, True, judge)
    return pairs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nearest_of_each_row_in_any_order(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """All rows are within reach, in many blocks: the judge sees the nearest of each, whatever block they are in."""
    monkeypatch.setattr(near_rows, "BLOCK", 16)
    monkeypatch.setattr(near_rows, "WINDOW", 32)
    random = np.random.default_rng(seed)
    features = random.normal(0, 1, (300, 8)).astype(np.float16)
    x = features.astype(np.float64)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    nearest = distances.argsort(1)[:, 1 : near_rows.NEAREST + 1]
    wanted = {(min(a, b), max(a, b)) for a, row in enumerate(nearest.tolist()) for b in row}
    for order in (np.arange(300), random.permutation(300)):
        assert asked(features, order) == wanted
