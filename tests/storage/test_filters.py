"""Conditions on items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsearch.errors import UsageError
from simsearch.storage.database import Changes
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
        ("width=1", range(10)),
        ("n=1e400", []),
        ("n<1e1", range(10)),
        ("n>=7.50", [8, 9]),
        ("n=7.0", [7]),
        ("n=1_0", []),
        ("n=٧", []),
        (" n = 7 ", [7]),
        ("n=07", []),
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
            ({"n": [3, 5, 77]}, [4, 6]),
            ({"n": np.array([3, 5])}, [4, 6]),
            ({"n": np.int64(3)}, [4]),
            ({"n": np.float32(3)}, [4]),
            ({"n": np.bool_(True)}, [2]),
            ({"n": {3, 5}, "label": ("one", "three")}, [4, 6]),
            ({"n": []}, []),
            (["n=3", "n=5", "label=one"], [4]),
            (["n=3", "n=5", "n!=5"], [4]),
            (["label=one", "label=two", "n<4"], [1, 2, 4]),
        ):
            found = engine.search_by_vector(np.zeros(2), 10, where=where)
            assert [m.id for m in found] == list(expected), where


NAMES = ("size", "größe", "カテゴリ", 'a"b', "a.b", "a b", "a[0]", "back\\slash", "it's", "$", "%_", "tab\there")


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes an index of items with the given metadata, ids from 1, and returns a function that filters it."""
    opened = []

    def make(*metadata: dict[str, Any]) -> Callable[[Any], list[int]]:
        filler = Filler(tmp_path / "index", 2)
        opened.append(filler.engine)
        filler.add(np.zeros((len(metadata), 2)))
        with filler.engine.reading() as reader:
            items = [replace(item, metadata=metadata[item.id - 1]) for item in reader.items()]
        filler.engine.index.database.apply(Changes(updated=items))
        return lambda where: [m.id for m in filler.engine.search_by_vector(np.zeros(2), 50, where=where)]

    yield make
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_field(name: str, table: Callable[..., Any]) -> None:
    find = table({name: 0}, {name: 1}, {name: "x"}, {"other": 1})
    assert find([f"{name}=1"]) == find({name: 1}) == [2]
    assert find([f"{name}!=1"]) == [1, 3, 4]
    assert find([f"{name}<1"]) == [1]
    assert find([f"{name}~x*"]) == [3]
    assert find({f"metadata.{name}": ["x", 0]}) == [1, 3]


def test_numbers_written_in_full(table: Callable[..., Any]) -> None:
    values = (1.1, "1.10", "1.100", 7, "007", "7", 2**62 + 1, 2**62, "12E4", str(2**64 - 1), str(2**64 - 2), True)
    find = table(*({"v": value} for value in values))
    for text, expected in (
        ("1.10", [2]),
        ("1.1", [1]),
        ("7", [4, 6]),
        ("007", [5]),
        (str(2**62 + 1), [7]),
        ("12E4", [9]),
        (str(2**64 - 1), [10]),
        ("true", [12]),
    ):
        assert find([f"v={text}"]) == expected, text
    assert find(["v<1.5"]) == [1, 2, 3, 12]
    assert find(["v>=7", "v<9"]) == [4, 6]


def test_words_where_numbers_are_due(table: Callable[..., Any]) -> None:
    find = table({"year": 1999, "name": "b"}, {"year": 2001, "name": "d"})
    assert find(["name<c"]) == [1]
    for condition in ("bytes<1kB", "id<=abc", "width>1OO", "height=x", "year<abc", "bytes!=10MB"):
        with pytest.raises(UsageError, match="is not a number"):
            find([condition])


def test_field_of_no_item(table: Callable[..., Any]) -> None:
    find = table({"year": 1999, "größe": 1})
    for condition in ("yaer=1999", "yaer!=1999", "yaer<1"):
        with pytest.raises(UsageError) as caught:
            find([condition])
        fields = "label, path, id, width, height, bytes, größe, year"
        assert str(caught.value) == f"no item has a field 'yaer'; the fields are {fields}"
        assert caught.value.hint == "did you mean year?"
    assert find(["year=1"]) == []
    with pytest.raises(UsageError, match="neither text nor a number"):
        find({"year": object()})
