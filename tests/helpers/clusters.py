"""Clustered features, like those of photographs."""

from __future__ import annotations

import numpy as np

D = 48


def clustered(random: np.random.Generator, n: int) -> np.ndarray:
    """Features in loose groups, as pictures of kinds have."""
    centres = np.random.default_rng(99).normal(0, 3, (40, D))
    return np.maximum(centres[random.integers(0, 40, n)] + random.normal(0, 1, (n, D)), 0).astype(np.float16)
