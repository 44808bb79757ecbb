"""The search benchmarks, small: what they make of given features, and that they run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from simsearch.engine import Engine
from simsearch.storage.verify import verify
from tests.helpers.clusters import D, clustered
from tests.helpers.filler import Filler
from tests.helpers.scripts import SCRIPTS

BENCH = SCRIPTS / "bench"


@pytest.fixture
def real(tmp_path: Path) -> Filler:
    """Makes a stand-in for the features of all pictures."""
    filler = Filler(tmp_path / "real", D)
    filler.add(clustered(np.random.default_rng(0), 2400))
    (tmp_path / "real" / "complete").touch()
    return filler


@pytest.fixture
def vectors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_vectors", BENCH / "vectors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_enlargements_are_like_their_originals(real: Filler, vectors: ModuleType, tmp_path: Path) -> None:
    left_out = np.arange(0, 2400, 100)
    blocks = list(vectors.enlarged(real.engine, left_out, 5000, seed=1))
    made = np.concatenate(blocks)
    assert made.shape == (5000, D) and made.dtype == np.float16 and (made >= 0).all()
    own = real.engine.shards.read(np.setdiff1d(np.arange(2400), left_out))
    np.testing.assert_array_equal(made[: len(own)], own)
    mixed = made[len(own) :].astype(np.float32)
    assert np.mean(mixed == 0) == pytest.approx(np.mean(own == 0), abs=0.05)
    apart = np.linalg.norm(mixed[:200, None] - own[None].astype(np.float32), axis=2).min(1)
    assert apart.min() > 0 and np.median(apart) < np.median(np.linalg.norm(own[:1000] - own[1000:2000], axis=1))
    np.testing.assert_array_equal(np.concatenate(list(vectors.enlarged(real.engine, left_out, 5000, seed=1))), made)
    vectors.fill(tmp_path / "filled", real.engine, blocks)
    with Engine(tmp_path / "filled", model=real.model) as engine:
        assert len(engine) == 5000 and not verify(engine.index).problems
        ids, distances = engine.neighbours(made[4000:4001].astype(np.float32), 1)
        assert (ids[0, 0], distances[0, 0]) == (4001, 0)


def test_the_benchmark_measures_recall_and_rates(real: Filler, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCH / "search.py"),
        "--data",
        str(tmp_path),
        "--work",
        str(tmp_path),
        "--queries",
        "20",
        "--methods",
        "simsearch",
        "simsearch, exact",
        "faiss Flat",
        "--plot",
        str(tmp_path / "plot.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").exists()
    table = done.stdout[done.stdout.index("2,380 real feature vectors") :]
    exact = [line for line in table.splitlines() if line.startswith(("faiss Flat", "simsearch, exact"))]
    assert len(exact) == 4 and all(" 1.0000 " in line for line in exact)
