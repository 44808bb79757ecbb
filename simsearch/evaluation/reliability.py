"""Measures how often matches of a given similarity have the query's label.

The matches are grouped twice: by similarity, in ten ranges from 0 to 1, and by the word that is shown for the
similarity, from "copy" to "weak" (`simsearch.search.results.WORDS`).
"""

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
"""The number of nearest items of each query that count as its matches."""

STEPS = 10
"""The number of ranges of similarity in `ReliabilityReport.curve`."""


@dataclass(frozen=True)
class Reliability:
    """How often the matches in one range of similarities are right.

    name: the name of the range. low, high: the limits of the range; `high` itself is in the range only if it is 1.
    matches: the number of matches in the range.
    right: the fraction of matches that have the query's label; None if there are no matches.
    """

    name: str
    low: float
    high: float
    matches: int
    right: Interval | None


@dataclass(frozen=True)
class ReliabilityReport:
    """How often matches have the query's label, by similarity; the matches of a query are its `K` nearest items.

    queries: the number of queries.
    right: the mean similarity of matches that have the query's label; None if there are none.
    wrong: the mean similarity of all other matches; None if there are none.
    words: how often matches are right, for each word that is shown for a similarity, from "copy" to "weak".
    curve: how often matches are right, in each of `STEPS` ranges of similarity, ascending.
    """

    queries: int
    right: float | None
    wrong: float | None
    words: tuple[Reliability, ...]
    curve: tuple[Reliability, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as a dictionary of JSON values."""
        return {
            "queries": self.queries,
            "k": K,
            "mean_similarity": {"right": self.right, "wrong": self.wrong},
            "words": [asdict(each) for each in self.words],
            "curve": [asdict(each) for each in self.curve],
        }


class NearestMatches:
    """Collects the distances of the `K` nearest items of each query, and which of these items have the query's label.

    base: features and labels of the items. queries: those of the queries.
    """

    def __init__(self, base: LabelledFeatures, queries: LabelledFeatures) -> None:
        self.base, self.queries = base, queries
        self.distances: list[float] = []
        self.right: list[bool] = []

    def see(self, block: slice, order: NDArray[np.int64]) -> None:
        """Adds the matches of a block of b queries.

        block: a slice of the queries. order: row numbers of the items, nearest first, (b, N).
        """
        for query, label, rows in zip(
            self.queries.features[block], self.queries.labels[block], order[:, :K], strict=True
        ):
            difference = self.base.features[rows].astype(np.float64) - query.astype(np.float64)
            self.distances += np.linalg.norm(difference, axis=1).tolist()
            self.right += (self.base.labels[rows] == label).tolist()

    def report(self, scale: Scale) -> ReliabilityReport:
        """Returns the report on all matches added so far. scale: converts their distances into similarities."""
        found = np.array(scale.similarities(self.distances))
        return _report(len(self.queries.labels), found, np.array(self.right, bool))


def draw_reliability(report: ReliabilityReport) -> Image.Image:
    """Draws a chart of the percentage of right matches over their similarity, with a band for the 95 % interval."""
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
