"""Sketches follow their index, and losing one loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsearch.engine import Engine
from simsearch.indexing import sketches, sync
from simsearch.indexing.compact import compact
from simsearch.search import sketch_files, sketch_making
from simsearch.storage.database import Changes
from simsearch.storage.meta import Meta
from simsearch.storage.verify import verify
from tests.helpers.clusters import D, clustered
from tests.helpers.dying import trace
from tests.helpers.filler import Filler
from tests.helpers.scan import Scan, agree
from tests.helpers.sketched import allow_small, loaded, refresh
from tests.helpers.sync import ALL

WATCHED = (sketches, sketch_making, sketch_files)


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filler:
    allow_small(monkeypatch)
    filler = Filler(tmp_path / "index", D, 128)
    filler.add(clustered(np.random.default_rng(0), 400))
    refresh(filler.engine)
    return filler


def answers(engine: Engine, folder: Path) -> None:
    """Asserts that searches are right."""
    scan = Scan.of(engine, folder)
    for query in clustered(np.random.default_rng(9), 5).astype(np.float32):
        agree(engine.search_by_vector(query, 7), scan.search(query, 7))


def folders(filler: Filler) -> list[str]:
    return sorted(path.name for path in (filler.path / "derived").iterdir())


def test_small_groups_get_a_sketch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 10th neighbour of an item is in its group, the 40th is anywhere: codes help, and are made."""
    allow_small(monkeypatch)
    monkeypatch.setattr(sketch_making, "SCAN", 1e-9)
    random = np.random.default_rng(6)
    features = np.repeat(random.normal(0, 10, (100, 600)), 20, axis=0) + random.normal(0, 0.1, (2000, 600))
    filler = Filler(tmp_path / "index", 600, 128)
    filler.add(features.astype(np.float16))
    refresh(filler.engine)
    assert loaded(filler.engine) is not None
    distances = filler.engine.neighbours(features[:1].astype(np.float32), 10)[1][0]
    stored = features.astype(np.float16).astype(np.float64)
    expected = np.sort(np.linalg.norm(stored - features[0].astype(np.float32), axis=1))[:10]
    assert distances == pytest.approx(expected, rel=1e-12)


def test_new_rows_are_appended(filled: Filler, tmp_path: Path) -> None:
    first = folders(filled)
    for count, covered in ((3, 400), (4, 407), (60, 467)):
        filled.add(clustered(np.random.default_rng(count), count))
        refresh(filled.engine, learn=False)
        assert (found := loaded(filled.engine)) is not None and found.rows == covered
        answers(filled.engine, tmp_path / "out")
    assert folders(filled) == first


def test_kept_up_while_a_build_goes_on(filled: Filler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "BEHIND", 50)
    generation = Meta.read(filled.path).generation
    with Engine(filled.path, model=filled.model) as reader:
        for count, covered in ((40, 400), (30, 470), (1300, 1770)):
            filled.add(clustered(np.random.default_rng(count), count))
            with filled.engine.index.writing():
                sketches.keep_up(filled.engine.index, filled.rows)
            assert (found := loaded(reader)) is not None and found.rows == covered
            answers(reader, tmp_path / f"out{count}")
    assert Meta.read(filled.path).generation == generation  # the rest of it is older
    assert len(folders(filled)) == 1


