"""Binary codes for tests."""

from __future__ import annotations

import numpy as np

from simsearch.models.codes import Codes
from simsearch.models.dbn import CodesConfig

D = 48


QUICK = CodesConfig(bits=128, hidden=(96,), pretrain_epochs=4, epochs=12, batch=64, rate=3e-3)


def clustered(random: np.random.Generator, n: int) -> np.ndarray:
    """Features in loose groups, as pictures of kinds have."""
    centres = np.random.default_rng(99).normal(0, 3, (40, D))
    return np.maximum(centres[random.integers(0, 40, n)] + random.normal(0, 1, (n, D)), 0).astype(np.float16)


def hyperplanes(bits: int, dimension: int, seed: int = 0) -> Codes:
    """Codes that nobody learned: on which side of random planes through `0.5` features lie."""
    weight = np.random.default_rng(seed).standard_normal((dimension, bits)).astype(np.float32)
    return Codes(np.full(dimension, 0.5, np.float32), 2.0, (weight,), (np.zeros(bits, np.float32),))
