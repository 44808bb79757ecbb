"""The limit of near-identical pictures, measured on changed copies, and kept until the index changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from simsearch import api
from simsearch.engine import Engine
from simsearch.images import perturb
from simsearch.search import duplicates
from simsearch.search.copy_threshold import Threshold, copy_threshold
from tests.helpers.models import Colours


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_calibrated_threshold_finds_copies(tmp_path: Path, photos: Path, colours: Colours) -> None:
    for name in ("amber/0", "rose/3"):
        image = Image.open(photos / f"{name}.png")
        image.resize((14, 14)).resize((16, 16)).save(photos / f"{name}-copy.png")
    with api.build(photos, tmp_path / "index", colours) as engine:
        told: list[tuple[int, int]] = []
        limit = copy_threshold(
            engine.opened_index, engine.model, progress=lambda done, total: told.append((done, total))
        )
        assert told == sorted(told) and len(told) > len(perturb.COPIES) and told[-1][0] == told[-1][1]
        assert set(limit.copies) == set(perturb.COPIES)
        assert 0 < limit.distance < 0.5
        found = duplicates.duplicate_groups(engine.snapshots, limit.distance)
        pairs = [sorted(Path(member.path).stem for member in group) for group in found]
        assert sorted(pairs) == [["0", "0-copy"], ["3", "3-copy"]]


def test_threshold_without_the_pictures(tmp_path: Path, photos: Path, colours: Colours) -> None:
    with api.build(photos, tmp_path / "index", colours) as engine:
        photos.rename(tmp_path / "elsewhere")
        limit = copy_threshold(engine.opened_index, engine.model)
        assert limit.copies == {} and limit.distance >= 0
        (tmp_path / "elsewhere").rename(photos)
        assert copy_threshold(engine.opened_index, engine.model).copies  # the other one was not kept


def measured(engine: Engine) -> tuple[Threshold, bool]:
    """Returns the threshold, and True if pictures were compared for it."""
    told: list[int] = []
    limit = copy_threshold(engine.opened_index, engine.model, progress=lambda done, total: told.append(done))
    return limit, bool(told)


def test_threshold_is_measured_once_for_each_state(tmp_path: Path, photos: Path, colours: Colours, cache: Path) -> None:
    with api.build(photos, tmp_path / "index", colours) as engine:
        first, computed = measured(engine)
        assert computed and measured(engine) == (first, False)
        with api.open(tmp_path / "index", model=colours) as again:
            assert measured(again) == (first, False)
        engine.remove([2])
        assert measured(engine)[1] and not measured(engine)[1]
    assert len(list((cache / "copies").glob("*.json"))) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"key": 1}', b'{"key": "KEY", "distance": "far", "copies": 1}'])
def test_damaged_kept_threshold_is_measured_again(
    content: bytes, tmp_path: Path, photos: Path, colours: Colours, cache: Path
) -> None:
    with api.build(photos, tmp_path / "index", colours) as engine:
        first, _ = measured(engine)
        (kept,) = (cache / "copies").glob("*.json")
        kept.write_bytes(content.replace(b"KEY", json.loads(kept.read_bytes())["key"].encode()))
        assert measured(engine) == (first, True)


def test_threshold_without_a_cache_folder(
    tmp_path: Path, photos: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "file"))
    with api.build(photos, tmp_path / "index", colours) as engine:
        assert measured(engine)[1] and measured(engine)[1]
