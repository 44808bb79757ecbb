"""Search by binary codes keeps what every search promises."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simsearch.cli.main import main
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.indexing import meta_update, tune
from simsearch.indexing.compact import compact
from simsearch.indexing.tune_codes import tune_codes
from simsearch.models.hashing import autoencoder
from simsearch.models.hashing.autoencoder import HashConfig
from simsearch.models.hashing.encoder import HashEncoder
from simsearch.search import binary_codes, measuring
from simsearch.search.ann import AnnSettings
from simsearch.search.binary_codes import BinaryCodeIndex
from simsearch.search.exact import FlatIndex
from simsearch.storage.lock import writer_lock
from simsearch.storage.meta import Meta
from simsearch.storage.verify import verify
from tests.helpers.clusters import D, clustered
from tests.helpers.codes import QUICK, hyperplanes
from tests.helpers.filler import Filler

# -- searching


LEARNED: dict[Any, HashEncoder] = {}


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filler:
    """3,000 items; codes are learned from them only once."""
    train = autoencoder.train

    def once(sample: np.ndarray, config: HashConfig, progress: Any) -> HashEncoder:
        key = config, sample.tobytes()
        if key not in LEARNED:
            LEARNED[key] = train(sample, config, progress)
        return LEARNED[key]

    monkeypatch.setattr(autoencoder, "train", once)
    filler = Filler(tmp_path / "index", D, rows_per_shard=1024)
    filler.add(clustered(np.random.default_rng(0), 3000))
    return filler


def recall(engine: Engine, queries: np.ndarray, **options: Any) -> float:
    hits = 0
    for query in queries.astype(np.float32):
        exact = engine.search_by_vector(query, 10, exact=True, **options)
        found = engine.search_by_vector(query, 10, **options)
        assert len(found) == len(exact)
        hits += sum(match.distance <= exact[-1].distance + 1e-9 for match in found)
    return hits / (10 * len(queries))


def synchronise(filler: Filler) -> None:
    """Does the work of `build` and `remove` after their commit."""
    with writer_lock(filler.path):
        meta_update.refresh_meta(filler.engine.index)


def approximate(engine: Engine) -> BinaryCodeIndex:
    with engine.reading() as reader:
        made = engine.snapshots.structure(reader)
    assert isinstance(made, BinaryCodeIndex)
    return made


def test_tune_codes_and_what_comes_after(filled: Filler) -> None:
    engine = filled.engine
    choice = tune_codes(engine.index, QUICK, 0.8)
    assert choice.kind == "codes" and 0.8 <= choice.low <= choice.recall <= choice.high and choice.queries == 150
    search = engine.info()["search"]
    assert (search["kind"], search["recall"], search["target"]) == ("codes", choice.recall, 0.8)
    assert search["parameters"]["candidates"] == 200 and search["memory"] == 3000 * (128 // 8 + 8)
    random = np.random.default_rng(5)
    queries = clustered(random, 30)
    assert not engine.exact and recall(engine, queries) >= 0.8
    new = clustered(random, 250)
    filled.add(new)
    assert approximate(engine).covered == 3000 and engine.search_by_vector(new[7].astype(np.float32), 1)[0].id == 3008
    synchronise(filled)
    assert len(engine.search_by_vector(new[7].astype(np.float32), 1)) == 1
    assert approximate(engine).covered == 3250 == Meta.read(filled.path).search["parameters"]["encoded"]
    assert engine.search_by_vector(new[7].astype(np.float32), 1)[0].id == 3008
    gone = set(range(1, 3250, 5))
    filled.remove(sorted(gone))
    synchronise(filled)
    for query in queries.astype(np.float32):
        assert not gone & {match.id for match in engine.search_by_vector(query, 20)}
        assert {match.label for match in engine.search_by_vector(query, 20, where={"label": "two"})} == {"two"}
        assert len(engine.search_by_vector(query, 12, where=["n>=395", "n<407"])) == 9  # three are gone
    assert recall(engine, queries) >= 0.8 and recall(engine, queries, where={"label": "two"}) >= 0.8
    assert len(engine.search_by_vector(queries[0].astype(np.float32), 10_000)) == len(engine)
    compact(engine.index)
    for again in (engine, Engine(filled.path, model=filled.model)):
        assert recall(again, queries) >= 0.8 and verify(again.index).problems == ()
        assert approximate(again).covered == len(again) == len(approximate(again).rows)
    filled.rows = len(engine)
    filled.add(new[:10])
    synchronise(filled)
    engine.search_by_vector(queries[0].astype(np.float32))
    assert approximate(engine).covered == len(engine)
    folder = next((filled.path / "derived").iterdir())
    assert sorted(path.name for path in folder.glob("added.*")) == ["added.0.3000.npy", "added.1.2600.npy"]


def test_even_features_of_few_dimensions(tmp_path: Path) -> None:
    """As whitened ones are: the first layer must not run away."""
    x = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    made = autoencoder.train(x, HashConfig(64, (512, 64)))
    assert all(np.isfinite(weights).all() for weights in made.weights)
    assert len(np.unique(made(x), axis=0)) > 10  # there is little to learn


def test_many_small_commits_leave_one_file(filled: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_codes, "BLOCK", 20)
    tune_codes(filled.engine.index, QUICK, 0.8)
    new = clustered(np.random.default_rng(5), 36)
    for start in range(0, 36, 4):
        filled.add(new[start : start + 4])
        synchronise(filled)
        assert filled.engine.search_by_vector(new[start].astype(np.float32), 1)[0].id == 3001 + start
    folder = next((filled.path / "derived").iterdir())
    assert sorted(path.name for path in folder.glob("added.*")) == ["added.0.3000.npy", "added.0.3020.npy"]
    assert approximate(filled.engine).covered == 3036


def test_what_is_gone_costs_time_and_no_answers(filled: Filler) -> None:
    tune_codes(filled.engine.index, QUICK, 0.5)
    query = clustered(np.random.default_rng(7), 1)[0].astype(np.float32)
    exact = filled.engine.search_by_vector(query, exact=True)
    folder = next((filled.path / "derived").iterdir())
    for name, data in (("entries.npy", b"no array"), ("codes.safetensors", b"no tensors")):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        with Engine(filled.path, model=filled.model) as engine:
            assert engine.exact and engine.search_by_vector(query) == exact
        filled.add(clustered(np.random.default_rng(8), 1) + np.float16(30))
        synchronise(filled)
        (folder / name).write_bytes(kept)
    with Engine(filled.path, model=filled.model) as engine:
        assert not engine.exact and approximate(engine).covered == 3001  # the second could not be encoded
        filled.remove([9])
        synchronise(filled)
        assert engine.search_by_vector(query) == exact and approximate(engine).covered == 3002
    shutil.rmtree(filled.path / "derived")
    with Engine(filled.path, model=filled.model) as engine:
        assert engine.exact and engine.search_by_vector(query) == exact
        synchronise(filled)


@pytest.mark.parametrize("name", ["codes.safetensors", "entries.npy", "rows.npy"])
def test_emptied_file_costs_time_and_no_answers(filled: Filler, name: str) -> None:
    tune_codes(filled.engine.index, QUICK, 0.8)
    next((filled.path / "derived").glob(f"*/{name}")).write_bytes(b"")
    with Engine(filled.path, model=filled.model) as engine:
        assert engine.exact
        assert len(engine.search_by_id(1, 5)) == 5


def test_a_part_that_is_missing_is_scanned(filled: Filler) -> None:
    tune_codes(filled.engine.index, QUICK, 0.5)
    for _ in range(2):
        filled.add(clustered(np.random.default_rng(8), 20))
        synchronise(filled)
    folder = next((filled.path / "derived").iterdir())
    (folder / "added.0.3000.npy").unlink()
    with Engine(filled.path, model=filled.model) as engine:
        assert approximate(engine).covered == 3000
    filled.remove([9])
    synchronise(filled)
    with Engine(filled.path, model=filled.model) as engine:
        assert approximate(engine).covered == 3040


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), wanted=st.integers(1, 70), share=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_candidates_are_the_nearest_codes(seed: int, n: int, wanted: int, share: float) -> None:
    random = np.random.default_rng(seed)
    codes = hyperplanes(64, 6)
    x, queries = random.normal(0, 1, (n, 6)), random.normal(0, 1, (3, 6)).astype(np.float32)
    setting = AnnSettings("codes", 64, 10, 0)
    made = BinaryCodeIndex(setting, codes, codes(x), np.arange(n), n)
    allowed = random.random(n) < share
    found = made._candidates(queries, wanted, np.packbits(allowed, bitorder="little"), setting)
    bits, asked = (np.unpackbits(codes(y), axis=1).astype(np.int64) for y in (x, queries))
    for each, query in zip(found, asked, strict=True):
        distances = (bits != query).sum(1)
        hits = each[each >= 0]
        assert allowed[hits].all() and len(set(hits.tolist())) == len(hits) == min(wanted, int(allowed.sum()))
        assert sorted(distances[hits]) == sorted(distances[allowed])[: len(hits)]


def test_limits(filled: Filler, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bytes, more than"):
        tune_codes(filled.engine.index, QUICK, memory=1000)
    with pytest.raises(UsageError, match="recall"):
        tune_codes(filled.engine.index, QUICK, 1.5)
    small = Filler(tmp_path / "small", D)
    small.add(clustered(np.random.default_rng(0), 100))
    with pytest.raises(UsageError, match="too few"):
        tune_codes(small.engine.index, QUICK)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = (filled.path / "meta.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        tune_codes(filled.engine.index, QUICK, progress=interrupt)
    assert (filled.path / "meta.json").read_bytes() == before and not (filled.path / "derived").exists()


def test_from_the_command_line(
    filled: Filler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(autoencoder, "HashConfig", lambda bits: replace(QUICK, bits=bits))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "-i", str(filled.path)])
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out, out.err

    assert run("tune", "--codes", "100")[0] == 2 and run("tune", "--codes", "32")[0] == 2
    code, out, _ = run("tune", "--codes", "256", "--recall", "0.5")
    assert code == 0 and "codes of 256 bits, 200 candidates" in out
    assert "codes of 256 bits, recall" in run("info")[1]
    probe = (
        "import sys\nfrom simsearch.cli.main import main\n"
        f"try:\n    main(['query', 'id:5', '-i', {str(filled.path)!r}, '--format', 'json'])\n"
        "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    (answer,) = json.loads(done.stdout)
    assert answer["exact"] is False and len(answer["matches"]) == 6


# -- watching the recall


def test_a_recall_that_has_fallen_is_noticed(filled: Filler, capsys: pytest.CaptureFixture[str]) -> None:
    choice = tune_codes(filled.engine.index, QUICK, 0.8)
    filled.add(clustered(np.random.default_rng(3), 200))
    synchronise(filled)
    assert "since" not in Meta.read(filled.path).search  # not a tenth yet
    filled.add(clustered(np.random.default_rng(4), 200))
    synchronise(filled)
    since = Meta.read(filled.path).search["since"]
    assert since["recall"] >= 0.8 and (since["queries"], since["items"]) == (100, 3400)
    assert "repair" not in filled.engine.info()["search"]
    far = 200 + np.random.default_rng(5).normal(0, 0.3, (700, D)).astype(np.float16)  # all alike to these codes
    filled.add(far)
    synchronise(filled)
    with Engine(filled.path, model=filled.model) as engine:
        search = engine.info()["search"]
    assert search["recall"] == choice.recall and search["since"]["high"] < 0.8
    assert search["repair"] == f"simsearch tune --codes 128 --recall 0.8 -i {filled.path}"
    with pytest.raises(SystemExit):
        main(["info", "-i", str(filled.path)])
    assert f"below the target of 0.8; {search['repair']} repairs it" in capsys.readouterr().out
    tune.tune(filled.engine.index, 1.0)
    assert "since" not in filled.engine.info()["search"]


def test_other_structures_are_watched_as_well(filled: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))
    monkeypatch.setattr(measuring, "time_queries", lambda search, queries: (1 / (1 + next(clock)), 1))
    tune.tune(filled.engine.index, 0.9)
    measured: list[int] = []
    search = FlatIndex.search

    def counted(self: FlatIndex, queries: np.ndarray, *rest: Any) -> Any:
        measured.append(len(queries))
        return search(self, queries, *rest)

    filled.add(clustered(np.random.default_rng(3), 400))
    monkeypatch.setattr(FlatIndex, "search", counted)
    synchronise(filled)
    assert Meta.read(filled.path).search["since"]["recall"] >= 0.9
    asked = len(measured)
    filled.remove([5])
    synchronise(filled)
    assert asked and len(measured) == asked  # nothing was measured again
