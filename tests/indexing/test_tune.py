"""Approximate search: the guarantees of `tune`, whatever happens to the index afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from simsearch.cli.main import main
from simsearch.common import pca
from simsearch.common.intervals import mean_interval
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, IndexLockedError, UsageError
from simsearch.indexing import sync, tune
from simsearch.indexing.tune import tune as tune_tune
from simsearch.indexing.tune_codes import tune_codes
from simsearch.models.hashing.autoencoder import HashConfig
from simsearch.search import ann_files, measuring, tuning
from simsearch.search.ann import AnnSettings
from simsearch.search.exact import FlatIndex
from simsearch.storage.folder import Folder
from simsearch.storage.lock import writer_lock
from simsearch.storage.meta import Meta
from tests.helpers.clusters import D, clustered
from tests.helpers.filler import Filler
from tests.helpers.sketched import allow_small, refresh


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filler:
    """An index of 3,000 items, in which every structure counts as faster than a scan."""
    filler = Filler(tmp_path / "index", D, rows_per_shard=1024)
    filler.add(clustered(np.random.default_rng(0), 3000))
    clock = iter(range(10**9))
    monkeypatch.setattr(measuring, "time_queries", lambda search, queries: (1 / (1 + next(clock)), 1))
    return filler


def recall(engine: Engine, queries: np.ndarray, **options: object) -> float:
    """Returns the share of the ten exact matches that an approximate search finds, by distance."""
    hits = 0
    for query in queries:
        exact = engine.search_by_vector(query, 10, exact=True, **options)  # type: ignore[arg-type]
        found = engine.search_by_vector(query, 10, **options)  # type: ignore[arg-type]
        assert len(found) == len(exact)
        assert [m.distance for m in found] == sorted(m.distance for m in found)
        hits += sum(m.distance <= exact[-1].distance + 1e-9 for m in found)
    return hits / (10 * len(queries))


def test_tune_reaches_the_recall_and_records_it(filled: Filler) -> None:
    engine = filled.engine
    assert engine.exact
    choice = tune_tune(engine.index, 0.9)
    assert choice.kind in {"hnsw", "pq", "ivf", "sq8", "rabitq"}
    assert 0.9 <= choice.recall <= 1 and choice.low <= choice.recall <= choice.high
    with Engine(filled.path, model=filled.model) as again:
        assert not again.exact
        search = again.info()["search"]
        assert (search["kind"], search["recall"]) == (choice.kind, choice.recall)
        assert len(again.structure.rows) == 3000  # type: ignore[union-attr]
        queries = clustered(np.random.default_rng(5), 50).astype(np.float32)
        assert recall(again, queries) >= 0.85


def test_added_removed_and_filtered_items(filled: Filler) -> None:
    tune_tune(filled.engine.index, 0.9)
    random = np.random.default_rng(6)
    engine = filled.engine
    new = clustered(random, 300)
    filled.add(new)
    for number in (3001, 3150, 3300):
        assert engine.search_by_vector(new[number - 3001].astype(np.float32), 1)[0].id == number
    gone = set(range(1, 400))
    filled.remove(sorted(gone))
    queries = clustered(random, 40).astype(np.float32)
    for query in queries:
        assert not gone & {match.id for match in engine.search_by_vector(query, 20)}
        labels = {match.label for match in engine.search_by_vector(query, 20, where={"label": "two"})}
        assert labels == {"two"}
        assert len(engine.search_by_vector(query, 12, where=["n>=395", "n<407"])) == 8
    assert recall(engine, queries) >= 0.85
    assert recall(engine, queries, where={"label": "two"}) >= 0.85
    assert len(engine.search_by_vector(queries[0], 10_000)) == len(engine)


def test_lost_structure_loses_no_answers(filled: Filler) -> None:
    tune_tune(filled.engine.index, 0.9)
    query = clustered(np.random.default_rng(7), 1)[0].astype(np.float32)
    exact = filled.engine.search_by_vector(query, exact=True)
    for damage in ("rows.npy", None):
        folder = next((filled.path / "derived").iterdir())
        if damage:
            (folder / damage).write_bytes(b"no array")
            with pytest.raises(IndexDamagedError):
                ann_files.load(Folder.at(folder), Meta.read(filled.path).search["parameters"])
        else:
            shutil.rmtree(filled.path / "derived")
        with Engine(filled.path, model=filled.model) as engine:
            assert engine.exact
            assert engine.search_by_vector(query) == exact
            told = engine.info()["search"]
            assert told["missing"] and told["repair"] == f"simsearch tune --recall 0.9 -i {filled.path}"
    shown = CliRunner().invoke(main, ["info", "-i", str(filled.path)]).output
    assert f"its files are missing or damaged, so every search is exact; {told['repair']} makes new ones" in shown


def test_answers_say_whether_they_are_exact(filled: Filler) -> None:
    engine, query = filled.engine, clustered(np.random.default_rng(7), 1)[0].astype(np.float32)
    assert engine.search_by_vector(query).exact
    tune_tune(engine.index, 0.9)
    assert not engine.search_by_vector(query).exact
    assert engine.search_by_vector(query, exact=True).exact
    assert not engine.search_by_vector(query, where=["n<2000"]).exact
    assert engine.search_by_vector(query, where=["n<100"]).exact  # a narrow filter
    assert engine.search_by_vector(query, 2900).exact  # nearly all of them
    assert not engine.search_by_vector(query, expand=3).exact
    assert engine.search_by_vector(query, exact=True, expand=3).exact
    assert [found.exact for found in engine.search_by_vectors(np.stack([query, query]))] == [False, False]
    assert not engine.search_by_id(5).exact


def test_second_tune_replaces_first(filled: Filler) -> None:
    with Engine(filled.path, model=filled.model) as reader:
        assert [reader.exact] == [True]
        tune_tune(filled.engine.index, 0.9)
        reader.search_by_vector(np.zeros(D, np.float32))
        assert [reader.exact] == [False]
        first = {path.name for path in (filled.path / "derived").iterdir()}
        tune_tune(filled.engine.index, 0.9)
        assert len(first) == 1 and first != {path.name for path in (filled.path / "derived").iterdir()}
        tune_tune(filled.engine.index, 1.0)
        reader.search_by_vector(np.zeros(D, np.float32))
        assert reader.exact and reader.info()["search"]["kind"] == "exact"
        assert not list((filled.path / "derived").iterdir())


def test_an_interrupted_tune_changes_nothing(filled: Filler) -> None:
    before = (filled.path / "meta.json").read_bytes()

    def interrupt(done: int, total: int) -> None:
        if done > 3000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_tune(filled.engine.index, 0.9, progress=interrupt)
    assert (filled.path / "meta.json").read_bytes() == before
    assert not (filled.path / "derived").exists()


def test_another_writer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock held at the start raises before anything is measured; one held briefly at the end is waited for."""
    filler = Filler(tmp_path / "index", D)
    filler.add(clustered(np.random.default_rng(0), 100))
    record, recorded = tune.record_choice, []

    def late(*arguments: Any) -> tuning.Choice:
        writer = contextlib.ExitStack()
        writer.enter_context(writer_lock(filler.path))
        threading.Timer(0.3, writer.close).start()
        recorded.append(record(*arguments))
        return recorded[-1]

    monkeypatch.setattr(tune, "record_choice", late)
    monkeypatch.setattr(tune, "LOCK_SECONDS", 0.1)
    with writer_lock(filler.path):
        for attempt in (
            lambda: tune_tune(filler.engine.index, 0.9),
            lambda: tune_codes(filler.engine.index, HashConfig(64)),
        ):
            with pytest.raises(IndexLockedError, match=f"process {os.getpid()} is writing"):
                attempt()
    assert tune_tune(filler.engine.index, 0.9).kind == "exact" and len(recorded) == 1


