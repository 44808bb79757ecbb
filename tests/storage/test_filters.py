"""Conditions on items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from simsearch.storage.filters import Condition
from tests.helpers.filler import Filler


@pytest.mark.parametrize(
    ("condition", "numbers"),
    [
        ("n=7", [7]),
        ("n!=7", [0, *range(1, 7), 8, 9]),
        ("n>7.5", [8, 9]),
        ("n<=1", [0, 1]),
        ("metadata.n=7", [7]),
        ("bytes>=8", [8, 9]),
        ("id=1", [0]),
        ("id<99999999999999999999999", range(10)),
        ("id=99999999999999999999999", []),
        ("label=one", [0, 3, 6, 9]),
        ("label!=one", [1, 2, 4, 5, 7, 8]),
        ("label~t*", [1, 2, 4, 5, 7, 8]),
        ("path=000003", [3]),
        ("path~*[45]", [4, 5]),
        ("path~*\udcff*", []),
        ("label=\udcff", []),
        ("none=1", []),
        ("none!=1", range(10)),
        ("width=1", range(10)),
        ("n=1e400", []),
        (" n = 7 ", [7]),
        ("n\udcff=1", []),
        ("n=07", [7]),
    ],
)
def test_conditions(tmp_path: Path, condition: str, numbers: Sequence[int]) -> None:
    filler = Filler(tmp_path / "index", 2)
    filler.add(np.zeros((10, 2)))
    with filler.engine.reading() as reader:
        assert reader.rows([Condition.parse(condition)]).tolist() == list(numbers)
    filler.engine.close()


def test_where_as_a_mapping(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 2)
    filler.add(np.zeros((10, 2)))
    with filler.engine as engine:
        for where, expected in (
            ({"label": "one", "n": 3}, [4]),
            ({"n": 3.0}, [4]),
            ({"n": "3"}, [4]),
            ({"label": None}, []),
            ({"n": float("nan")}, []),
            ({"n": 10**400}, []),
            ({}, range(1, 11)),
        ):
            assert [m.id for m in engine.search_by_vector(np.zeros(2), 10, where=where)] == list(expected), where