def test_builds_keep_sketches_up(build: Any, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(sync, "COMMIT_IMAGES", 4)
    monkeypatch.setattr(sketches, "keep_up", lambda _, committed: rows.append(committed))
    build(photos, batch_size=4)
    assert len(rows) > 2 and rows == sorted(rows) and rows[-1] > ALL - 4


def test_learned_again_when_grown(filled: Filler, tmp_path: Path) -> None:
    first = folders(filled)
    filled.add(clustered(np.random.default_rng(2), 1300))
    refresh(filled.engine)
    assert folders(filled) != first and len(folders(filled)) == 1
    answers(filled.engine, tmp_path / "out")


def test_learned_again_when_features_drift(filled: Filler, tmp_path: Path) -> None:
    first = folders(filled)
    filled.add(9 * clustered(np.random.default_rng(2), 200))
    refresh(filled.engine)
    assert folders(filled) != first
    answers(filled.engine, tmp_path / "out")


def test_compacted(filled: Filler, tmp_path: Path) -> None:
    filled.remove(list(range(10, 90)))
    answers(filled.engine, tmp_path / "out")
    compact(filled.engine.index)
    assert (found := loaded(filled.engine)) is not None and found.rows == 320
    assert len(folders(filled)) == 1
    answers(filled.engine, tmp_path / "out")


@pytest.mark.parametrize("name", ["rows.0.npy", "bounds.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "shorter", "missing"])
def test_damage_means_scans(filled: Filler, tmp_path: Path, name: str, damage: str) -> None:
    path = next((filled.path / "derived").glob(f"*/{name}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flipped" else data[:-1])
    with Engine(filled.path, model=filled.model) as engine:
        assert loaded(engine) is None and engine.info()["search"]["exact"] == {"proved": False}
        answers(engine, tmp_path / "out")
    assert (verify(filled.engine.index).problems == ()) == (damage == "missing")
    filled.add(clustered(np.random.default_rng(1), 100))
    refresh(filled.engine)
    with Engine(filled.path, model=filled.model) as engine:
        assert loaded(engine) is not None
        answers(engine, tmp_path / "out2")


@pytest.mark.parametrize("rows", [401, 1 << 20, 1 << 40])
def test_more_rows_recorded_than_there_are(filled: Filler, tmp_path: Path, rows: int) -> None:
    meta = filled.engine.index.meta
    filled.engine.index.write_meta(replace(meta, sketch={**meta.sketch, "rows": rows}))
    with Engine(filled.path, model=filled.model) as engine:
        assert loaded(engine) is None
        answers(engine, tmp_path / "out")


def test_lost_derived_folder(filled: Filler, tmp_path: Path) -> None:
    shutil.rmtree(filled.path / "derived")
    with Engine(filled.path, model=filled.model) as engine:
        answers(engine, tmp_path / "out")
        refresh(engine)
        answers(engine, tmp_path / "out2")
        assert loaded(engine) is not None


def test_sketch_of_other_rows(filled: Filler, tmp_path: Path) -> None:
    other = Filler(tmp_path / "other", D, 128)
    other.add(clustered(np.random.default_rng(5), 400))
    shutil.copytree(filled.path / "derived", other.path / "derived")
    meta = Meta.read(other.path)
    Meta(**{**vars(meta), "sketch": Meta.read(filled.path).sketch}).write(other.path)
    with Engine(other.path, model=other.model) as engine:
        assert loaded(engine) is None
        answers(engine, tmp_path / "out")


def test_open_reader_keeps_its_sketch(filled: Filler) -> None:
    with filled.engine.reading() as reader:
        flat = filled.engine.snapshot(reader).flat
        query = clustered(np.random.default_rng(9), 1).astype(np.float32)
        before = flat.search(query, 5, None)[0]
        with Engine(filled.path, model=filled.model) as other:
            filled.remove(list(range(1, 100)))
            compact(other.index)
        after = flat.search(query, 5, None)[0]
    assert before.rows.tolist() == after.rows.tolist()


@pytest.mark.parametrize("made", [False, True], ids=["made", "extended"])
def test_killed_at_any_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    allow_small(monkeypatch)
    filler = Filler(tmp_path / "index", D, 128)
    filler.add(clustered(np.random.default_rng(0), 300))
    if made:
        refresh(filler.engine)
        filler.add(clustered(np.random.default_rng(1), 30))
    filler.engine.close()
    count = trace(-1, *WATCHED)
    shutil.copytree(filler.path, tmp_path / "whole")
    with Engine(tmp_path / "whole", model=filler.model) as engine:
        refresh(engine)
    lines = np.random.default_rng(0).choice(np.arange(1, count[0]), 8, replace=False).tolist()
    trace(-1)
    for number, line in enumerate(lines):
        path = tmp_path / f"{number}"
        shutil.copytree(filler.path, path)
        child = os.fork()
        if child == 0:
            trace(line, *WATCHED)
            with Engine(path, model=filler.model) as engine:
                refresh(engine)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with Engine(path, model=filler.model) as engine:
            assert verify(engine.index).problems == ()
            answers(engine, tmp_path / f"out{number}")
            refresh(engine)
            assert (found := loaded(engine)) is not None and found.rows == len(engine)
            answers(engine, tmp_path / f"again{number}")
            assert len(list((path / "derived").iterdir())) == 1


def test_counts_of_a_killed_process_are_corrected(filled: Filler) -> None:
    """A sketch made after a removal that never came to `meta.json` does not pass old counts for new ones."""
    filled.engine.index.database.apply(Changes(deleted=[7]))
    shutil.rmtree(filled.path / "derived")
    with filled.engine.index.writing():
        sketches.update(filled.engine.index)
    assert verify(filled.engine.index).problems == ()
    refresh(filled.engine)
    assert Meta.read(filled.path).items == 399
