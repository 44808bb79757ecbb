"""The matches of a search."""

from __future__ import annotations

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
