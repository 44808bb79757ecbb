"""Searches by images: flips, crops, plus and minus, deduplication."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from simsearch import api
from simsearch.engine import Engine
from simsearch.errors import ImageError
from simsearch.search import similarity
from simsearch.search.queries import Picture
from simsearch.search.searcher import NEAR_IDENTICAL
from tests.helpers.models import Colours
from tests.helpers.pictures import draw
from tests.helpers.scan import Scan, agree

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pictures(count: int = 12) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(77)
    return [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(count)]


def test_picture_is_found_first_equals_by_id(engine: Engine, photos: Path, tmp_path: Path) -> None:
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
    agree(engine.search(picture, 6, crop=(20, "25%", "50%", "75%")), scan.search(query, 6))
    with pytest.raises(ImageError, match="does not lie within"):
        engine.search(picture, crop=(40, 0, 30, 30))


def distinct(engine: Engine, scan: Scan, queries: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """Returns the matches, in their order, that are not near-identical to an earlier one, as `dedup` promises."""
    same = NEAR_IDENTICAL * similarity.median(engine.meta.distances)
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
