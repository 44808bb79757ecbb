"""`compact` reclaims the space of removed items and changes nothing else, even with readers or if killed."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsearch.cli.main import main
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, IndexLockedError, SimsearchError, UsageError
from simsearch.indexing import compact, meta_update, tune
from simsearch.indexing.compact import CompactReport
from simsearch.indexing.compact import compact as compact_compact
from simsearch.search import ann, measuring
from simsearch.search.exact import FlatIndex
from simsearch.storage import database, feature_files
from simsearch.storage.feature_files import PREAMBLE, FeatureFiles
from simsearch.storage.index import Index
from simsearch.storage.lock import writer_lock
from simsearch.storage.verify import verify
from tests.helpers.data import ROOT
from tests.helpers.dying import trace
from tests.helpers.filler import Filler

D, PER = 8, 32


def holed(path: Path, n: int = 150, first: int = 70) -> tuple[Filler, np.ndarray]:
    """Makes an index, removes every third item from `first` on, and changes the features of two items."""
    filler = Filler(path, D, rows_per_shard=PER)
    features = np.random.default_rng(1).normal(0, 5, (n, D)).astype(np.float16)
    for start in range(0, n, 20):
        filler.add(features[start : start + 20])
    filler.edit([n, n - 1], np.ones((2, D)))
    features[[n - 1, n - 2]] = 1
    filler.remove(range(first, n - 2, 3))
    meta_update.refresh_meta(filler.engine.index)
    return filler, features


def content(engine: Engine) -> dict[int, list[float]]:
    """Returns the features of each item."""
    with engine.reading() as reader:
        ids, rows = reader.ids_and_rows()
        return dict(zip(ids.tolist(), engine.snapshot(reader).flat.read(rows).tolist(), strict=True))


def names(path: Path, pattern: str = "features/*") -> list[str]:
    return sorted(file.name for file in path.glob(pattern))


def test_rows_are_reclaimed_and_items_stay(tmp_path: Path) -> None:
    filler, features = holed(tmp_path / "index")
    engine = filler.engine
    before, found = content(engine), engine.search_by_vector(features[9].astype(np.float32), 50)
    size = sum(file.stat().st_size for file in (filler.path / "features").iterdir())
    kept = (filler.path / "features" / "000001.f16").stat().st_ino
    planned = compact_compact(engine.index, dry_run=True)
    assert content(engine) == before and names(filler.path)[0] == "000000.f16"
    done = compact_compact(engine.index)
    assert done == planned == CompactReport(len(before), 28, size - 4 * PREAMBLE - len(before) * 2 * D)
    assert names(filler.path) == [f"00000{n}.1.f16" for n in range(4)]
    assert (filler.path / "features" / "000001.1.f16").stat().st_ino == kept  # nothing before the first hole is copied
    for again in (engine, Engine(filler.path, model=filler.model)):
        assert content(again) == before
        assert again.search_by_vector(features[9].astype(np.float32), 50) == found
        assert verify(again.index).problems == ()
        assert again.info()["rows"] == len(again) == len(before)
    assert compact_compact(engine.index) == CompactReport(len(before), 0, 0)
    filler.rows = len(before)
    filler.add(np.full((40, D), 3))
    assert (
        verify(engine.index).problems == () and engine.search_by_vector(np.full(D, 3, np.float32), 1)[0].distance == 0
    )
    assert names(filler.path)[-1] == "000005.1.f16"


def test_all_removed(tmp_path: Path) -> None:
    filler, _ = holed(tmp_path / "index")
    filler.remove(range(1, 151))
    assert compact_compact(filler.engine.index).items == 0
    assert names(filler.path) == [] and verify(filler.engine.index).problems == ()
    filler.rows = 0
    filler.add(np.ones((3, D)))
    assert (
        verify(filler.engine.index).problems == ()
        and len(filler.engine.search_by_vector(np.ones(D, np.float32), 5)) == 3
    )


def test_readers_go_on_with_what_they_hold(tmp_path: Path) -> None:
    filler, features = holed(tmp_path / "index")
    with Engine(filler.path, model=filler.model) as reading:
        with reading.reading() as reader:
            before = content(filler.engine)
            compact_compact(filler.engine.index)
            filler.rows = len(before)
            filler.add(np.zeros((PER, D)))
            ids, rows = reader.ids_and_rows()
            snapshot = reading.snapshot(reader)
            assert isinstance(snapshot.flat, FlatIndex) and snapshot.flat.shards.compactions == 0
            assert dict(zip(ids.tolist(), snapshot.flat.read(rows).tolist(), strict=True)) == before
            assert reader.shards.read(rows).tolist() == list(before.values())
            first, count, checksum = reader.blocks()[-1]
            assert reader.shards.checksum(first, count) == checksum
            (found,) = snapshot.flat.search(features[9:10].astype(np.float32), 1, snapshot.live)
            assert found.rows.tolist() == [9]
        assert len(reading.search_by_vector(np.zeros(D, np.float32), 1000)) == len(before) + PER


def test_late_reader_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are deleted after the reader has read the database and before it maps them."""
    filler, _ = holed(tmp_path / "index")
    before = content(filler.engine)
    late = Engine(filler.path, model=filler.model)
    late.index.database._shards = feature_files.FeatureFiles(filler.path / "features", D, PER)  # nothing mapped yet
    hold, calls = feature_files.FeatureFiles.keep_open, []

    def slow(self: feature_files.FeatureFiles, rows: int) -> bool:
        calls.append(self.compactions)
        monkeypatch.setattr(feature_files.FeatureFiles, "keep_open", hold)
        compact_compact(filler.engine.index)
        return hold(self, rows)

    monkeypatch.setattr(feature_files.FeatureFiles, "keep_open", slow)
    assert content(late) == before
    assert calls == [0] and late.shards.compactions == 1


