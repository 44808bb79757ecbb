"""Exact search is a float64 scan."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from simsearch import api
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, ItemNotFoundError, UsageError
from simsearch.search import exact
from simsearch.search.exact import FlatIndex
from simsearch.storage.feature_files import FeatureFiles
from tests.helpers.filler import Filler
from tests.helpers.models import Colours
from tests.helpers.scan import Scan, agree

if TYPE_CHECKING:
    from numpy.typing import NDArray


def coarse(random: np.random.Generator, n: int, dimension: int) -> NDArray[np.float16]:
    """Features of few values, so that distances tie all the time, and every sum of squares is exact."""
    return random.integers(0, 3, (n, dimension)).astype(np.float16)


def fine(random: np.random.Generator, n: int, dimension: int) -> NDArray[np.float16]:
    """Features as a network's are: half of them 0, the others of any size; a third of the rows are copies."""
    features = np.maximum(random.normal(0, 10, (n, dimension)), 0).astype(np.float16)
    copies = random.integers(0, n, (2, n // 3))
    features[copies[0]] = features[copies[1]]
    return features


def scrambled(
    path: Path, random: np.random.Generator, draw_features: Any, dimension: int, n: int, rows_per_shard: int
) -> Engine:
    """An index whose rows are in another order than its ids, with rows that nobody owns any more."""
    filler = Filler(path, dimension, rows_per_shard)
    features = draw_features(random, n, dimension)
    filler.add(features)
    edited = 1 + random.choice(n, n // 4, replace=False)
    # Some get what they had, others what their neighbours have: equal features in rows against the order of ids.
    filler.edit(edited.tolist(), features[(edited - 1 + random.integers(0, 2, len(edited))) % n])
    filler.remove((1 + random.choice(n, n // 10, replace=False)).tolist())
    filler.add(features[random.integers(0, n, n // 10)])
    return filler.engine


@pytest.mark.parametrize("features", [coarse, fine])
@pytest.mark.parametrize("rows_per_shard", [64, 8192])
@pytest.mark.parametrize("direct", [0, 200])
def test_search_is_a_float64_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: Any, rows_per_shard: int, direct: int
) -> None:
    """direct: up to how many permitted rows are fetched one by one; 0 sends every search through FAISS."""
    monkeypatch.setattr(exact, "DIRECT", direct)
    random = np.random.default_rng(rows_per_shard + direct)
    filters: list[tuple[list[str], Callable[[dict[str, Any]], bool]]] = [
        ([], lambda item: True),
        (["label=two"], lambda item: item["label"] == "two"),
        (["label!=two", "n>=100"], lambda item: item["label"] != "two" and item["metadata"]["n"] >= 100),
        (["n<7"], lambda item: item["metadata"]["n"] < 7),
        (["path~0000[0-4]*"], lambda item: 0 <= item["metadata"]["n"] < 50),
        (["n=123"], lambda item: item["metadata"]["n"] == 123),
        (["id=124"], lambda item: item["id"] == 124),
        (["label=four"], lambda item: False),
    ]
    for dimension, n in ((13, 700), (64, 300)):
        path = tmp_path / f"{dimension}"
        with scrambled(path, random, features, dimension, n, rows_per_shard) as engine:
            scan = Scan.of(engine, tmp_path / "out")
            assert len({item["id"] for item in scan.items}) == len(engine) < engine.info()["rows"]
            stored = scan.features.astype(np.float32)
            queries = [stored[0], stored[-1], stored[n // 2], np.zeros(dimension, np.float32)]
            queries += list(random.normal(3, 5, (2, dimension)).astype(np.float32))
            for number, query in enumerate(queries):
                for where, permit in filters:
                    k = int(random.choice([1, 2, 6, 50]))
                    agree(engine.search_by_vector(query, k, where=where), scan.search(query, k, permit))
                ranked = scan.search(query, len(scan.items))
                agree(engine.search_by_vector(query, 10**6), ranked)
                reach = ranked[7 * number][1] * (1 + 1e-9)
                agree(engine.search_by_vector(query, 40, max_distance=reach), scan.search(query, 40, farthest=reach))
                if ranked[0][1] > 0:
                    assert engine.search_by_vector(query, max_distance=ranked[0][1] * (1 - 1e-9)) == []


def test_ties_go_to_lower_id_whatever_the_row(tmp_path: Path) -> None:
    same = np.ones((1, 5), np.float16)
    filler = Filler(tmp_path / "index", 5, rows_per_shard=4)
    filler.add(np.repeat(same, 30, 0))
    filler.edit([1, 2, 3], np.repeat(same, 3, 0))  # the lowest ids now own the highest rows
    for k in (1, 2, 5, 29):
        assert [match.id for match in filler.engine.search_by_vector(same[0], k)] == list(range(1, k + 1))
    assert [match.id for match in filler.engine.search_by_id(2, 4)] == [1, 3, 4, 5]
    filler.engine.close()


@pytest.mark.parametrize("direct", [0, 2048])
def test_id_leaves_itself_out_but_not_its_equals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: int) -> None:
    monkeypatch.setattr(exact, "DIRECT", direct)
    with scrambled(tmp_path / "index", np.random.default_rng(5), fine, 8, 300, 64) as engine:
        scan = Scan.of(engine, tmp_path / "out")
        for place in range(0, len(scan.items), 17):
            item, query = scan.items[place], scan.features[place].astype(np.float32)
            number = item["id"]
            others = scan.search(query, 6, lambda other, number=number: other["id"] != number)  # type: ignore[misc]
            agree(engine.search_by_id(number, 6), others)
            alike = scan.search(
                query,
                6,
                lambda other, item=item: other["label"] == item["label"] and other["id"] != item["id"],  # type: ignore[misc]
            )
            agree(engine.search_by_id(number, 6, where={"label": item["label"]}), alike)
        everything = engine.search_many([item["id"] for item in scan.items], 3)
        assert [m.id for m in everything[4]] == [m.id for m in engine.search_by_id(scan.items[4]["id"], 3)]
        with pytest.raises(ItemNotFoundError, match="no item 999"):
            engine.search_by_id(999)
        with pytest.raises(ItemNotFoundError):
            engine.search_by_id(10**30)


def test_alone(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 4)
    assert filler.engine.search_by_vector(np.zeros(4)) == []
    filler.add(np.ones((1, 4)))
    assert filler.engine.search_by_id(1) == []
    assert [match.id for match in filler.engine.search_by_vector(np.zeros(4), 9)] == [1]
    filler.remove([1])
    assert filler.engine.search_by_vector(np.zeros(4)) == []
    filler.engine.close()


def test_distances_tie_if_only_squares_differ(tmp_path: Path) -> None:
    """The root of a number and of the next one may be the same: what is printed is what is compared."""
    pairs = np.full((100, 2, 3), 1.5 * 2.0**-11)
    pairs[:, :, 0], pairs[:, :, 1], pairs[:, 1, 2] = 60000, np.arange(100)[:, None], 0
    squares = np.einsum("pnd,pnd->pn", pairs, pairs)
    alike = (squares[:, 0] > squares[:, 1]) & (np.sqrt(squares[:, 0]) == np.sqrt(squares[:, 1]))
    features = pairs[alike][0]  # the farther one has the lower id
    filler = Filler(tmp_path / "index", 3)
    filler.add(features)
    with filler.engine as engine:
        both = engine.search_by_vector(np.zeros(3), 2)
        assert both[0].distance == both[1].distance and [match.id for match in both] == [1, 2]
        assert [match.id for match in engine.search_by_vector(np.zeros(3), 1)] == [1]


@pytest.mark.parametrize("size", [1e-30, 1e5, 1e18, 3e38])
def test_queries_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Where float32 cannot hold the squared distance, and where the features vanish beside the query."""
    monkeypatch.setattr(exact, "DIRECT", 16)
    filler = Filler(tmp_path / "index", 6, rows_per_shard=64)
    filler.add(np.random.default_rng(1).normal(0, 6e4, (200, 6)).clip(-65504, 65504))
    with filler.engine as engine:
        scan = Scan.of(engine, tmp_path / "out")
        query = np.array([size, 0, 0, -size, 0, 0], np.float32)
        for where in ([], ["label=one"]):
            expected = scan.search(query, 9, lambda item, where=where: not where or item["label"] == "one")  # type: ignore[misc]
            agree(engine.search_by_vector(query, 9, where=where), expected)
        known = engine.neighbours(np.stack([query] * exact.BATCH), 9)[0]
        assert known.tolist() == [[number for number, _ in scan.search(query, 9)]] * exact.BATCH
        assert all(np.isfinite(match.distance) for match in engine.search_by_vector(query, 9, expand=2))


def test_vector_errors(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 4)
    filler.add(np.ones((3, 4)))
    with filler.engine as engine:
        for vector, message in (
            (np.zeros(3), "3 dimensions, but the index has 4"),
            (np.zeros((2, 4)), "8 dimensions, but the index has 4"),
            (np.zeros(0), "0 dimensions"),
            (np.array([0, 0, 0, np.nan]), "not finite"),
            (np.array([0, 0, 0, np.inf]), "not finite"),
        ):
            with pytest.raises(UsageError, match=message):
                engine.search_by_vector(vector)
        for k in (0, -1):
            with pytest.raises(UsageError, match=f"k is {k}"):
                engine.search_by_vector(np.zeros(4), k)
        for farthest in (-1.0, float("nan")):
            with pytest.raises(UsageError, match="max_distance"):
                engine.search_by_vector(np.zeros(4), max_distance=farthest)
        for where in (["label"], "=x", ["  "]):
            with pytest.raises(UsageError, match="not FIELD=VALUE"):
                engine.search_by_vector(np.zeros(4), where=where)
        assert len(engine.search_by_vector([[0, 0, 0, 0]])) == 3  # type: ignore[arg-type]
        for bad, message in (
            (np.full((1, 4), 1e300), "not finite"),
            ([["a"] * 4], "not made of real numbers"),
            (np.zeros(4), "shape"),
            (np.zeros((2, 3)), "shape"),
        ):
            with pytest.raises(UsageError, match=message):
                engine.neighbours(bad)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match=message):
                engine.search_by_vectors(bad)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="not finite"):
            engine.search_by_vector(np.full(4, 1e300))
        for odd in (0, 1.5, True):
            with pytest.raises(UsageError, match=f"k is {odd}"):
                engine.neighbours(np.zeros((1, 4), np.float32), odd)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="`without` has 1 lists of ids, but there are 2"):
            engine.search_by_vectors(np.zeros((2, 4), np.float32), without=[[1]])
        assert len(engine.neighbours([[0, 0, 0, 0]], 2)[0][0]) == 2  # type: ignore[arg-type]


def test_ids_and_counts_may_be_numpys(tmp_path: Path) -> None:
    """As `neighbours` gives them."""
    filler = Filler(tmp_path / "index", 4, rows_per_shard=16)
    filler.add(np.arange(120).reshape(30, 4))
    with filler.engine as engine:
        ids = engine.neighbours(np.zeros((1, 4), np.float32), np.int32(3))[0][0]  # type: ignore[arg-type]
        assert ids.tolist() == [1, 2, 3]
        assert engine.item(ids[1]).id == 2 and engine.stored_features(ids[1])[0] == 4  # type: ignore[index]
        assert [item.id for item in engine.find(ids)] == [1, 2, 3] and engine.find(ids[2])[0].id == 3
        assert len(engine.search_by_vector(np.zeros(4), np.int32(3))) == 3  # type: ignore[arg-type]
        alike = engine.search_many([4], 2, plus=ids[0])
        assert alike == engine.search_many([4], 2, plus=[1])
        assert engine.search_by_vectors(np.zeros((1, 4), np.float32), 1, without=[ids])[0][0].id == 4
        assert engine.search_many([], plus=[1]) == engine.search_many([], expand=2) == []
        with pytest.raises(UsageError, match="'5' is not the id"):
            engine.item("5")  # type: ignore[arg-type]
        assert engine.remove(ids) == 3 and len(engine) == 27


def test_unknown_option_is_refused(photos: Path, tmp_path: Path, colours: Colours) -> None:
    with api.build(photos, tmp_path / "index", colours) as engine, pytest.raises((TypeError, UsageError)):
        engine.search(photos / "blue" / "0.png", max_distnace=0.1)  # type: ignore[call-arg]


def test_vector_of_words_is_refused(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 4)
    with filler.engine as engine, pytest.raises(UsageError):
        engine.search_by_vector(["a", "b", "c", "d"])  # type: ignore[arg-type]


# -- pieces


@pytest.mark.parametrize("seed", range(6))
def test_flat_index_with_ties_at_the_last_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """`FlatIndex.search` gives every row that ties for the k-th place, for any permitted rows and several queries."""
    monkeypatch.setattr(exact, "DIRECT", 8)
    random = np.random.default_rng(seed)
    n, dimension = int(random.integers(1, 300)), int(random.integers(1, 20))
    features = coarse(random, n, dimension)
    shards = FeatureFiles(tmp_path, dimension, rows_per_shard=int(random.choice([10, 64, 1000])))
    checksum = shards.write(0, features)
    assert shards.checksum(0, n) == checksum
    flat = FlatIndex(shards, n)
    for _ in range(15):
        queries = random.integers(0, 3, (int(random.integers(1, 4)), dimension)).astype(np.float32)
        permitted = None if random.random() < 0.3 else np.flatnonzero(random.random(n) < random.random())
        k = int(random.integers(1, 2 * n + 2))
        rows = np.arange(n) if permitted is None else permitted
        for query, found in zip(queries, flat.search(queries, k, permitted), strict=True):
            distances = np.sqrt(((features[rows].astype(np.float64) - query) ** 2).sum(1))
            order = np.lexsort((rows, distances))
            reach = int((distances <= distances[order[min(k, len(rows)) - 1]]).sum()) if len(rows) else 0
            assert found.rows.tolist() == rows[order[:reach]].tolist()
            assert np.array_equal(found.distances, distances[order[:reach]])


def test_row_that_does_not_exist(tmp_path: Path) -> None:
    shards = FeatureFiles(tmp_path, 2, rows_per_shard=8)
    shards.write(0, np.zeros((5, 2), np.float16))
    message = "^items own rows 3 to 7 of the features, but the index has only 5 rows, numbered from 0$"
    with pytest.raises(IndexDamagedError, match=message):
        FlatIndex(shards, 5).search(np.zeros((1, 2), np.float32), 1, np.array([3, 7]))


# -- many readers, one writer


def test_readers_beside_a_writer(tmp_path: Path) -> None:
    """Eight threads search while batches are added, edited and removed: each answer is that of one generation."""
    random = np.random.default_rng(11)
    dimension, steps = 6, 24
    filler = Filler(tmp_path / "index", dimension, rows_per_shard=64)
    filler.add(coarse(random, 50, dimension))
    queries = random.integers(0, 3, (5, dimension)).astype(np.float32)

    def scanned() -> list[list[tuple[int, float]]]:
        scan = Scan.of(filler.engine, tmp_path / "out")
        return [scan.search(query, 7) for query in queries]

    history = [scanned()]  # by generation
    done = threading.Event()
    wrong: list[str] = []
    asked = [0] * 8
    with Engine(tmp_path / "index", model=filler.model) as shared:

        def read(thread: int) -> None:
            own = np.random.default_rng(thread)
            try:
                while not done.is_set() or asked[thread] < 5:
                    number = int(own.integers(len(queries)))
                    first = len(history) - 1
                    found = [(match.id, match.distance) for match in shared.search_by_vector(queries[number], 7)]
                    seen.append((first, number, found))
                    asked[thread] += 1
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")

        seen: list[tuple[int, int, list[tuple[int, float]]]] = []
        threads = [threading.Thread(target=read, args=(thread,)) for thread in range(8)]
        for each in threads:
            each.start()
        for step in range(1, steps + 1):
            match step % 3:
                case 0:
                    filler.remove([m.id for m in filler.engine.search_by_vector(queries[step % len(queries)], 3)])
                case 1:
                    filler.add(coarse(random, 40, dimension))
                case _:
                    near = [m.id for m in filler.engine.search_by_vector(queries[step % len(queries)], 3)]
                    filler.edit(near, coarse(random, len(near), dimension))
            history.append(scanned())
        done.set()
        for each in threads:
            each.join(60)
    filler.engine.close()
    assert wrong == []
    assert min(asked) >= 5
    for first, number, found in seen:
        later = [[(each, round(d, 9)) for each, d in answers[number]] for answers in history[first:]]
        assert [(each, round(d, 9)) for each, d in found] in later
