"""Sketches of indexes that are much smaller than those that get one."""

from __future__ import annotations

import pytest

from simsearch.engine import Engine
from simsearch.indexing import meta_update, sketches
from simsearch.search import sketch, sketch_making
from simsearch.search.snapshot import Snapshots


def allow_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a sketch from 100 rows on, whatever it saves, and uses it for nearly every search."""
    for module, names in (
        (sketch_making, {"LEAST": 100, "LAG": 5, "SAMPLE": 200, "QUERIES": 8, "SCAN": 1.0}),
        (sketch, {"FEWEST": 20, "SHARE": 2, "MOST": 1.0}),
    ):
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)


def refresh(engine: Engine, learn: bool = True) -> None:
    """Brings an engine's sketch in step, as a build does at its end."""
    with engine.index.writing():
        meta_update.refresh_meta(engine.index)
        sketches.update(engine.index, learn)


def loaded(engine: Engine) -> sketch.Sketch | None:
    """The sketch that the engine's searches use."""
    assert isinstance(engine.snapshots, Snapshots)
    with engine.reading() as reader:
        engine.snapshot(reader)
        return engine.snapshots.sketch(reader.compactions())
