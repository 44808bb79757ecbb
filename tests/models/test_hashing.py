"""Binary codes: how they are computed and learned."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simsearch.errors import WeightsError
from simsearch.models.hashing import autoencoder
from simsearch.models.hashing.encoder import HashEncoder, logistic
from tests.helpers.clusters import D, clustered
from tests.helpers.codes import QUICK, hyperplanes

# -- the codes themselves


@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(0, 40), layers=st.integers(1, 3), size=st.sampled_from([8, 64, 72])
)
@settings(max_examples=25, deadline=None)
def test_bits_are_those_of_the_formula(seed: int, n: int, layers: int, size: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [12, *[10] * (layers - 1), size]
    weights = [random.normal(0, 1, pair).astype(np.float32) for pair in itertools.pairwise(sizes)]
    biases = [random.normal(0, 1, size).astype(np.float32) for size in sizes[1:]]
    codes = HashEncoder(random.normal(0, 1, 12).astype(np.float32), 0.7, tuple(weights), tuple(biases))
    x = random.normal(0, 2, (n, 12)).astype(np.float16)
    h = (x.astype(np.float64) - codes.mean) * 0.7
    for weight, bias in zip(weights, biases, strict=True):
        h = 1 / (1 + np.exp(-(h @ weight + bias)))
    found = codes(x)
    assert found.shape == (n, size // 8) and found.dtype == np.uint8
    bits = np.unpackbits(found, axis=1, bitorder="little").astype(bool)
    sure = np.abs(h - 0.5) > 1e-5
    assert (bits[sure] == (h > 0.5)[sure]).all()


def test_logistic_does_not_overflow() -> None:
    np.testing.assert_allclose(logistic(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])


def test_files(tmp_path: Path) -> None:
    codes = replace(hyperplanes(64, 5), training={"images": 3})
    data = codes.to_bytes()
    again = HashEncoder.from_bytes(data, tmp_path)
    x = np.random.default_rng(0).normal(0, 1, (20, 5))
    assert (again(x) == codes(x)).all() and (again.bits, again.training) == (64, {"images": 3})
    odd = replace(codes, mean=np.zeros(4, np.float32)).to_bytes()
    for name, damaged in (("cut", data[:-4]), ("empty", b""), ("odd", odd)):
        with pytest.raises(WeightsError, match=name):
            HashEncoder.from_bytes(damaged, tmp_path / name)


# -- learning


def test_contrastive_divergence_reconstructs() -> None:
    torch.manual_seed(0)
    x = torch.from_numpy(clustered(np.random.default_rng(0), 1000).astype(np.float32))
    x = (x - x.mean(0)) / x.std()
    fresh = autoencoder._random_layer(D, 64)
    assert autoencoder._gaussian_rate(x, QUICK) == 0.02
    machine = autoencoder._BoltzmannMachine(fresh, replace(QUICK, momentum=0.5), 0.01)

    def error() -> float:
        weight, up, down = machine.layer
        return float((torch.sigmoid(x @ weight + up) @ weight.T + down - x).pow(2).mean())

    before = error()
    for _ in range(20):
        for part in autoencoder._batches(len(x), 100):
            machine.step(x[part])
    assert error() < 0.7 * before


@pytest.mark.parametrize(
    "change", [{}, {"pretrain_epochs": 0}, {"similarity": 1.0}], ids=["", "unpretrained", "similar"]
)
def test_neighbours_share_bits(change: dict[str, Any]) -> None:
    x = clustered(np.random.default_rng(0), 2200)
    reported: list[tuple[int, int]] = []
    state = torch.random.get_rng_state()
    codes = autoencoder.train(x[:2000], replace(QUICK, **change), lambda done, total: reported.append((done, total)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert reported[-1][1] == autoencoder.images(replace(QUICK, **change), 2000) and reported[-1][0] <= reported[-1][1]
    bits = np.unpackbits(codes(x), axis=1).astype(np.int64)
    hamming = (bits[2000:, None] != bits[None, :2000]).sum(2)
    distance = np.linalg.norm(x[2000:, None].astype(np.float32) - x[None, :2000], axis=2)
    nearest = np.argsort(distance, axis=1)[:, :10]
    candidates = np.argsort(hamming, axis=1, kind="stable")[:, :100]
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest, candidates, strict=True)])
    assert found > 0.9  # by chance 0.05


def test_training_is_repeatable() -> None:
    x = clustered(np.random.default_rng(0), 500)
    config = replace(QUICK, epochs=1, pretrain_epochs=1)
    one, two, three = (autoencoder.train(x, c) for c in (config, config, replace(config, seed=1)))
    assert (one(x) == two(x)).all() and (one(x) != three(x)).any()
