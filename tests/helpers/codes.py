"""Binary codes for tests."""

from __future__ import annotations

import numpy as np

from simsearch.models.codes import Codes
from simsearch.models.dbn import CodesConfig

QUICK = CodesConfig(bits=128, hidden=(96,), pretrain_epochs=4, epochs=12, batch=64, rate=3e-3)


def hyperplanes(bits: int, dimension: int, seed: int = 0) -> Codes:
    """Codes that nobody learned: on which side of random planes through `0.5` features lie."""
    weight = np.random.default_rng(seed).standard_normal((dimension, bits)).astype(np.float32)
    return Codes(np.full(dimension, 0.5, np.float32), 2.0, (weight,), (np.zeros(bits, np.float32),))