def test_searches_beside_compactions(tmp_path: Path) -> None:
    """Two threads search while a third of the items is removed and others are added, repeatedly."""
    filler = Filler(tmp_path / "index", D, rows_per_shard=PER)
    value = np.arange(3000) % 97  # the value of all features of the n-th item added
    filler.add(np.repeat(value[:200, None], D, 1))
    over = threading.Event()

    def search(seed: int) -> int:
        random, searches = np.random.default_rng(seed), 0
        while not over.is_set():
            wanted = int(random.integers(0, 97))
            for match in engine.search_by_vector(np.full(D, wanted, np.float32), 3):
                assert match.distance == pytest.approx(abs(value[match.metadata["n"]] - wanted) * D**0.5)
            searches += 1
        return searches

    with Engine(filler.path, model=filler.model) as engine, ThreadPoolExecutor(2) as pool:
        counts = [pool.submit(search, seed) for seed in (1, 2)]
        alive = set(range(1, 201))
        try:
            for seed in range(12):
                gone = np.random.default_rng(seed).permutation(sorted(alive))[: len(alive) // 3].tolist()
                filler.remove(gone)
                alive -= set(gone)
                compact_compact(filler.engine.index)
                filler.rows = len(alive)
                alive |= set(range(filler.count + 1, filler.count + 71))
                filler.add(np.repeat(value[filler.count : filler.count + 70, None], D, 1))
        finally:
            over.set()
        assert all(count.result() > 0 for count in counts)
    assert verify(filler.engine.index).problems == () and filler.engine.shards.compactions == 12


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every structure count as faster than a scan."""
    clock = iter(range(10**9))
    monkeypatch.setattr(measuring, "time_queries", lambda search, queries: (1 / (1 + next(clock)), 1))


def test_the_search_structure_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filler = Filler(tmp_path / "index", 32, rows_per_shard=512)
    centres = np.random.default_rng(2).normal(0, 3, (30, 32))
    features = (centres[np.arange(3000) % 30] + np.random.default_rng(3).normal(0, 1, (3000, 32))).astype(np.float16)
    filler.add(features)
    quick(monkeypatch)
    tune.tune(filler.engine.index, 0.9)
    filler.add(features[:100] + np.float16(0.25))
    gone = set(range(1, 3000, 4))
    filler.remove(sorted(gone))
    assert compact_compact(filler.engine.index).removed == len(gone)
    for engine in (filler.engine, Engine(filler.path, model=filler.model)):
        assert not engine.exact
        hits = 0
        for query in features[1:200:4].astype(np.float32):
            found, exact = (engine.search_by_vector(query, 10, exact=how) for how in (False, True))
            assert len(found) == 10 and not gone & {match.id for match in found}
            hits += len({match.id for match in found} & {match.id for match in exact})
        assert hits >= 450
        assert engine.search_by_vector((features[1] + np.float16(0.25)).astype(np.float32), 1)[0].id == 3002
    filler.remove(range(4, 900, 4))
    compact_compact(filler.engine.index)
    assert not filler.engine.exact
    compact_compact(filler.engine.index)
    assert names(next((filler.path / "derived").iterdir()), "rows*") == ["rows.1.npz", "rows.2.npz", "rows.npy"]


def test_structure_of_moved_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filler = Filler(tmp_path / "index", D)
    filler.add(np.random.default_rng(0).normal(0, 1, (2500, D)))
    filler.remove(range(1, 400))
    quick(monkeypatch)
    record = tune.record_choice

    def late(index: Index, *rest: Any) -> Any:
        compact_compact(filler.engine.index)
        return record(index, *rest)

    monkeypatch.setattr(tune, "record_choice", late)
    with pytest.raises(UsageError, match="compacted during tuning"):
        tune.tune(filler.engine.index, 0.9)
    assert filler.engine.exact


def test_damage_is_not_given_a_new_checksum(tmp_path: Path) -> None:
    filler, _ = holed(tmp_path / "index")
    file = filler.path / "features" / "000003.f16"
    data = bytearray(file.read_bytes())
    data[PREAMBLE + 5] ^= 1
    file.write_bytes(data)
    with pytest.raises(IndexDamagedError, match="checksum"):
        compact_compact(filler.engine.index)
    assert filler.engine.shards.compactions == 0
    assert {f"00000{n}.f16" for n in range(5)} <= set(names(filler.path))


def test_a_full_disk_is_not_filled_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filler, _ = holed(tmp_path / "index")
    before, there = content(filler.engine), names(filler.path)

    def full(*_: object) -> int:
        raise SimsearchError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(FeatureFiles, "write", full)
        with pytest.raises(SimsearchError, match="no space"):
            compact_compact(filler.engine.index)
    assert set(names(filler.path)) <= set(there)
    assert content(filler.engine) == before
    compact_compact(filler.engine.index)
    assert content(filler.engine) == before


def test_without_descriptors_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filler, _ = holed(tmp_path / "index")
    shards, opened = filler.engine.shards.after(0), os.open

    def refused(path: Path, *arguments: int, **options: int) -> int:
        if str(path).endswith("2.f16"):
            raise OSError(errno.EMFILE, "too many open files")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    assert shards.keep_open(filler.rows)
    monkeypatch.undo()
    assert not shards._descriptors
    assert shards.keep_open(filler.rows) and shards._descriptors


def test_one_writer(tmp_path: Path) -> None:
    filler, _ = holed(tmp_path / "index")
    with writer_lock(filler.path), pytest.raises(IndexLockedError):
        compact_compact(filler.engine.index)


def test_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    filler, _ = holed(tmp_path / "index")
    before = content(filler.engine)
    compact_compact(filler.engine.index)
    assert content(filler.engine) == before and verify(filler.engine.index).problems == ()


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filler, _ = holed(tmp_path / "index")

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["compact", "-i", str(filler.path), *arguments])
        assert not end.value.code
        return capsys.readouterr().out

    with pytest.raises(SystemExit):
        main(["info", "-i", str(filler.path)])
    assert f"28 unused rows; simsearch compact -i {filler.path} reclaims" in capsys.readouterr().out
    assert "28 unused rows" in run("--dry-run") and "nothing was changed" in run("--dry-run")
    facts = json.loads(run("--format", "json"))
    assert facts["removed"] == 28 and facts["reclaimed"] > 0
    assert "0 unused rows, 0 B (0 bytes) reclaimed" in run()


# -- killed at chosen lines, in a separate process

WATCHED = (compact, database, feature_files, meta_update, ann)


def harness(folder: Path, times: int, seed: int) -> None:
    """Kills compactions of one index at `times` random lines, and checks the index after each."""
    compact.ROWS = 16
    filler, _ = holed(folder / "base", first=40)
    before = content(filler.engine)
    filler.engine.close()

    def whole(path: Path) -> None:
        with Engine(path, model=filler.model) as engine:
            compact_compact(engine.index)

    shutil.copytree(filler.path, folder / "counted")
    count = trace(-1, *WATCHED)
    whole(folder / "counted")
    sys.settrace(None)
    rounds = []
    for line in sorted(random.Random(seed).sample(range(1, count[0]), times)):
        index = folder / f"at{line}"
        shutil.copytree(filler.path, index)
        child = os.fork()
        if child == 0:
            trace(line, *WATCHED)
            whole(index)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with Engine(index, model=filler.model) as engine:
            assert verify(engine.index).problems == ()
            assert content(engine) == before
            compactions = engine.shards.compactions
            done = compact_compact(engine.index)
            assert (done.removed > 0) == (compactions == 0)
            assert content(engine) == before and verify(engine.index).problems == ()
            assert names(index) == names(folder / "counted")
        rounds.append(compactions)
    print(json.dumps(rounds))


def test_killed_at_any_line(tmp_path: Path) -> None:
    code = f"from tests.indexing.test_compact import *\nharness(Path({str(tmp_path)!r}), times=24, seed=5)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {0, 1}  # some kills came before the commit, some after
