"""Measures the fraction of matches with the right label for each tenth of similarity and each word for it."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.intervals import Interval
from simsearch.reports.charts import plot
from simsearch.search.results import WORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from simsearch.evaluation.metrics import LabelledFeatures
    from simsearch.search.similarity import Scale

K = 6
"""Nearest items of each query that are counted."""

STEPS = 10
"""Steps of the curve."""


@dataclass(frozen=True)
class Reliability:
    """The matches in a range of similarities. right: the fraction with the query's label; None without matches."""

    name: str
    low: float
    high: float
    matches: int
    right: Interval | None


@dataclass(frozen=True)
class ReliabilityReport:
    """The agreement of similarity and labels, over the K nearest items of each query.

    right, wrong: the mean similarity of matches with and without the query's label; None if there are none.
    words: from copy to weak. curve: tenths of the similarity, ascending.
    """

    queries: int
    right: float | None
    wrong: float | None
    words: tuple[Reliability, ...]
    curve: tuple[Reliability, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "queries": self.queries,
            "k": K,
            "mean_similarity": {"right": self.right, "wrong": self.wrong},
            "words": [asdict(each) for each in self.words],
            "curve": [asdict(each) for each in self.curve],
        }


class NearestMatches:
    """Collects the distances of the K nearest items of each query, and which of them have the query's label."""

    def __init__(self, base: LabelledFeatures, queries: LabelledFeatures) -> None:
        self.base, self.queries = base, queries
        self.distances: list[float] = []
        self.right: list[bool] = []

    def see(self, block: slice, order: NDArray[np.int64]) -> None:
        """Adds a block of b queries. order: (b, N) rows of the base, nearest first."""
        for query, label, rows in zip(
            self.queries.features[block], self.queries.labels[block], order[:, :K], strict=True
        ):
            difference = self.base.features[rows].astype(np.float64) - query.astype(np.float64)
            self.distances += np.linalg.norm(difference, axis=1).tolist()
            self.right += (self.base.labels[rows] == label).tolist()

    def report(self, scale: Scale) -> ReliabilityReport:
        """Returns the report on all matches seen so far, with their similarities on the given scale."""
        found = np.array(scale.similarities(self.distances))
        return _report(len(self.queries.labels), found, np.array(self.right, bool))


def draw_reliability(report: ReliabilityReport) -> Image.Image:
    """Draws the share of right matches over the similarity; the band is the 95 % interval."""
    name = "right, of six matches"
    parts = [((part.low + part.high) / 2, part.right) for part in report.curve if part.right is not None]
    return plot(
        {name: [(middle, 100 * right.value) for middle, right in parts]},
        "How often a match was right",
        "similarity",
        "right, %",
        bands={name: [(middle, 100 * right.low, 100 * right.high) for middle, right in parts]},
        width=520,
        height=300,
        across=(0.0, 1.0),
        lowest=0.0,
        highest=100.0,
    )


def _report(queries: int, similarities: NDArray[np.float64], right: NDArray[np.bool_]) -> ReliabilityReport:
    def part(name: str, low: float, high: float) -> Reliability:
        inside = (similarities >= low) & ((similarities < high) | (high == 1.0))
        values = right[inside]
        share = Interval.of_proportion(int(values.sum()), len(values)) if len(values) else None
        return Reliability(name, low, high, len(values), share)

    tops = (1.0, *(least for _, least in WORDS[:-1]))
    edges = [step / STEPS for step in range(STEPS + 1)]
    return ReliabilityReport(
        queries,
        float(similarities[right].mean()) if right.any() else None,
        float(similarities[~right].mean()) if not right.all() else None,
        tuple(part(word, least, top) for (word, least), top in zip(WORDS, tops, strict=True)),
        tuple(part(f"{low:.1f} to {high:.1f}", low, high) for low, high in itertools.pairwise(edges)),
    )
