"""A float64 scan to compare searches with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.engine import Engine
from simsearch.search.results import Match
from simsearch.storage.export import export_npy

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Scan:
    """The exported index, searched as simply as can be."""

    features: NDArray[np.float64]
    items: list[dict[str, Any]]

    @classmethod
    def of(cls, engine: Engine, folder: Path) -> Scan:
        assert export_npy(engine.opened_index, folder) == len(engine)
        features = np.load(folder / "features.npy")
        assert features.dtype == np.float32
        lines = (folder / "items.jsonl").read_text().splitlines()
        assert features.shape == (len(lines), engine.meta.dimension)
        return cls(features.astype(np.float64), [json.loads(line) for line in lines])

    def search(
        self,
        queries: NDArray[np.float32] | Sequence[NDArray[np.float32]],
        k: int,
        permit: Callable[[dict[str, Any]], bool] = lambda item: True,
        farthest: float = np.inf,
    ) -> list[tuple[int, float]]:
        """(id, distance) of the k nearest to the nearest of the queries (n, D)."""
        squared = [((self.features - query.astype(np.float64)) ** 2).sum(1) for query in np.atleast_2d(queries)]
        distances = np.sqrt(np.min(squared, axis=0))
        found = [
            (distance, item["id"])
            for distance, item in zip(distances.tolist(), self.items, strict=True)
            if permit(item) and distance <= farthest
        ]
        return [(number, distance) for distance, number in sorted(found)[:k]]


def agree(found: Sequence[Match], expected: Sequence[tuple[int, float]]) -> None:
    assert [match.id for match in found] == [number for number, _ in expected]
    assert [match.rank for match in found] == list(range(1, len(found) + 1))
    distances = [match.distance for match in found]
    assert distances == sorted(distances)
    np.testing.assert_allclose(distances, [distance for _, distance in expected], rtol=1e-12, atol=1e-12)
