"""Searches with a sketch give what a float64 scan gives, for any data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from simsearch.cli.main import main
from simsearch.search import bounds
from simsearch.search.exact import FlatIndex
from simsearch.search.narrow_codes import expected_rows
from simsearch.search.ranking import Neighbours
from simsearch.search.sketch import Sketch
from simsearch.search.sketch_files import SketchFacts
from tests.helpers.clusters import clustered
from tests.helpers.filler import Filler
from tests.helpers.scan import Scan, agree
from tests.helpers.sketched import allow_small, loaded, refresh

if TYPE_CHECKING:
    from numpy.typing import NDArray

N = 500


def copies(random: np.random.Generator) -> NDArray[Any]:
    return np.repeat(clustered(random, N // 10), 10, axis=0)


def constant(random: np.random.Generator) -> NDArray[Any]:
    return np.full((N, 40), 7)


def constant_rows(random: np.random.Generator) -> NDArray[Any]:
    return np.repeat(random.integers(0, 60_000, (N, 1)), 33, axis=1)


def huge(random: np.random.Generator) -> NDArray[Any]:
    return random.choice([0, 1, 65504, -65504], (N, 70))


def one_huge(random: np.random.Generator) -> NDArray[Any]:
    features = clustered(random, N)
    features[N // 2] = 65504
    return features


def subnormal(random: np.random.Generator) -> NDArray[Any]:
    return random.integers(0, 9, (N, 50)) * 2.0**-24


def unstructured(random: np.random.Generator) -> NDArray[Any]:
    return random.normal(0, 1, (N, 300))


def far_away(random: np.random.Generator) -> NDArray[Any]:
    return 30_000 + 16 * random.integers(0, 3, (N, 60))


def narrow(random: np.random.Generator) -> NDArray[Any]:
    return random.normal(0, 1, (N, 2))


def single(random: np.random.Generator) -> NDArray[Any]:
    return random.integers(0, 50, (N, 1))


def groups(random: np.random.Generator) -> NDArray[Any]:
    return clustered(random, N)


KINDS: list[Callable[[np.random.Generator], NDArray[Any]]] = [
    groups,
    copies,
    constant,
    constant_rows,
    huge,
    one_huge,
    subnormal,
    unstructured,
    far_away,
    narrow,
    single,
]


@pytest.mark.parametrize("draw", KINDS, ids=lambda draw: draw.__name__)
def test_any_data_as_a_float64_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Any) -> None:
    allow_small(monkeypatch)
    monkeypatch.setattr("simsearch.search.exact.DIRECT", 10)
    random = np.random.default_rng(1)
    filler = Filler(tmp_path / "index", (features := draw(random).astype(np.float16)).shape[1], 128)
    filler.add(features)
    filler.remove((random.choice(N, 50, replace=False) + 1).tolist())
    refresh(filler.engine)
    with filler.engine as engine:
        assert loaded(engine) is not None or features.shape[1] == 1
        scan = Scan.of(engine, tmp_path / "out")
        stored = scan.features[random.integers(0, len(scan.items), 6)].astype(np.float32)
        scale = np.abs(stored).max() + 1e-6
        queries = np.concatenate([stored, 1.01 * stored, stored + random.normal(0, scale / 50, stored.shape)])
        queries = np.concatenate([queries, [0 * stored[0], 1e3 * stored[0] + 1e-7, -stored[1]]]).astype(np.float32)
        for k in (1, 10, 60):
            together = engine.search_by_vectors(queries, k)
            for query, found in zip(queries, together, strict=True):
                expected = scan.search(query, k)
                agree(found, expected)
                agree(engine.search_by_vector(query, k), expected)
        where = engine.search_by_vectors(queries, 9, where=["label!=two"])
        for query, found in zip(queries, where, strict=True):
            agree(found, scan.search(query, 9, lambda item: item["label"] != "two"))
            agree(engine.search_by_vector(query, 9, where=["label!=two"]), [(m.id, m.distance) for m in found])


@pytest.mark.parametrize("nq", [1, 12])
def test_few_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nq: int) -> None:
    allow_small(monkeypatch)
    random = np.random.default_rng(2)
    filler = Filler(tmp_path / "index", 48)
    filler.add(clustered(random, 3000))
    refresh(filler.engine)
    filler.add(clustered(random, 3))  # fewer than go into the sketch at once
    refresh(filler.engine)
    read: list[int] = []

    def counted(self: FlatIndex, rows: NDArray[np.int64], out: Any = None) -> Any:
        read.append(len(rows))
        found = self.shards.read(rows)
        if out is not None:
            out[...] = found
        return found

    def no_scan(*_: object) -> list[Neighbours]:
        raise AssertionError

    monkeypatch.setattr(FlatIndex, "read", counted)
    monkeypatch.setattr(FlatIndex, "_scan", no_scan)
    monkeypatch.setattr(FlatIndex, "_multiply", no_scan)
    with filler.engine as engine:
        found = engine.search_by_vectors(clustered(random, nq).astype(np.float32), 5)
        assert all(len(matches) == 5 for matches in found)
        assert sum(read) < 0.2 * 3000 * nq
        facts = engine.info()["search"]["exact"]
    assert facts["proved"] and facts["rows"] == 3000 and facts["excluded"] > 0.8
    shown = CliRunner().invoke(main, ["info", "-i", str(tmp_path / "index")]).output
    assert f"proved exact: {100 * facts['excluded']:.2f} % of the items are excluded without reading" in shown


@pytest.mark.parametrize("query", [np.nan, np.inf, 1e30])
def test_numbers_that_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: float) -> None:
    allow_small(monkeypatch)
    filler = Filler(tmp_path / "index", 48)
    filler.add(clustered(np.random.default_rng(3), 400))
    refresh(filler.engine)
    with filler.engine as engine:
        sketch = loaded(engine)
        assert sketch is not None

        def read(rows: NDArray[np.int64], out: NDArray[np.float16]) -> NDArray[np.float16]:
            out[...] = engine.shards.read(rows)
            return out

        wrong = np.full((1, 48), query, np.float32)
        right = engine.shards.read(np.arange(12)).astype(np.float32)
        assert sketch.search(wrong, 3, None, read) == [None]
        among = sketch.search(np.concatenate([right[:5], wrong, right[5:]]), 3, None, read)
        alone = [sketch.search(each[None], 3, None, read)[0] for each in right]
    assert among.pop(5) is None
    for one, other in zip(among, alone, strict=True):
        assert one is not None and other is not None
        assert one.rows.tolist() == other.rows.tolist() and one.distances.tolist() == other.distances.tolist()


def test_damaged_rows_are_never_excluded() -> None:
    random = np.random.default_rng(4)
    features = clustered(random, 400)
    axes = np.linalg.qr(random.normal(0, 1, (48, 31)))[0].T.astype(np.float32)
    defect = bounds.defect_of(axes)
    parts = bounds.project(features, np.zeros(48, np.float32), axes)
    grids = tuple(bounds.make_grid(*parts, d, defect) for d in (15, 31))
    made = bounds.Bounds(np.zeros(48, np.float32), axes, grids, defect)
    features[7, 3], features[8, 3] = np.inf, np.nan
    narrow, wide = made.encode(features)
    assert np.isinf(narrow.errors[[7, 8]]).all() and np.isfinite(np.delete(narrow.errors, [7, 8])).all()
    errors = np.stack([narrow.errors, wide.errors], 1).astype(np.float32)
    assert Sketch(made, narrow.codes, wide.codes, errors, 10).odd >= 2


@pytest.mark.parametrize("width", [15, 31])
def test_bound_is_below_every_distance(width: int) -> None:
    random = np.random.default_rng(5)
    features = np.concatenate([clustered(random, 300), 100 * clustered(random, 5)])
    queries = np.concatenate([features[:20], 3 * features[20:30], -features[30:40]]).astype(np.float32)
    mean = features[:300].mean(0, dtype=np.float64).astype(np.float32)
    axes = np.linalg.qr(random.normal(0, 1, (48, width)))[0].T.astype(np.float32)
    axes *= 1 + random.uniform(-1e-4, 1e-4, (width, 1)).astype(np.float32)  # not quite orthonormal
    defect = bounds.defect_of(axes)
    grid = bounds.make_grid(*bounds.project(features[:300], mean, axes), width, defect)
    made = bounds.Bounds(mean, axes, (grid,), defect)
    assert defect > 1e-5
    rows, asked = made.encode(features)[0], made.encode(queries, query=True)[0]
    for query, code, error in zip(queries.astype(np.float64), asked.codes, asked.errors, strict=True):
        distances = np.linalg.norm(features.astype(np.float64) - query, axis=1)
        squares = bounds.squares(rows.codes, code)
        limits = [grid.reach(d, defect, error + e) for d, e in zip(distances, rows.errors, strict=True)]
        assert (squares <= limits).all()
        assert np.mean(grid.step * np.sqrt(squares) > 0.3 * distances) > 0.5


def test_number_of_rows_within_a_distance() -> None:
    near = np.arange(1, 101, dtype=np.float32)  # as many within a squared distance as it is long
    assert 480 < expected_rows(near, 400.0) < 560
    assert expected_rows(near, 50.0) == 0 and expected_rows(np.zeros(5, np.float32), 9.0) == 0


def test_facts_of_strangers_are_ignored() -> None:
    right = SketchFacts("sketch-1", 0, 10, widths=[16, 32]).to_dict()
    assert SketchFacts.of(right) is not None
    for change in ({"rows": -1}, {"rows": "10"}, {"widths": [16]}, {"widths": 3}, {"folder": 1}, {"left": ["a"]}):
        assert SketchFacts.of({**right, **change}) is None
    assert SketchFacts.of({}) is None and SketchFacts.of({**right, "more": 1}) is None
