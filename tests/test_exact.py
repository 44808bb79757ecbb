"""Search is exact: every answer is that of a float64 scan over the exported features, ties by the lower id."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from simsearch import api, calibration, index
from simsearch.engine import Engine
from simsearch.errors import ImageError, IndexDamagedError, ItemNotFoundError, UsageError
from simsearch.export import export_npy
from simsearch.filters import Condition
from simsearch.index import FlatIndex
from simsearch.search import NEAR_IDENTICAL, Match, Picture
from simsearch.shards import Shards
from tests.conftest import Colours, draw
from tests.filler import Filler

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Scan:
    """The exported index, searched as simply as can be."""

    features: NDArray[np.float64]
    items: list[dict[str, Any]]

    @classmethod
    def of(cls, engine: Engine, folder: Path) -> Scan:
        assert export_npy(engine.opened_index, folder) == len(engine)
        features = np.load(folder / "features.npy")
        assert features.dtype == np.float32
        lines = (folder / "items.jsonl").read_text().splitlines()
        assert features.shape == (len(lines), engine.meta.dimension)
        return cls(features.astype(np.float64), [json.loads(line) for line in lines])

    def search(
        self, queries: NDArray[np.float32] | Sequence[NDArray[np.float32]], k: int,
        permit: Callable[[dict[str, Any]], bool] = lambda item: True, farthest: float = np.inf,
    ) -> list[tuple[int, float]]:  # fmt: skip
        """(id, distance) of the k nearest to the nearest of the queries (n, D)."""
        squared = [((self.features - query.astype(np.float64)) ** 2).sum(1) for query in np.atleast_2d(queries)]
        distances = np.sqrt(np.min(squared, axis=0))
        found = [
            (distance, item["id"])
            for distance, item in zip(distances.tolist(), self.items, strict=True)
            if permit(item) and distance <= farthest
        ]
        return [(number, distance) for distance, number in sorted(found)[:k]]


def agree(found: Sequence[Match], expected: Sequence[tuple[int, float]]) -> None:
    assert [match.id for match in found] == [number for number, _ in expected]
    assert [match.rank for match in found] == list(range(1, len(found) + 1))
    distances = [match.distance for match in found]
    assert distances == sorted(distances)
    np.testing.assert_allclose(distances, [distance for _, distance in expected], rtol=1e-12, atol=1e-12)


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
    monkeypatch.setattr(index, "DIRECT", direct)
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


def test_ties_go_to_the_lower_id_whatever_the_row(tmp_path: Path) -> None:
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
    monkeypatch.setattr(index, "DIRECT", direct)
    with scrambled(tmp_path / "index", np.random.default_rng(5), fine, 8, 300, 64) as engine:
        scan = Scan.of(engine, tmp_path / "out")
        for place in range(0, len(scan.items), 17):
            item, query = scan.items[place], scan.features[place].astype(np.float32)
            number = item["id"]
            others = scan.search(query, 6, lambda other, number=number: other["id"] != number)  # type: ignore[misc]
            agree(engine.search_by_id(number, 6), others)
            alike = scan.search(
                query, 6, lambda other, item=item: other["label"] == item["label"] and other["id"] != item["id"]  # type: ignore[misc]
            )  # fmt: skip
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


def test_distances_whose_squares_alone_differ_tie(tmp_path: Path) -> None:
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
    monkeypatch.setattr(index, "DIRECT", 16)
    filler = Filler(tmp_path / "index", 6, rows_per_shard=64)
    filler.add(np.random.default_rng(1).normal(0, 6e4, (200, 6)).clip(-65504, 65504))
    with filler.engine as engine:
        scan = Scan.of(engine, tmp_path / "out")
        query = np.array([size, 0, 0, -size, 0, 0], np.float32)
        for where in ([], ["label=one"]):
            expected = scan.search(query, 9, lambda item, where=where: not where or item["label"] == "one")  # type: ignore[misc]
            agree(engine.search_by_vector(query, 9, where=where), expected)
        known = engine.neighbours(np.stack([query] * index.BATCH), 9)[0]
        assert known.tolist() == [[number for number, _ in scan.search(query, 9)]] * index.BATCH
        assert all(np.isfinite(match.distance) for match in engine.search_by_vector(query, 9, expand=2))


def test_vector_errors(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 4)
    filler.add(np.ones((3, 4)))
    with filler.engine as engine:
        for vector, message in (
            (np.zeros(3), "3 dimensions, the index 4"),
            (np.zeros((2, 4)), "8 dimensions, the index 4"),
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
            with pytest.raises(UsageError, match="largest distance"):
                engine.search_by_vector(np.zeros(4), max_distance=farthest)
        for where in (["label"], "=x", ["  "]):
            with pytest.raises(UsageError, match="not FIELD=VALUE"):
                engine.search_by_vector(np.zeros(4), where=where)
        assert len(engine.search_by_vector([[0, 0, 0, 0]])) == 3  # type: ignore[arg-type]
        for bad, message in (
            (np.full((1, 4), 1e300), "not finite"),
            ([["a"] * 4], "not made of numbers"),
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
        with pytest.raises(UsageError, match="left out of 1 searches, but there are 2"):
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


# -- queries by pictures


@pytest.fixture
def engine(photos: Path, tmp_path: Path, colours: Colours) -> Engine:
    """The pictures, and of some the mirror image and a copy that differs by a hair."""
    for path in sorted(photos.rglob("[01].png")):
        with Image.open(path) as image:
            ImageOps.mirror(image).save(path.with_name(f"mirror-{path.name}"))
            other = image.copy()
        other.putpixel((0, 0), (0, 0, 0))
        other.save(path.with_name(f"near-{path.name}"))
        shutil.copy(path, path.with_name(f"same-{path.name}"))
    return api.build(photos, tmp_path / "index", colours)


def pictures(count: int = 12) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(77)
    return [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(count)]


def test_picture_is_found_first_and_its_equals_by_id(engine: Engine, photos: Path, tmp_path: Path) -> None:
    scan = Scan.of(engine, tmp_path / "out")
    for path in sorted(photos.rglob("*.png")):
        agree(engine.search(path, 9), scan.search(engine.features([path]), 9))
        assert engine.search(path, 1)[0].distance == 0


def test_flip(engine: Engine, tmp_path: Path) -> None:
    scan = Scan.of(engine, tmp_path / "out")
    for picture in pictures():
        both = engine.features([picture, np.ascontiguousarray(picture[:, ::-1])])
        for k in (1, 6, 20, 99):
            agree(engine.search(picture, k, flip=True), scan.search(both, k))
        permit = scan.search(both, 6, lambda item: item["label"] == "rose")
        agree(engine.search(picture, 6, flip=True, where={"label": "rose"}), permit)


def test_flip_of_an_item_finds_its_mirror_image(engine: Engine, photos: Path) -> None:
    item = engine.find([str(photos / "blue" / "0.png")])[0]
    found = engine.search_by_id(item.id, 3, flip=True)
    assert [match.distance for match in found[:2]] == [0, 0]
    assert {Path(match.path).name for match in found[:2]} == {"mirror-0.png", "same-0.png"}


def test_plus_and_minus(engine: Engine, tmp_path: Path) -> None:
    scan = Scan.of(engine, tmp_path / "out")
    for query, plus, minus in zip(*(pictures(12)[n::3] for n in range(3)), strict=True):
        q, p, m = engine.features([query, plus, minus])
        item = scan.items[5]["id"]
        agree(engine.search(query, 9, plus=[plus]), scan.search((q + p) / 2, 9))
        moved = np.maximum(q + np.float32(0.5) * (q - m), 0)
        agree(engine.search(query, 9, minus=[minus]), scan.search(moved, 9))
        blend = np.stack([q, p, scan.features[5].astype(np.float32)]).mean(0, dtype=np.float32)
        away = np.stack([m, scan.features[7].astype(np.float32)]).mean(0, dtype=np.float32)
        blend = np.maximum(blend + np.float32(0.5) * (blend - away), 0)
        found = engine.search(query, 9, plus=[plus, item], minus=[minus, scan.items[7]["id"]])
        agree(found, scan.search(blend, 9, lambda other, item=item: other["id"] != item))  # type: ignore[misc]


def test_crop(engine: Engine, tmp_path: Path) -> None:
    scan = Scan.of(engine, tmp_path / "out")
    picture = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    query = engine.features([np.ascontiguousarray(picture[10:40, 20:50])])
    agree(engine.search(picture, 6, crop=(20, 10, 30, 30)), scan.search(query, 6))
    with pytest.raises(ImageError, match="does not lie within"):
        engine.search(picture, crop=(40, 0, 30, 30))


def distinct(engine: Engine, scan: Scan, queries: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """What `dedup` promises: in the order of the answer, all that are not near-identical to one before."""
    same = NEAR_IDENTICAL * calibration.median(engine.meta.distances)
    features = {item["id"]: row for item, row in zip(scan.items, scan.features, strict=True)}
    kept: list[tuple[int, float]] = []
    for number, distance in scan.search(queries, len(scan.items)):
        if all(np.linalg.norm(features[number] - features[other]) > same for other, _ in kept):
            kept.append((number, distance))
    return kept[:k]


def test_dedup(engine: Engine, photos: Path, tmp_path: Path) -> None:
    scan = Scan.of(engine, tmp_path / "out")
    queries: list[Picture] = [*pictures(), photos / "blue" / "0.png"]
    for picture in queries:
        query = engine.features([picture])
        for k in (1, 6, 20, 99):
            agree(engine.search(picture, k, dedup=True), distinct(engine, scan, query, k))
    assert len(engine.search(pictures()[0], 99, dedup=True)) < len(engine)


def test_dedup_and_flip(tmp_path: Path) -> None:
    colours = Colours()
    for n in range(72):  # many near-identical ones, so that `dedup` digs deep
        path = draw(tmp_path / "photos" / f"{n:03d}.png", n % 8)
        with Image.open(path) as image:
            image.load()
        image.putpixel((n % 16, n // 16), (n, n, n))
        image.save(path)
    with api.build(tmp_path / "photos", tmp_path / "index", colours) as engine:
        scan = Scan.of(engine, tmp_path / "out")
        for picture in pictures():
            both = engine.features([picture, np.ascontiguousarray(picture[:, ::-1])])
            for k in (1, 2, 3, 5):
                agree(engine.search(picture, k, dedup=True, flip=True), distinct(engine, scan, both, k))


# -- pieces


@pytest.mark.parametrize("seed", range(6))
def test_flat_index_with_ties_at_the_last_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """`FlatIndex.search` gives every row that ties for the k-th place, for any permitted rows and several queries."""
    monkeypatch.setattr(index, "DIRECT", 8)
    random = np.random.default_rng(seed)
    n, dimension = int(random.integers(1, 300)), int(random.integers(1, 20))
    features = coarse(random, n, dimension)
    shards = Shards(tmp_path, dimension, rows_per_shard=int(random.choice([10, 64, 1000])))
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


def test_shards_take_rows_in_any_portions(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    features = random.normal(size=(300, 5)).astype(np.float16)
    shards = Shards(tmp_path, 5, rows_per_shard=32)
    row = 0
    while row < len(features):
        count = int(random.integers(1, 80))
        shards.write(row, features[row : row + count])
        row = min(row + count, len(features))
    shards.write(40, features[40:140])  # again, as after a crash
    rows = random.permutation(300)
    assert np.array_equal(shards.read(rows), features[rows])
    assert len(list(tmp_path.glob("*.f16"))) == 10
    assert all(shards.check_preamble(shard) is None for shard in range(10))


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 3, rows_per_shard=8)
    shards.write(0, np.zeros((20, 3), np.float16))
    for rows in ([-1, 2], [3, 20], [10**15]):
        with pytest.raises(IndexDamagedError, match="there are 20"):
            FlatIndex(shards, 20).search(np.zeros((1, 3), np.float32), 2, np.array(rows))
    with pytest.raises(IndexDamagedError):
        FlatIndex(shards, 30).search(np.zeros((1, 3), np.float32), 2, None)


@pytest.mark.parametrize(("condition", "numbers"), [
    ("n=7", [7]), ("n!=7", [0, *range(1, 7), 8, 9]), ("n>7.5", [8, 9]), ("n<=1", [0, 1]), ("metadata.n=7", [7]),
    ("bytes>=8", [8, 9]), ("id=1", [0]), ("id<99999999999999999999999", range(10)), ("id=99999999999999999999999", []),
    ("label=one", [0, 3, 6, 9]), ("label!=one", [1, 2, 4, 5, 7, 8]), ("label~t*", [1, 2, 4, 5, 7, 8]),
    ("path=000003", [3]), ("path~*[45]", [4, 5]), ("path~*\udcff*", []), ("label=\udcff", []), ("none=1", []),
    ("none!=1", range(10)), ("width=1", range(10)), ("n=1e400", []), (" n = 7 ", [7]), ("n\udcff=1", []), ("n=07", [7]),
])  # fmt: skip
def test_conditions(tmp_path: Path, condition: str, numbers: Sequence[int]) -> None:
    filler = Filler(tmp_path / "index", 2)
    filler.add(np.zeros((10, 2)))
    with filler.engine.reading() as reader:
        assert reader.rows([Condition.parse(condition)]).tolist() == list(numbers)
    filler.engine.close()


def test_where_as_a_mapping(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 2)
    filler.add(np.zeros((10, 2)))
    with filler.engine as engine:
        for where, expected in (
            ({"label": "one", "n": 3}, [4]),
            ({"n": 3.0}, [4]),
            ({"n": "3"}, [4]),
            ({"label": None}, []),
            ({"n": float("nan")}, []),
            ({"n": 10**400}, []),
            ({}, range(1, 11)),
        ):
            assert [m.id for m in engine.search_by_vector(np.zeros(2), 10, where=where)] == list(expected), where


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
