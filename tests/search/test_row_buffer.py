"""Rows measured in float32 where they are read: none that may be among the nearest is left out."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from simsearch.search.faiss_files import OneThread
from simsearch.search.ranking import relative_rounding
from simsearch.search.row_buffer import ROWS, RowBuffer, RowBuffers, within_rounding
from tests.helpers.clusters import clustered


def filled(features: np.ndarray) -> tuple[RowBuffer, int]:
    buffer = RowBuffer(features.shape[1])
    buffer.features[: len(features)] = features
    return buffer, len(features)


@pytest.mark.parametrize("count", [1, 9, 30, ROWS])
def test_the_nearest_by_float64_are_there(count: int) -> None:
    random = np.random.default_rng(0)
    buffer, count = filled(clustered(random, count).astype(np.float16))
    query = clustered(random, 1).astype(np.float32)
    near = buffer.near(query, count, 10)
    distances = np.square(buffer.features[:count].astype(np.float64) - query).sum(1)
    assert set(np.argsort(distances)[:10].tolist()) <= set(near.places.tolist())
    assert near.squared.tolist() == sorted(near.squared.tolist())
    assert np.allclose(near.squared, distances[near.places], rtol=relative_rounding(len(query[0])))
    assert near.best == (near.squared[9] if count > 9 else np.inf)


def test_all_rows_of_equal_distance_are_there() -> None:
    features = np.full((200, 20), 3, np.float16)
    features[:3] = 1
    buffer, count = filled(features)
    near = buffer.near(np.zeros((1, 20), np.float32), count, 10)
    assert len(near.places) == 200 and near.best == 9 * 20


def test_rows_elsewhere_count() -> None:
    buffer, count = filled(np.arange(40, dtype=np.float16).reshape(40, 1))
    others = np.array([0.5, 1.5, 2.5], np.float32)
    near = buffer.near(np.zeros((1, 1), np.float32), count, 4, others)
    assert near.best == 1.5 and near.places.tolist() == [0, 1]


def test_damaged_rows_are_left_out() -> None:
    features = np.ones((20, 8), np.float16)
    features[3], features[4] = np.nan, np.inf
    buffer, count = filled(features)
    near = buffer.near(np.zeros((1, 8), np.float32), count, 18)
    assert sorted(near.places.tolist()) == [n for n in range(20) if n not in {3, 4}]


def test_reach_is_above_the_rounding() -> None:
    rounding = relative_rounding(4096)
    assert 2.4e-4 < rounding < 2.6e-4  # 4096 terms in any order
    assert within_rounding(1.0, rounding) >= (1 + rounding) / (1 - rounding)
    assert within_rounding(0.0, rounding) > 0


def test_each_thread_has_its_own() -> None:
    buffers = RowBuffers(8)
    assert buffers.get() is buffers.get()


def test_faiss_has_its_threads_back() -> None:
    before = faiss.omp_get_max_threads()
    with OneThread():
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before
