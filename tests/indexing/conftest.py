"""Fixtures of the build tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simsearch import api
from simsearch.indexing import options as indexing_options
from simsearch.storage.verify import verify
from tests.helpers.models import Colours


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def build(index: Path, colours: Colours) -> Callable[..., indexing_options.Summary]:
    """Builds with the `colours` model, checks that what is left is in order, and returns what was done.

    `computed` must be the number of images that went through the model.
    """

    def run(*names: Path | str, model: Any = colours, place: Path = index, **options: Any) -> indexing_options.Summary:
        before = model.computed
        roots = options.pop("roots", None)
        engine, summary = api.build_with_summary(
            names, place, model, device="cpu", options=indexing_options.BuildOptions(**options), roots=roots
        )
        with engine:
            assert summary.computed == model.computed - before
            assert summary.items == len(engine)
            assert verify(engine.index).problems == ()
        return summary

    return run
