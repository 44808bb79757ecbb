"""Merging of indexes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simsearch import api
from simsearch.cli.main import main
from simsearch.engine import Engine
from simsearch.errors import ModelMismatchError, UsageError
from simsearch.indexing.merge import merge_indexes
from simsearch.storage.verify import verify
from tests.helpers.filler import Filler
from tests.helpers.models import Colours
from tests.helpers.pictures import draw


def test_merge(tmp_path: Path, photos: Path, colours: Colours) -> None:
    draw(tmp_path / "more" / "new.png", 77)
    with (
        api.build(photos / "amber", tmp_path / "one", colours) as one,
        api.build([photos / "amber", photos / "blue", tmp_path / "more"], tmp_path / "two", colours) as two,
    ):
        before = colours.computed
        merged = merge_indexes(one.index, two.index)
        assert (merged.added, merged.known) == (7, 6) and len(one) == 13
        assert merge_indexes(one.index, two.index).added == 0
        assert colours.computed == before
        assert verify(one.index).problems == ()
        wanted = {match.path: match.distance for match in two.search(photos / "blue" / "1.png", 13)}
        found = {match.path: match.distance for match in one.search(photos / "blue" / "1.png", 13)}
        assert found == pytest.approx(wanted)
        assert api.build([], tmp_path / "one", colours) and len(one) == 13
        with pytest.raises(UsageError, match="into itself"):
            merge_indexes(one.index, one.index)
        filler = Filler(tmp_path / "other", 5)
        with pytest.raises(ModelMismatchError, match="model"):
            merge_indexes(one.index, filler.engine.index)


def test_merge_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = Filler(tmp_path / "one", 4), Filler(tmp_path / "two", 4)
    one.add(np.ones((2, 4)))
    two.add(np.zeros((5, 4)))
    with pytest.raises(SystemExit) as end:
        main(["merge", str(two.path), "-i", str(one.path)])
    assert not end.value.code
    assert "5 items; 3 from" in capsys.readouterr().out
    with Engine(one.path, model=one.model) as engine:
        assert len(engine) == 5 and verify(engine.index).problems == ()
