"""Values of other types are understood, or refused by one clear error."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import simsearch
from simsearch.engine import Engine
from simsearch.errors import SimsearchError
from tests.helpers.models import Colours

REFUSED: list[Callable[[Any, Any], Any]] = [
    lambda engine, picture: engine.search(picture, crop="0,0,5,5"),
    lambda engine, picture: engine.search(picture, crop=5),
    lambda engine, picture: engine.search(picture, crop=(0, 0, None, 5)),
    lambda engine, picture: engine.search(picture, crop=np.array([0.0, 0, 5, 5])),
    lambda engine, picture: engine.search(picture, 2.0),
    lambda engine, picture: engine.search(picture, max_distance="3"),
    lambda engine, picture: engine.search(picture, plus=object()),
    lambda engine, picture: engine.search(picture, plus=None),
    lambda engine, picture: engine.search(picture, plus=[(2, 1e38)]),
    lambda engine, picture: engine.search(picture, minus=[(2, math.nan)]),
    lambda engine, picture: engine.search(picture, where=b"label=a"),
    lambda engine, picture: engine.search(picture, where={"label": object()}),
    lambda engine, picture: engine.search(picture, where={"id": np.zeros((2, 2))}),
    lambda engine, picture: engine.search_many(None),
    lambda engine, picture: engine.neighbours(np.zeros((1, 12)), 2**40),
    lambda engine, picture: engine.neighbours(np.zeros((1, 12)), 2**63),
    lambda engine, picture: engine.search_by_vector([10**400] * 12),
    lambda engine, picture: engine.search_by_vector(np.zeros(12, complex)),
    lambda engine, picture: engine.neighbours([[10**400] * 12]),
    lambda engine, picture: engine.search(picture, exact="no"),
    lambda engine, picture: engine.search(picture, flip="yes"),
    lambda engine, picture: engine.search_by_vector(np.zeros(12), dedup=b"x"),
    lambda engine, picture: engine.find(1.0),
    lambda engine, picture: engine.find([None]),
    lambda engine, picture: engine.remove(None),
    lambda engine, picture: engine.add(None),
    lambda engine, picture: engine.add(picture, exclude=5),
    lambda engine, picture: engine.add(picture, batch_size="x"),
    lambda engine, picture: engine.add(picture, nope=1),
    lambda engine, picture: simsearch.build(None, engine.path),  # type: ignore[arg-type]
    lambda engine, picture: simsearch.build(picture, None),  # type: ignore[arg-type]
    lambda engine, picture: simsearch.build(picture, engine.path, nope=1),  # type: ignore[call-arg]
    lambda engine, picture: engine.search(True),
    lambda engine, picture: engine.item(True),
    lambda engine, picture: engine.search(Image.new("RGB", (0, 5))),
    lambda engine, picture: engine.search("\ud800"),
    lambda engine, picture: simsearch.open("a\0b"),
    lambda engine, picture: simsearch.open("\ud800"),
    lambda engine, picture: simsearch.open([]),  # type: ignore[arg-type]
    lambda engine, picture: simsearch.build(picture, "a\0b", engine.model),
    lambda engine, picture: simsearch.build(picture, "x" * 5000, engine.model),
    lambda engine, picture: simsearch.build("\ud800", engine.path),
    lambda engine, picture: simsearch.open(None),  # type: ignore[arg-type]
    lambda engine, picture: simsearch.open(engine.path, device=5),  # type: ignore[arg-type]
    lambda engine, picture: simsearch.open(engine.path, roots=5),  # type: ignore[arg-type]
]


@pytest.fixture
def engine(photos: Path, tmp_path: Path, colours: Colours) -> Engine:
    return simsearch.build(photos, tmp_path / "index", model=colours)


@pytest.mark.parametrize("call", REFUSED)
def test_refused_by_one_error(call: Callable[[Any, Any], Any], engine: Engine, photos: Path) -> None:
    with pytest.raises(SimsearchError):
        call(engine, photos / "rose" / "0.png")


def test_understood(engine: Engine, photos: Path) -> None:
    picture = photos / "rose" / "0.png"
    usual = engine.search(picture, 24)
    assert engine.search(picture, np.int64(24)) == usual  # type: ignore[arg-type]
    assert engine.search(picture, 2**80) == usual
    assert engine.search(picture, 24, max_distance=np.float32(99)) == usual  # type: ignore[arg-type]
    cut = engine.search(picture, crop=(0, 0, 8, 8))
    assert engine.search(picture, crop=np.array([0, 0, 8, 8])) == cut  # type: ignore[arg-type]
    for where in ({"id": range(3, 5)}, {"id": (n for n in (3, 4))}, {"id": np.array([3, 4])}, ["id=3", "id=4"]):
        assert sorted(match.id for match in engine.search(picture, where=where)) == [3, 4]
    everything = list(range(40_000))
    assert len(engine.search(picture, 99, where={"id": everything})) == 24
    assert len(engine.search(picture, 99, where={"path": [f"rose/{n}.png" for n in range(2000)]})) == 6
    heavy = engine.search(picture, 3, plus=[(1, 1e6)], minus=[(2, 1e6)])
    assert all(math.isfinite(match.distance) for match in heavy)
    ids, distances = engine.neighbours(np.zeros((1, 12), np.float32), 30)
    assert (ids[0, 24:] == -1).all() and np.isinf(distances[0, 24:]).all()
    assert [item.id for item in engine.find(np.array([1, 2]))] == [1, 2]
