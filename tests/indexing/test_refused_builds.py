"""Builds that are refused leave the index alone."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from simsearch.engine import Engine
from simsearch.errors import (
    IndexDamagedError,
    IndexNotFoundError,
    ModelMismatchError,
    UsageError,
)
from tests.helpers.models import Colours
from tests.helpers.pictures import draw
from tests.helpers.sync import ALL, ids


def test_other_weights_are_refused_naming_hashes(build: Any, photos: Path, index: Path) -> None:
    build(photos)

    class Other(Colours):
        weights_sha256 = "ab" * 32

    for action in (lambda: Engine(index, model=Other()), lambda: build(photos, model=Other())):
        with pytest.raises(ModelMismatchError) as caught:
            action()
        assert Other.weights_sha256 in str(caught.value)
        assert Colours.weights_sha256 in str(caught.value)


def test_future_format_is_refused(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    meta = json.loads((index / "meta.json").read_text())
    (index / "meta.json").write_text(json.dumps(meta | {"format": meta["format"] + 1, "unheard": "of"}))
    with pytest.raises(UsageError, match=f"format {meta['format'] + 1}"):
        Engine(index, model=Colours())
    with pytest.raises(UsageError, match="format"):
        build(photos)
    assert (index / "items.sqlite").exists()


def test_folder_of_other_things_is_left_alone(build: Any, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for place in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(UsageError, match="not an index"):
            build(photos, place=place)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    with pytest.raises(IndexNotFoundError):
        Engine(tmp_path / "nowhere")


def test_lost_meta_is_not_replaced(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (index / "meta.json").unlink()

    class Other(Colours):
        weights_sha256 = "ab" * 32

    draw(photos / "blue" / "new.png", 990)
    with pytest.raises(Exception, match=r"meta\.json"):
        build(photos, model=Other())


def test_meta_counts_follow(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (photos / "blue" / "bad.png").write_bytes(b"")
    (photos / "rose" / "0.png").unlink()
    build(photos)
    meta = json.loads((index / "meta.json").read_text())
    assert (meta["items"], meta["rows"], meta["failures"]) == (ALL - 1, ALL, 1)
    with sqlite3.connect(index / "items.sqlite") as connection:
        assert meta["generation"] == connection.execute("SELECT value FROM state WHERE key='generation'").fetchone()[0]
    connection.close()


def test_lost_features_are_noticed_before_adding(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (index / "features" / "000000.f16").unlink()
    draw(photos / "blue" / "new.png", 981)
    for _ in range(2):
        with pytest.raises(IndexDamagedError):
            build(photos)
    assert not (index / "features" / "000000.f16").exists()


def test_file_named_like_database_hides_nothing(build: Any, photos: Path, index: Path) -> None:
    (photos / "blue" / "items.sqlite").touch()
    assert build(photos).added == ALL


def test_a_lone_string_is_one_name(build: Any, photos: Path, index: Path) -> None:
    build(photos, exclude="*0.png")
    left = len(ids(index))
    assert 0 < left < ALL
    with Engine(index, model=Colours()) as engine:
        with pytest.raises(UsageError, match="empty name"):
            engine.remove("")
        assert engine.add(photos / "blue" / "0.png").added == 1  # named, so wanted
        assert engine.remove("id:1") == 1
        assert engine.remove(2) == 1
        found = engine.search_many(str(photos / "blue" / "1.png"), 1, plus=str(photos / "blue" / "1.png"))
        assert len(found) == 1
        with pytest.raises(UsageError):
            engine.search(None)  # type: ignore[arg-type]
        for k in ("2", 2.5, None, True):
            with pytest.raises(UsageError):
                engine.search(photos / "blue" / "1.png", k)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="closed"):
        len(engine)
