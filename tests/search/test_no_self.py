"""`no_self` leaves out the query's own file and its copies, however the query is given."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import simsearch
from simsearch import Engine
from tests.helpers.models import Colours


@pytest.fixture
def engine(photos: Path, tmp_path: Path, colours: Colours) -> Engine:
    """The photos, with a copy of the first one in two more files."""
    first = photos / "amber" / "0.png"
    for name in ("copy.png", "again.png"):
        shutil.copy(first, photos / "rose" / name)
    return simsearch.build(photos, index=tmp_path / "index", model=colours)


def copies(engine: Engine) -> set[int]:
    return {item.id for item in engine if item.relative.endswith(("amber/0.png", "copy.png", "again.png"))}


def test_by_path_bytes_and_crop(engine: Engine, photos: Path) -> None:
    first, own = photos / "amber" / "0.png", copies(engine)
    assert len(own) == 3
    for query in (first, first.read_bytes(), str(first)):
        assert own <= {match.id for match in engine.search(query, k=26)}
        assert {match.id for match in engine.search(query, k=26, no_self=True)} == {i.id for i in engine} - own
    found = engine.search(first, k=26, crop=(0, 0, 8, 8), no_self=True)
    assert not own & {match.id for match in found} and len(found) == 23


def test_by_id_leaves_out_its_copies(engine: Engine) -> None:
    own = copies(engine)
    number = min(own)
    assert own - {number} <= {match.id for match in engine.search_by_id(number, k=26)}
    assert not own & {match.id for match in engine.search_by_id(number, k=26, no_self=True)}


def test_without_a_file_nothing_is_left_out(engine: Engine, photos: Path) -> None:
    pixels = np.asarray(Image.open(photos / "amber" / "0.png").convert("RGB"))
    assert len(engine.search(pixels, k=26, no_self=True)) == 26


def test_unknown_picture(engine: Engine, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "teal").save(tmp_path / "new.png")
    assert len(engine.search(tmp_path / "new.png", k=26, no_self=True)) == 26
