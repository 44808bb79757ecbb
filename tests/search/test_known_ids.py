"""Searches for ids read nothing from the database while the index does not change, and see every change at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.indexing.compact import compact
from simsearch.indexing.meta_update import refresh_meta
from tests.helpers.filler import Filler, Wide

D = 16


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    made = Filler(tmp_path / "index", D)
    made.add(np.random.default_rng(0).normal(0, 1, (300, D)))
    return made


def learnt(engine: Engine, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The answer, after enough searches that the ids of all rows are known."""
    with engine.index.writing(1.0):
        refresh_meta(engine.index)
    for _ in range(8):
        found = engine.neighbours(query, 5)
    assert engine._searches.snapshots.known() is not None
    return found


def slowly(path: Path, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The answer of an engine that has not searched before."""
    with Engine(path, model=Wide(D)) as other:
        return other.neighbours(query, 5)


def test_known_rows_give_the_same_answer(filler: Filler) -> None:
    query = np.random.default_rng(1).normal(0, 1, (3, D)).astype(np.float32)
    ids, distances = learnt(filler.engine, query)
    expected = slowly(filler.path, query)
    assert np.array_equal(ids, expected[0])
    assert np.array_equal(distances, expected[1])
    few = filler.engine.neighbours(query, 400)
    assert (few[0][:, 300:] == -1).all() and np.isinf(few[1][:, 300:]).all()
    assert filler.engine.neighbours(query[:0], 5)[0].shape == (0, 5)
    with pytest.raises(UsageError, match="too many for one answer"):
        filler.engine.neighbours(query, 2**40)


def test_meta_of_an_unfinished_commit_is_read_first(filler: Filler) -> None:
    """A writer tells what it has measured only after its commit."""
    query = np.ones((1, D), np.float32)
    learnt(filler.engine, query)
    filler.add(np.ones((1, D)))
    for _ in range(8):
        assert filler.engine.neighbours(query, 5)[0][0, 0] == 301
    assert filler.engine._searches.snapshots.known() is None
    with Engine(filler.path, model=Wide(D)) as other, other.index.writing(1.0):
        refresh_meta(other.index)
    for _ in range(8):
        assert filler.engine.neighbours(query, 5)[0][0, 0] == 301
    assert filler.engine._searches.snapshots.known() is not None
    assert filler.engine.meta.items == 301


def test_nothing_is_read_while_nothing_changes(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    query = np.ones((1, D), np.float32)
    before = learnt(filler.engine, query)
    monkeypatch.setattr(filler.engine.index, "reading", None)
    assert np.array_equal(filler.engine.neighbours(query, 5)[0], before[0])
    with pytest.raises(TypeError):
        filler.engine.neighbours(query, 5, where={"label": "one"})


@pytest.mark.parametrize("mine", [True, False])
def test_changes_are_seen_at_once(filler: Filler, mine: bool) -> None:
    """Changes by the connections of the engine that searches, and by those of another engine."""
    query = np.full((1, D), 3, np.float32)
    engine = filler.engine if mine else Engine(filler.path, model=Wide(D))
    for change in range(6):
        first = int(learnt(engine, query)[0][0, 0])
        if change % 3 == 0:
            filler.add(np.full((1, D), 3 - 0.01 * change))
            assert engine.neighbours(query, 5)[0][0, 0] == filler.count
        elif change % 3 == 1:
            filler.edit([first], np.full((1, D), -9))
            assert first not in engine.neighbours(query, 5)[0]
        else:
            filler.remove([first])
            assert first not in engine.neighbours(query, 5)[0]
        assert np.array_equal(engine.neighbours(query, 5)[0], slowly(filler.path, query)[0])


def test_compaction_renumbers_the_rows(filler: Filler) -> None:
    query = np.zeros((1, D), np.float32)
    filler.remove(list(range(1, 200)))
    before = learnt(filler.engine, query)
    with Engine(filler.path, model=Wide(D)) as other:
        compact(other.index)
    after = filler.engine.neighbours(query, 5)
    assert np.array_equal(after[0], before[0])
    assert np.array_equal(learnt(filler.engine, query)[1], before[1])


def test_another_process_commits(filler: Filler) -> None:
    query = np.full((1, D), 3, np.float32)
    first = int(learnt(filler.engine, query)[0][0, 0])
    code = (
        "import sys; from simsearch.engine import Engine; from simsearch.storage.database import Changes;"
        "from tests.helpers.filler import Wide;"
        f"Engine(sys.argv[1], model=Wide({D})).index.database.apply(Changes(deleted=[int(sys.argv[2])]))"
    )
    subprocess.run([sys.executable, "-c", code, str(filler.path), str(first)], check=True, timeout=100)
    assert first not in filler.engine.neighbours(query, 5)[0]


def test_closed_engine(filler: Filler) -> None:
    learnt(filler.engine, np.zeros((1, D), np.float32))
    filler.engine.close()
    with pytest.raises(UsageError, match="closed"):
        filler.engine.neighbours(np.zeros((1, D), np.float32), 5)
