"""Any sequence of changes and searches gives the same results as a dictionary of vectors."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from simsearch.common import pca
from simsearch.indexing import meta_update, tune
from simsearch.indexing.compact import compact
from simsearch.models.hashing.encoder import HashEncoder
from simsearch.search import tuning
from simsearch.search.ann import AnnIndex, AnnSettings
from simsearch.search.binary_codes import BinaryCodeIndex
from simsearch.storage.verify import verify
from tests.helpers.filler import LABELS, Filler
from tests.helpers.sketched import allow_small, loaded, refresh

D = 16
SEEDS = st.integers(0, 2**32 - 1)


def vectors(seed: int, n: int) -> np.ndarray:
    """Returns features of few different values, so that distances tie."""
    return np.random.default_rng(seed).integers(0, 4, (n, D)).astype(np.float16)


class Sequences(RuleBasedStateMachine):
    """An index and a dictionary side by side; `approximate` builds a structure over the first items of the index."""

    approximate = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.filler = Filler(Path(self.folder.name) / "index", D, rows_per_shard=64)
        self.known: dict[int, np.ndarray] = {}
        self.hits = self.asked = 0

    def teardown(self) -> None:
        self.filler.engine.close()
        self.folder.cleanup()
        assert self.hits >= 0.9 * self.asked

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        self.add(seed, 300)
        if self.approximate:
            features = np.stack(list(self.known.values()))
            made = self.structure(features)
            choice = tuning.Choice(made.setting.kind, 1.0, 1.0, 1.0, 1, 0.0, 0.0, 0, {})
            tune.record_choice(self.filler.engine.index, made, choice)
            assert isinstance(self.filler.engine.structure, AnnIndex)

    def structure(self, features: np.ndarray) -> AnnIndex:
        onto = pca.fit_pca(features, D)
        return tuning.build(AnnSettings("sq8", D, 40, 0), onto, onto(features), np.arange(300), 300)

    def add(self, seed: int, n: int) -> None:
        features = vectors(seed, n)
        first = self.filler.count + 1
        self.filler.add(features)
        self.known |= dict(enumerate(features, first))
        meta_update.refresh_meta(self.filler.engine.index)

    @rule(seed=SEEDS, n=st.integers(1, 70))
    def added(self, seed: int, n: int) -> None:
        self.add(seed, n)

    @rule(seed=SEEDS, n=st.integers(1, 60))
    def removed(self, seed: int, n: int) -> None:
        gone = np.random.default_rng(seed).permutation(sorted(self.known))[:n].tolist()
        self.filler.remove(gone)
        for number in gone:
            del self.known[number]

    @rule(seed=SEEDS, n=st.integers(1, 20))
    def edited(self, seed: int, n: int) -> None:
        numbers = np.random.default_rng(seed).permutation(sorted(self.known))[:n].tolist()
        if numbers:
            features = vectors(seed, len(numbers))
            self.filler.edit(numbers, features)
            self.known |= dict(zip(numbers, features, strict=True))

    @rule()
    def compacted(self) -> None:
        compact(self.filler.engine.index)
        self.filler.rows = len(self.known)
        assert verify(self.filler.engine.index).problems == ()

    @rule(seed=SEEDS, k=st.integers(1, 30), label=st.sampled_from([None, *LABELS]), reach=st.floats(3, 12) | st.none())
    def searched(self, seed: int, k: int, label: str | None, reach: float | None) -> None:
        query = vectors(seed, 1)[0].astype(np.float64)
        permitted = {n: v for n, v in self.known.items() if label in {None, LABELS[(n - 1) % len(LABELS)]}}
        true = sorted((float(np.linalg.norm(v.astype(np.float64) - query)), n) for n, v in permitted.items())
        expected = [(d, n) for d, n in true[:k] if reach is None or d <= reach]
        where = [] if label is None else [f"label={label}"]
        found = self.filler.engine.search_by_vector(query.astype(np.float32), k, where=where, max_distance=reach)
        pairs = [(match.distance, match.id) for match in found]
        if not self.approximate:
            assert pairs == expected
            return
        assert pairs == sorted(pairs) and set(pairs) <= set(true)
        if reach is None:
            assert len(pairs) == len(expected)
        limit = expected[-1][0] if expected else 0
        self.hits += sum(distance <= limit for distance, _ in pairs)
        self.asked += len(expected)


class ApproximateSequences(Sequences):
    approximate = True


class CodedSequences(Sequences):
    """With binary codes, which also encode items added later."""

    approximate = True

    def structure(self, features: np.ndarray) -> AnnIndex:
        weight = np.random.default_rng(0).standard_normal((D, 512), np.float32)
        codes = HashEncoder(features.mean(0, dtype=np.float32), 1.0, (weight,), (np.zeros(512, np.float32),))
        return BinaryCodeIndex(AnnSettings("codes", 512, 40, 0), codes, codes(features), np.arange(300), 300)


class SketchedSequences(Sequences):
    """With a sketch, which is used for all searches that it covers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        allow_small(self.patch)
        self.patch.setattr("simsearch.search.exact.DIRECT", 5)

    def teardown(self) -> None:
        self.patch.undo()
        super().teardown()

    def add(self, seed: int, n: int) -> None:
        super().add(seed, n)
        self.sketched(True)
        assert loaded(self.filler.engine) is not None

    @rule(learn=st.booleans())
    def sketched(self, learn: bool) -> None:
        refresh(self.filler.engine, learn)

    @rule(seed=SEEDS, k=st.integers(1, 30), n=st.integers(2, 12))
    def searched_together(self, seed: int, k: int, n: int) -> None:
        queries = vectors(seed, n).astype(np.float32)
        found = self.filler.engine.search_by_vectors(queries, k)
        for query, matches in zip(queries.astype(np.float64), found, strict=True):
            true = sorted((float(np.linalg.norm(v.astype(np.float64) - query)), n) for n, v in self.known.items())
            assert [(match.distance, match.id) for match in matches] == true[:k]


limits = settings(
    max_examples=10,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
TestExact = Sequences.TestCase
TestExact.settings = limits
TestApproximate = ApproximateSequences.TestCase
TestApproximate.settings = limits
TestSketched = SketchedSequences.TestCase
TestSketched.settings = limits
TestCoded = CodedSequences.TestCase
TestCoded.settings = limits
