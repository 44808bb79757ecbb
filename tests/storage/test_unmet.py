"""Conditions that no item meets, and the values that were probably meant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import simsearch
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.storage import unmet
from simsearch.storage.reader import Reader
from tests.helpers.models import Colours
from tests.helpers.pictures import draw

LABELS = ("cat", "cat", "cat", "dog", "dog", "owl")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    lines = ["path,label,place,year"]
    for number, label in enumerate(LABELS):
        draw(tmp_path / f"{number}.png", number)
        lines.append(f"{number}.png,{label},{'Paris' if number else 'Rome'},{2000 + number}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    with simsearch.build(tmp_path / "table.csv", tmp_path / "index", model=Colours()) as engine:
        yield engine


@pytest.mark.parametrize(
    ("where", "sentences"),
    [
        ({"label": "cat"}, []),
        ({"label": "dgo"}, ["no item meets label=dgo; did you mean label=dog?"]),
        (["label=moose"], ["no item meets label=moose; the labels are cat, dog, owl"]),
        (["label~m*", "label!=x"], ["no item meets label~m*; the labels are cat, dog, owl"]),
        ({"label": ["cat", "Owls"]}, ["no item meets label=Owls; did you mean label=owl?"]),
        ({"place": "Pari"}, ["no item meets place=Pari; did you mean place=Paris?"]),
        (
            {"metadata.place": "Oslo"},
            ["no item meets metadata.place=Oslo; the values of metadata.place are Paris, Rome"],
        ),
        (
            ["width=1", "year>2010", "path~x"],
            ["no item meets width=1", "no item meets year>2010", "no item meets path~x"],
        ),
        (["year=1999"], ["no item meets year=1999"]),
        ("label=dgo", ["no item meets label=dgo; did you mean label=dog?"]),
    ],
    ids=str,
)
def test_values_that_were_meant(engine: Engine, where: object, sentences: list[str]) -> None:
    assert engine.unmet(where) == sentences  # type: ignore[arg-type]


def test_lists_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmet, "SHOWN", 2)
    assert engine.unmet(["label=x"]) == ["no item meets label=x; the labels are cat, dog, ..."]
    assert len(engine.unmet({"label": [str(n) for n in range(100)]})) == unmet.CHECKED


def test_unknown_field_is_an_error(engine: Engine) -> None:
    with pytest.raises(UsageError, match="no item has a field 'plaec'"):
        engine.unmet({"plaec": "Paris"})


def test_counts_of_values(engine: Engine) -> None:
    with engine.reading() as reader:
        assert list(reader.value_counts("label").items()) == [("cat", 3), ("dog", 2), ("owl", 1)]
        assert reader.value_counts("label", 1) == {"cat": 3}
        assert reader.value_counts("place") == {"Paris": 5, "Rome": 1}
        assert reader.value_counts("year") == {}  # numbers
    assert engine.info()["label_counts"] == {"cat": 3, "dog": 2, "owl": 1}


def test_info_counts_an_unchanged_index_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, value_counts = [], Reader.value_counts

    def counting(reader: Reader, field: str, limit: int = -1) -> dict[str, int]:
        counted.append(field)
        return value_counts(reader, field, limit)

    monkeypatch.setattr(Reader, "value_counts", counting)
    monkeypatch.setattr(Reader, "label_count", None)  # the same pass over all items once more
    before = engine.info()
    before["label_counts"]["cat"] = 100
    assert engine.info()["label_counts"] == {"cat": 3, "dog": 2, "owl": 1} and counted == ["label"]
    with Engine(engine.path, model=Colours()) as other:  # as another process does
        other.remove([item.id for item in other if item.label == "owl"])
    after = engine.info()
    assert (after["labels"], after["label_counts"]) == (2, {"cat": 3, "dog": 2}) and counted == ["label"] * 2
    assert after["sources"][0]["items"] == 5
