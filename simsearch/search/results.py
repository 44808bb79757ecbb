"""The matches of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Match:
    """An item at a distance. rank counts from 1; path opens as printed; see `calibration` for similarity."""

    rank: int
    id: int
    path: str
    label: str | None
    distance: float
    similarity: float
    metadata: dict[str, Any]
    relative: str = ""
    """The path as stored, relative to its source."""


class Matches(list[Match]):
    """The matches of one query, nearest first. exact: whether no item can have been missed."""

    exact: bool = True


@dataclass(frozen=True)
class QueryResult:
    """One query and its matches. took_ms: wall-clock milliseconds, its share of the batch it was answered in."""

    query: str
    model: str
    exact: bool
    took_ms: float
    matches: Sequence[Match]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the contract."""
        matches = [
            {
                "rank": match.rank,
                "id": match.id,
                "path": match.path,
                "label": match.label,
                "distance": match.distance,
                "similarity": match.similarity,
                "metadata": match.metadata,
            }
            for match in self.matches
        ]
        return {
            "query": self.query,
            "model": self.model,
            "metric": "euclidean",
            "exact": self.exact,
            "took_ms": round(self.took_ms, 3),
            "matches": matches,
        }