def test_memory_is_a_limit(filled: Filler) -> None:
    assert tune_tune(filled.engine.index, 0.9, memory=1000).kind == "exact"
    choice = tune_tune(filled.engine.index, 0.9, memory=3000 * (D + 20))
    assert choice.kind in {"sq8", "rabitq", "ivf", "pq"} and choice.memory <= 3000 * (D + 20)
    codes = AnnSettings("sq8", D, 12, 0).bytes_for(3000)  # the smallest but for RaBitQ; held-out items count
    for memory, kinds in ((codes, {"sq8", "rabitq"}), (codes - 1, {"rabitq", "exact"})):
        assert tune_tune(filled.engine.index, 0.9, memory=memory).kind in kinds
    for wrong in (0.0, 1.5):
        with pytest.raises(UsageError, match="recall"):
            tune_tune(filled.engine.index, wrong)
    with pytest.raises(UsageError, match="memory"):
        tune_tune(filled.engine.index, 0.9, memory=0)


@pytest.mark.parametrize("kind", ["hnsw", "pq", "ivf", "sq8", "rabitq"])
def test_structures_take_what_is_said(kind: str) -> None:
    import faiss

    setting, features = AnnSettings(kind, 48, 12, 16), clustered(np.random.default_rng(0), 6000)
    onto = pca.fit_pca(features, 48)
    made = tuning.build(setting, onto, onto(features), np.arange(6000), 6000)
    taken = faiss.serialize_index(made.index).nbytes + made.rows.nbytes
    assert 0.75 * setting.bytes_for(6000) < taken < 1.05 * setting.bytes_for(6000)


