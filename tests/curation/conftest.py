"""Indexes whose features are put in by hand, in clusters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.filler import Filler

Fill = Callable[..., Filler]

CENTRES = np.array([[9, 0, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0], [0, 0, 9, 0, 0, 0]], float)


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """A function that makes an index of features."""

    def make(features: NDArray[Any], name: str = "index") -> Filler:
        filler = Filler(tmp_path / name, features.shape[1])
        filler.add(features)
        return filler

    return make


@pytest.fixture
def clusters() -> NDArray[np.float64]:
    """60 items in three clusters, in the order of Filler's labels: one, two, three, one, …"""
    random = np.random.default_rng(0)
    return np.maximum(CENTRES[np.arange(60) % 3] + random.normal(0, 0.5, (60, 6)), 0)
