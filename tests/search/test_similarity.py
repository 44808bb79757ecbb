"""The scale of similarities: measured, recorded, carried along, estimated where it is not recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simsearch
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.indexing.merge import merge_indexes
from simsearch.search import similarity
from simsearch.search.exact import FlatIndex
from simsearch.search.results import word_of
from simsearch.search.similarity import Scale
from tests.helpers.models import Colours


def medians(features: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The definition, pair by pair: nearest neighbours and random pairs of (n, D) features."""
    x = features.astype(np.float64)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    pairs = apart[np.triu_indices(len(x), 1)]
    np.fill_diagonal(apart, np.inf)
    return float(np.median(apart.min(1))), float(np.median(pairs))


@pytest.fixture
def index(photos: Path, tmp_path: Path, colours: Colours) -> Path:
    simsearch.build(photos, tmp_path / "index", colours).close()
    return tmp_path / "index"


def test_scale_is_linear_between_its_points() -> None:
    scale = Scale(10.0, 30.0)
    assert scale.similarities([0, 5, 10, 20, 30, 99]) == [1, 0.75, 0.5, 0.25, 0, 0]
    assert Scale(8.0, 8.0).similarities([0, 4, 7.99, 8]) == pytest.approx([1, 0.75, 0.5, 0], abs=1e-3)
    assert Scale(9.0, 8.0).similarities([0, 8]) == [1, 0]
    assert Scale(0.0, 0.0).similarities([0, 1e-9, 5]) == [1, 0, 0]


def test_words() -> None:
    assert [word_of(s) for s in (1, 0.75, 0.74, 0.5, 0.49, 0.3, 0.29, 0)] == [
        *("copy", "copy", "close", "close"),
        *("similar", "similar", "weak", "weak"),
    ]


def test_scale_is_that_of_the_definition(index: Path, colours: Colours) -> None:
    with simsearch.open(index, model=colours) as engine:
        with engine.reading() as reader:
            nearest, random = medians(reader.shards.read(reader.rows()))
        assert (engine.scale.nearest, engine.scale.random) == pytest.approx((nearest, random))
        for match in engine.search_by_id(1, 23):
            expected = np.interp(match.distance, [0, nearest, random], [1, 0.5, 0])
            assert match.similarity == pytest.approx(float(expected))
            assert match.word == word_of(match.similarity)
    recorded = json.loads((index / "meta.json").read_text())["similarity"]
    assert recorded == {"nearest": pytest.approx(nearest), "random": pytest.approx(random), "items": 24, "rows": 24}


