"""An engine as a collection: iteration, tables, duplicates, classes, tuning, export, verification."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import simsearch
from simsearch import Engine
from simsearch.errors import MissingExtraError, UsageError
from tests.helpers.models import Colours


@pytest.fixture
def engine(photos: Path, tmp_path: Path, colours: Colours) -> Engine:
    return simsearch.build(photos, index=tmp_path / "index", model=colours)


def test_iterates_over_items(engine: Engine, photos: Path) -> None:
    listed = list(engine)
    assert [item.id for item in listed] == list(range(1, 25)) and len(engine) == 24
    first = listed[0]
    assert (first.path, first.relative, first.label) == (str(photos / "amber" / "0.png"), "amber/0.png", "amber")
    assert first.bytes == (photos / "amber" / "0.png").stat().st_size and first.width > 0


def test_items_by_conditions(engine: Engine) -> None:
    assert {item.label for item in engine.items({"label": "rose"})} == {"rose"}
    assert [item.id for item in engine.items(["id<3"])] == [1, 2]
    assert list(engine.items({"label": "none such"})) == []
    with pytest.raises(UsageError):
        list(engine.items(["label"]))


def test_repr_names_size(engine: Engine) -> None:
    assert repr(engine) == f"<simsearch.Engine {str(engine.path)!r}, 24 items, model colours>"
    engine.close()
    assert "closed" in repr(engine)


def test_arrow_table(engine: Engine) -> None:
    pytest.importorskip("pyarrow")
    table = engine.to_arrow({"label": "rose"}, features=True)
    assert table.column_names == ["id", "path", "label", "metadata", "width", "height", "bytes", "features"]
    for number, row in zip(table["id"].to_pylist(), table["features"].to_pylist(), strict=True):
        np.testing.assert_array_equal(np.array(row, np.float32), engine.stored_features(number))
    assert "features" not in engine.to_arrow().column_names


def test_missing_pyarrow_names_the_extra(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"\[parquet\]"):
        engine.to_arrow()


def test_missing_pandas(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pandas"):
        engine.to_pandas()


def test_pandas_frames(engine: Engine) -> None:
    pytest.importorskip("pandas")
    frame = engine.to_pandas(["id<=3"])
    assert list(frame["id"]) == [1, 2, 3] and "path" in frame
    found = engine.search_by_id(1, k=4)
    assert list(found.to_pandas()["distance"]) == [match.distance for match in found]
    assert list(found.to_pandas()["word"]) == [match.word for match in found]


def test_matches_in_a_notebook(engine: Engine) -> None:
    found = engine.search_by_id(1, k=3)
    page = found._repr_html_()
    assert page.count('<img src="data:image/jpeg;base64,') == 3 and f"{found[0].label}" in page
    copy = pickle.loads(pickle.dumps(found))
    assert copy == found and copy.exact == found.exact and copy.thumbnail is None
    engine.close()
    assert found[0].relative in found._repr_html_()


def test_duplicates_and_wrong_distance(engine: Engine, photos: Path) -> None:
    (photos / "rose" / "copy.png").write_bytes((photos / "amber" / "0.png").read_bytes())
    engine.add(photos / "rose" / "copy.png")
    ((first, second),) = engine.duplicates(0.0)
    assert (first.distance, second.distance) == (0, 0)
    with pytest.raises(UsageError):
        engine.duplicates(-1)


def test_export_and_verify(engine: Engine, tmp_path: Path) -> None:
    assert engine.export(tmp_path / "out") == 24
    lines = (tmp_path / "out" / "items.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [item.id for item in engine]
    assert engine.verify().problems == ()
    with pytest.raises(UsageError, match="form is 'csv'"):
        engine.export(tmp_path, "csv")  # type: ignore[arg-type]


def test_tune_of_a_small_index(engine: Engine) -> None:
    assert engine.tune(0.9).kind == "exact"


def test_classify_needs_classes(engine: Engine, photos: Path) -> None:
    with pytest.raises(UsageError, match="no classes"):
        engine.classify(photos / "amber" / "0.png")
    with pytest.raises(UsageError, match="crops is 3"):
        engine.classify(photos / "amber" / "0.png", crops=3)  # type: ignore[arg-type]


def test_wrong_build_option(photos: Path, tmp_path: Path, colours: Colours) -> None:
    with pytest.raises(UsageError, match="a build has no option 'exclud'"):
        simsearch.build(photos, index=tmp_path / "x", model=colours, exclud="*.gif")  # type: ignore[call-arg]
    assert not (tmp_path / "x").exists()
    made = simsearch.build(photos, index=tmp_path / "x", model=colours, exclude=["rose"])
    assert len(made) == 18
