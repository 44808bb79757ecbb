"""Fixtures of the source tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import simsearch
from simsearch import api
from simsearch.indexing import options as indexing_options
from tests.helpers.models import CellModel


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., indexing_options.Summary]]:
    """Builds `tmp_path/index` from places, or brings it up to date where none are named."""
    opened: list[simsearch.Engine] = []

    def run(*places: Path, **options: Any) -> indexing_options.Summary:
        names = [str(place) for place in places]
        engine, summary = api.build_with_summary(
            names, tmp_path / "index", CellModel(), device="cpu", options=indexing_options.BuildOptions(**options)
        )
        opened.append(engine)
        return summary

    yield run
    for engine in opened:
        engine.close()
