"""Distances in float64, whatever the intermediate results of other queries and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from simsearch.search.ranking import Neighbours, measured


@pytest.mark.parametrize("rows", [1, 10, 63, 64, 65, 200])
def test_distances_are_those_of_float64(rows: int) -> None:
    random = np.random.default_rng(rows)
    queries = random.standard_normal((6, 4096), np.float32)
    features = random.standard_normal((6, rows, 4096)).astype(np.float16)
    numbers = np.arange(rows)

    def near(place: int) -> Neighbours:
        return measured(queries[place], numbers, features[place], rows)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(near, [*range(6)] * 4))
    for place, result in zip([*range(6)] * 4, found, strict=True):
        expected = np.linalg.norm(features[place].astype(np.float64) - queries[place], axis=1)
        assert np.array_equal(result.rows, np.argsort(expected, kind="stable"))
        assert np.allclose(result.distances, np.sort(expected), rtol=1e-14, atol=0)


def test_widths_may_change_from_query_to_query() -> None:
    for rows, dimension in ((3, 8), (40, 512), (2, 4096), (3, 8)):
        features = np.arange(rows * dimension, dtype=np.float16).reshape(rows, dimension) / np.float16(64)
        result = measured(np.zeros(dimension, np.float32), np.arange(rows), features, 1)
        assert result.rows[0] == 0
        assert result.distances[0] == pytest.approx(np.linalg.norm(features[0].astype(np.float64)), rel=1e-15)