@pytest.mark.parametrize("factor", [8000, 1e-6])
def test_features_of_any_size_are_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Also if projections exceed the range of float16, or are near its smallest numbers."""
    filler = Filler(tmp_path / "index", D)
    features = clustered(np.random.default_rng(0), 2500).astype(np.float32)
    filler.add(np.minimum(features * factor, 6e4))
    clock = iter(range(10**9))
    monkeypatch.setattr(measuring, "time_queries", lambda search, queries: (1 / (1 + next(clock)), 1))
    assert tune_tune(filler.engine.index, 0.95).recall >= 0.95
    queries = np.minimum(clustered(np.random.default_rng(5), 40).astype(np.float32) * np.float32(factor), 6e4)
    assert not filler.engine.exact and recall(filler.engine, queries) >= 0.9


def test_exact_scan_is_timed_on_existing_items(filled: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the first rows belong to removed items."""
    asked: list[Any] = []

    def timed(search: Any, queries: Any) -> tuple[float, int]:
        asked.append(search(queries[:1]))
        return 2.0, 1

    monkeypatch.setattr(tuning, "SCANNED", 500)
    monkeypatch.setattr(measuring, "time_queries", timed)
    monkeypatch.setattr(FlatIndex, "search", lambda self, queries, k, permitted: (self.rows, permitted.tolist()))
    entries = np.arange(1000, 3000)
    flat = FlatIndex(filled.engine.shards, 3000)
    assert tuning._exact_seconds(flat, entries, np.zeros((5, D), np.float32)) == 2.0 * 2000 / 500
    assert asked == [(1500, list(range(1000, 1500)))]


