"""Dry runs count and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simsearch import api
from simsearch.errors import (
    UsageError,
)
from simsearch.indexing import options
from tests.helpers.models import Colours
from tests.helpers.pictures import draw
from tests.helpers.sync import ALL, edit, sources

# -- dry runs


def test_dry_run_counts_and_changes_nothing(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    build(photos)
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file() and path.name != "writer.lock"}
    edit(photos / "blue" / "0.png", 960)
    draw(photos / "blue" / "new.png", 961)
    (photos / "rose" / "0.png").unlink()
    computed = colours.computed
    for names in ([], [photos / "blue", photos / "rose"]):
        summary = api.plan(names, index, colours, options.BuildOptions())
        assert (summary.to_read, summary.removed) == (2, 1)
    assert colours.computed == computed
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_dry_run_of_a_new_index(photos: Path, index: Path, colours: Colours) -> None:
    summary = api.plan([photos], index, colours, options.BuildOptions())
    assert (summary.to_read, summary.items, colours.computed) == (ALL, 0, 0)
    assert not index.exists()
    with pytest.raises(UsageError):
        api.build_with_summary([], index, colours, device="cpu", options=options.BuildOptions())
    assert not index.exists()


def test_dry_run_records_no_source(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    build(photos / "blue", labels="none")
    before = sources(index)
    api.plan([photos / "blue"], index, colours, options.BuildOptions())
    api.plan([photos], index, colours, options.BuildOptions())
    assert sources(index) == before


def test_refused_build_records_nothing(build: Any, photos: Path, index: Path) -> None:
    build(photos, labels="none")
    before = sources(index)
    photos.rename(photos.with_name("elsewhere"))
    photos.mkdir()
    with pytest.raises(UsageError):
        build(photos)
    assert sources(index) == before
