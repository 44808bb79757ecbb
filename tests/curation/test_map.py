"""Maps: similar items side by side, the same each time, and what stands for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simsearch.curation import layout
from simsearch.curation.map import LEAST, draw_map, read_neighbours, representatives
from simsearch.errors import MissingExtraError, UsageError
from tests.curation.conftest import Fill


@pytest.fixture
def installed() -> None:
    pytest.importorskip("openTSNE", reason="the [map] extra is not installed")


def test_kinds_lie_apart(fill: Fill, clusters: NDArray[np.float64], installed: None) -> None:
    engine = fill(clusters).engine
    drawn = engine.map()
    assert drawn.positions.shape == (60, 2) and drawn.positions.dtype == np.float32
    np.testing.assert_allclose(drawn.positions.mean(0), 0, atol=1e-4)
    assert drawn.ids.tolist() == list(range(1, 61))
    kinds = np.arange(60) % 3
    away = ((drawn.positions[:, None] - drawn.positions) ** 2).sum(2)
    np.fill_diagonal(away, np.inf)
    assert (kinds[away.argmin(1)] == kinds).all()
    assert [(c.name, c.size, c.source, c.share) for c in drawn.clusters] == [
        (drawn.members[np.flatnonzero(drawn.cluster_ids == number)[0]].item.label, 20, "labels", 1.0)
        for number in range(3)
    ]


def test_the_same_map_twice(fill: Fill, clusters: NDArray[np.float64], installed: None, monkeypatch: Any) -> None:
    snapshots = fill(clusters).engine.snapshots
    first = draw_map(read_neighbours(snapshots))
    monkeypatch.setattr(layout, "available_cores", lambda: 3)
    second = draw_map(read_neighbours(snapshots))
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.cluster_ids, second.cluster_ids)
    other = draw_map(read_neighbours(snapshots, seed=1), seed=1)
    assert not np.array_equal(first.positions, other.positions)


def test_large_maps_use_the_grid(fill: Fill, clusters: NDArray[np.float64], installed: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(layout, "FEW", 10)
    drawn = draw_map(read_neighbours(fill(clusters).engine.snapshots), 3)
    kinds = np.arange(60) % 3
    assert all(len(set(kinds[drawn.cluster_ids == number])) == 1 for number in range(3))


def test_neighbours_are_exact(fill: Fill, clusters: NDArray[np.float64], installed: None) -> None:
    near = read_neighbours(fill(clusters).engine.snapshots, k=5)
    features = np.asarray(clusters, np.float16).astype(np.float64)
    away = np.sqrt(((features[:, None] - features) ** 2).sum(2))
    np.fill_diagonal(away, np.inf)
    np.testing.assert_array_equal(near.places, np.argsort(away, 1, kind="stable")[:, :5])
    np.testing.assert_allclose(near.distances, np.sort(away, 1)[:, :5], rtol=1e-5)


@pytest.mark.parametrize("features", [np.ones((12, 4)), np.arange(12.0)[:, None], np.zeros((LEAST, 3))])
def test_copies_and_lines(fill: Fill, features: NDArray[Any], installed: None) -> None:
    drawn = fill(features).engine.map()
    assert np.isfinite(drawn.positions).all() and sum(c.size for c in drawn.clusters) == len(features)


def test_progress(fill: Fill, clusters: NDArray[np.float64], installed: None) -> None:
    seen: list[tuple[int, int]] = []
    fill(clusters).engine.map(progress=lambda done, total: seen.append((done, total)))
    assert (60, 60) in seen and seen[-1] == (layout.EARLY + layout.ITERATIONS,) * 2


def test_wrong_arguments(fill: Fill, clusters: NDArray[np.float64], installed: None) -> None:
    with pytest.raises(UsageError, match="has 9 items, and a map needs at least 10"):
        fill(clusters[:9], "few").engine.map()
    engine = fill(clusters).engine
    with pytest.raises(UsageError, match="clusters is 0"):
        engine.map(clusters=0)
    with pytest.raises(UsageError, match="with parquet only"):
        engine.export("unused", "npy", drawn=engine.map())
    with pytest.raises(UsageError, match="'words'"):
        engine.map(names="words")  # type: ignore[arg-type]


def test_missing_extra_is_said_before_any_work(fill: Fill, clusters: NDArray[np.float64], monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openTSNE", None)
    with pytest.raises(MissingExtraError, match=r"a map needs the \[map\] extra"):
        fill(clusters).engine.map(progress=lambda done, total: pytest.fail("it searched"))


def test_representatives_cover_the_map() -> None:
    positions = np.random.default_rng(0).uniform(0, 1, (4000, 2)).astype(np.float32)
    chosen = representatives(positions, 256)
    assert len(chosen) == len(set(chosen.tolist())) == 256
    for count, side in [(4, 2), (16, 4), (64, 8)]:
        cells = {tuple(cell) for cell in (positions[chosen[:count]] * side).astype(int).tolist()}
        assert len(cells) == count
    assert sorted(representatives(positions[:50], 100).tolist()) == list(range(50))
    assert len(representatives(np.zeros((30, 2), np.float32), 20)) == 20


@pytest.mark.parametrize("count", [150, 600, 2000])
def test_any_number_of_representatives_cover_the_map_evenly(count: int) -> None:
    positions = np.random.default_rng(3).random((20_000, 2)).astype(np.float32)
    chosen = positions[representatives(positions, 4000)[:count]]
    quarters = np.histogram2d(chosen[:, 0], chosen[:, 1], bins=2)[0] / count
    assert np.abs(quarters - 0.25).max() < 0.06