def test_proved_exact_search_can_win(filled: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_small(monkeypatch)
    refresh(filled.engine)
    monkeypatch.setattr(measuring, "time_queries", lambda search, queries: (len(search(queries[:1])), 1))
    choice = tune_tune(filled.engine.index, 0.9)
    assert (choice.kind, choice.proved, choice.seconds) == ("exact", True, 1) and choice.tried
    found = CliRunner().invoke(main, ["tune", "--recall", "0.9", "-i", str(filled.path)])
    assert "proved exact search, 1000.00 ms per query; nothing faster reaches the recall" in found.output
    assert filled.engine.info()["search"]["exact"]["proved"]


def test_a_small_index_stays_exact(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", D)
    filler.add(clustered(np.random.default_rng(0), 100))
    assert tune_tune(filler.engine.index, 0.9).kind == "exact"
    assert filler.engine.exact


@pytest.mark.parametrize("kind", ["hnsw", "pq", "ivf", "sq8", "rabitq"])
def test_every_kind_finds_what_it_holds(tmp_path: Path, kind: str) -> None:
    filler = Filler(tmp_path / "index", D)
    features = clustered(np.random.default_rng(0), 1000)
    filler.add(features)
    onto = pca.fit_pca(features, 32)
    setting = AnnSettings(kind, 32, 100, 64)
    made = tuning.build(setting, onto, onto(features), np.arange(1000), 1000)
    with filler.engine.reading() as reader:
        flat = filler.engine.snapshot(reader).flat
        assert isinstance(flat, FlatIndex)
        found = made.search(flat, features[:50].astype(np.float32), 3, None)
        assert [each.rows[0] for each in found] == list(range(50))
        odd = np.arange(1, 1000, 2)
        found = made.search(flat, features[:50].astype(np.float32), 3, odd)
        assert all((each.rows % 2 == 1).all() and len(each.rows) >= 3 for each in found)
    derived = Folder.at(tmp_path).child("derived", create=True)
    name, parameters = made.save(derived)
    assert setting.bytes_for(1000) > 0
    loaded = ann_files.load(derived.child(name), parameters)
    assert loaded.setting == setting and (loaded.rows == made.rows).all()


def test_projection_is_orthonormal_and_principal() -> None:
    random = np.random.default_rng(0)
    x = random.normal(0, 1, (500, 5)) @ random.normal(0, 1, (5, 60)) + random.normal(0, 0.01, (500, 60)) + 7
    onto = pca.fit_pca(x, 5)
    np.testing.assert_allclose(onto.axes.T @ onto.axes, np.eye(5), atol=1e-6)
    kept = (onto(x).astype(np.float64) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    exact = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    assert kept == pytest.approx(exact[:5].sum() / exact.sum(), rel=1e-4)


def test_interval() -> None:
    assert mean_interval(np.ones(200)) == (1 - 3 / 200, 1.0)
    low, high = mean_interval(np.array([0.9, 1.0] * 100))
    assert low == pytest.approx(0.95 - 1.96 * 0.05 / 200**0.5, rel=1e-2) and low < 0.95 < high


def test_tune_from_the_command_line(filled: Filler, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["--recall", "1"], "exact search\n"),
        (["--memory", "1K"], "exact search; no approximate search fits into the memory\n"),
    ):
        done = CliRunner().invoke(main, ["tune", *arguments, "-i", str(filled.path)])
        assert done.exit_code == 0 and done.stdout == f"{filled.path}: {told}"
    for arguments, code in (
        (["tune", "--recall", "0.9", "--memory", "1G", "--format", "json"], 0),
        (["tune", "--memory", "much"], 2),
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, "-i", str(filled.path)])
        assert end.value.code == code
        out = capsys.readouterr()
        if code == 0:
            facts = json.loads(out.out)
            assert facts["recall"] >= 0.9 and facts["parameters"]["folder"]
        else:
            assert "--memory 'much'" in out.err


def test_batches_are_as_exact_as_single_queries(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", D, rows_per_shard=512)
    random = np.random.default_rng(3)
    features = clustered(random, 3000)
    features[random.integers(0, 3000, 500)] = features[0]
    filler.add(features)
    filler.remove(range(1, 300, 7))
    with filler.engine.reading() as reader:
        snapshot = filler.engine.snapshot(reader)
    queries = np.concatenate([features[:20].astype(np.float32), random.normal(0, 1e4, (4, D)).astype(np.float32)])
    for k in (1, 10, 700):
        many = snapshot.flat.search(queries, k, snapshot.live)
        for query, found in zip(queries, many, strict=True):
            alone = snapshot.flat.search(query[None], k, snapshot.live)[0]
            assert sorted(found.rows) == sorted(alone.rows)
            np.testing.assert_array_equal(found.distances, alone.distances)


def test_structure_newer_than_reader_is_not_used(filled: Filler) -> None:
    tune_tune(filled.engine.index, 0.9)
    made = filled.engine.structure
    assert made is not None
    earlier = FlatIndex(filled.engine.shards, 2000)
    query = earlier.read(np.array([7])).astype(np.float32)
    (found,) = made.search(earlier, query, 10, None)
    (exact,) = earlier.search(query, 10, None)
    assert found.rows.tolist() == exact.rows.tolist() and max(found.rows) < 2000


def test_build_keeps_tuning_of_another_process(filled: Filler) -> None:
    with Engine(filled.path, model=filled.model) as other:
        tune_tune(filled.engine.index, 0.9)
        sync.remove(other.index, [other.item(5)])
        assert Meta.read(filled.path).search["kind"] != "exact"
