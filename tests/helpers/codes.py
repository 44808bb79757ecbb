"""Binary codes for tests."""

from __future__ import annotations

import numpy as np

from simsearch.models.hashing.autoencoder import HashConfig
from simsearch.models.hashing.encoder import HashEncoder

QUICK = HashConfig(bits=128, hidden=(96,), pretrain_epochs=4, epochs=12, batch=64, rate=3e-3)


def hyperplanes(bits: int, dimension: int, seed: int = 0) -> HashEncoder:
    """Codes that nobody learned: on which side of random planes through `0.5` features lie."""
    weight = np.random.default_rng(seed).standard_normal((dimension, bits)).astype(np.float32)
    return HashEncoder(np.full(dimension, 0.5, np.float32), 2.0, (weight,), (np.zeros(bits, np.float32),))