class Rows:
    """(n, D) features in place of an index's files."""

    def __init__(self, features: np.ndarray[Any, Any]) -> None:
        self.features, self.rows, self.dimension = features.astype(np.float16), len(features), features.shape[1]

    def read(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(self.features[rows])

    def search(self, queries: np.ndarray[Any, Any], k: int, permitted: Any) -> list[Any]:
        from simsearch.search.ranking import rank_exact

        rows = np.arange(self.rows)
        return [rank_exact(query, rows, self.features, k) for query in queries]


@pytest.mark.parametrize("copies", [1, 3])
def test_samples_agree_with_the_definition(copies: int) -> None:
    """Measured by samples of a larger index, and estimated from fewer items; copies do not count as neighbours."""
    random = np.random.default_rng(5)
    centres = 4 * random.normal(size=(300, 12))
    x = np.repeat(centres[random.integers(300, size=2400)] + random.normal(size=(2400, 12)), copies, 0)
    nearest, pairs = medians(x[::copies])
    flat = Rows(x)
    measured = similarity.measure(flat, np.arange(len(x)))
    assert measured is not None
    assert (measured.nearest, measured.random) == pytest.approx((nearest, pairs), rel=0.1)
    estimated = similarity.estimate(flat, np.arange(len(x)))
    assert estimated is not None
    assert (estimated.nearest, estimated.random) == pytest.approx((nearest, pairs), rel=0.25)


def test_damaged_rows_do_not_count() -> None:
    random = np.random.default_rng(3)
    for count in (400, 3000):
        x = random.normal(size=(count, 6))
        x[::50] = np.inf
        x[7] = np.nan
        sound = x[np.isfinite(x).all(1)]
        for made in (similarity.measure, similarity.estimate):
            found, right = made(Rows(x), np.arange(count)), made(Rows(sound), np.arange(len(sound)))
            assert found is not None and right is not None
            assert (found.nearest, found.random) == pytest.approx((right.nearest, right.random), rel=0.2)
        assert similarity.quantiles(x.astype(np.float16)) == similarity.quantiles(sound.astype(np.float16))


def test_equal_rows_count_once() -> None:
    features = np.array([[0, 1, 0], [3, 0, 0], [-0.0, 1, 0], [0, 0, 9], [3, 0, -0.0]], np.float16)
    x = np.unique(features, axis=0).astype(np.float64)
    pairs = [np.linalg.norm(a - b) for n, a in enumerate(x) for b in x[n + 1 :]]
    assert len(x) == 3
    assert similarity.median(similarity.quantiles(features)) == pytest.approx(np.median(pairs), rel=0.05)
    assert similarity._of_pairs(features) == similarity._of_pairs(x.astype(np.float16))


def test_too_few_different_items_have_no_scale() -> None:
    for features in (np.zeros((0, 3)), np.ones((9, 3)), np.repeat(np.eye(2), 300, 0), np.ones((3000, 3))):
        for made in (similarity.measure, similarity.estimate):
            assert made(Rows(features), np.arange(len(features))) is None
    assert Scale.of({}, ()) == Scale(0, 0)
    assert Scale.of({}, (2.0,) * similarity.POINTS) == Scale(1, 2)


def test_old_index_is_estimated_and_then_recorded(index: Path, photos: Path, colours: Colours) -> None:
    meta = json.loads((index / "meta.json").read_text())
    recorded = meta.pop("similarity")
    (index / "meta.json").write_text(json.dumps(meta))
    with simsearch.open(index, model=colours) as engine:
        assert (engine.scale.nearest, engine.scale.random) == pytest.approx((recorded["nearest"], recorded["random"]))
    simsearch.build(photos, index, colours).close()
    assert json.loads((index / "meta.json").read_text())["similarity"] == recorded


def test_merged_index_is_measured_anew(index: Path, tmp_path: Path, colours: Colours) -> None:
    from tests.helpers.pictures import draw

    for n in range(9):
        draw(tmp_path / "more" / f"{n}.png", 300 + n)
    with (
        simsearch.build(tmp_path / "more", tmp_path / "other", colours) as other,
        Engine(index, model=colours) as engine,
    ):
        merge_indexes(engine.index, other.index)
        with engine.reading() as reader:
            expected = medians(reader.shards.read(reader.rows()))
        assert (engine.scale.nearest, engine.scale.random) == pytest.approx(expected)
        assert engine.meta.similarity["items"] == 33


def test_emptied_index_answers(index: Path, colours: Colours) -> None:
    with Engine(index, model=colours) as engine:
        engine.remove(["*"])
        assert engine.search_by_vector(np.zeros(12), 3) == []


def test_min_similarity(index: Path, colours: Colours) -> None:
    with Engine(index, model=colours) as engine:
        every = engine.search_by_id(1, 23)
        for least in (0, 0.25, 0.5, 1):
            found = engine.search_by_id(1, 23, min_similarity=least)
            assert found == [match for match in every if match.similarity >= least]
        limit = every[5].similarity
        assert len(engine.search_by_id(1, 23, min_similarity=limit, max_distance=every[2].distance)) == 3
        for bad in (-0.1, 1.1, float("nan"), "0.5", True):
            with pytest.raises(UsageError, match="from 0 to 1"):
                engine.search_by_id(1, min_similarity=bad)  # type: ignore[arg-type]


def test_damaged_scale_is_refused(index: Path) -> None:
    meta = json.loads((index / "meta.json").read_text())
    for bad in ({"nearest": -1, "random": 2}, {"nearest": 1}, {"nearest": "1", "random": 2}):
        (index / "meta.json").write_text(json.dumps({**meta, "similarity": bad}))
        with pytest.raises(simsearch.errors.IndexDamagedError, match="similarity"):
            Engine(index, model=Colours())


def test_measuring_reads_the_files(index: Path, colours: Colours) -> None:
    with Engine(index, model=colours) as engine, engine.reading() as reader:
        found = similarity.measure(FlatIndex(reader.shards, 24), reader.rows())
    assert found is not None
    assert replace(found) == Scale(engine.meta.similarity["nearest"], engine.meta.similarity["random"])


def test_known_table_replaces_the_distances_of_random_pairs() -> None:
    random = np.random.default_rng(4)
    features = random.standard_normal((700, 16)).astype(np.float16)
    reader = Rows(features)
    table = similarity.quantiles(features)
    alone, given = similarity.measure(reader, np.arange(700)), similarity.measure(reader, np.arange(700), table)
    assert alone is not None and given is not None
    assert given.nearest == alone.nearest
    assert given.random == pytest.approx(similarity.median(table)) == pytest.approx(alone.random, rel=0.02)
    many = np.repeat(features[:30], 30, axis=0)  # the nearest neighbours that are found are all copies
    found = similarity.measure(Rows(many), np.arange(900), similarity.quantiles(many))
    assert found is not None
    assert (found.nearest, found.random) == pytest.approx(medians(features[:30]))
    two = np.repeat(features[:2], 350, axis=0)
    assert similarity.measure(Rows(two), np.arange(700), similarity.quantiles(two)) is None
