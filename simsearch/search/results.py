"""The matches of a search."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from simsearch.common.lazy import LazyModule
from simsearch.errors import SimsearchError
from simsearch.storage.item_table import to_pandas

if TYPE_CHECKING:
    import html

    from PIL import Image
else:  # only notebooks need it
    html = LazyModule("html")

WORDS = (("copy", 0.75), ("close", 0.5), ("similar", 0.3), ("weak", 0.0))
"""The words shown for similarities, each with the smallest similarity that it stands for.

d stands for the usual distance of an item to its nearest neighbour (`similarity.Scale.nearest`).
copy: at most d / 2 from the query; the same picture, changed a little.
close: at most d from the query.
similar: a little farther than d from the query.
weak: not much nearer than a random item; a match only because nothing is nearer.
"""


def word_of(similarity: float) -> str:
    """Returns the word shown for a similarity; see `WORDS`."""
    return next((word for word, least in WORDS if similarity >= least), WORDS[-1][0])


@dataclass(frozen=True)
class Match:
    """An item found by a search.

    rank: the place among the matches, from 1.
    id: the id of the item.
    path: the current path of the image, with which it can be opened.
    distance: the Euclidean distance to the query.
    similarity: in [0, 1]; see `simsearch.search.similarity`.
    """

    rank: int
    id: int
    path: str
    label: str | None
    distance: float
    similarity: float
    metadata: dict[str, Any]
    relative: str = ""
    """The path that the index stores, relative to the item's source."""

    @property
    def word(self) -> str:
        """The word shown for the similarity: copy, close, similar or weak."""
        return word_of(self.similarity)


class Matches(list[Match]):
    """The matches of one query, nearest first. A notebook shows them with their pictures.

    exact: True if the search was exact, so that no nearer item can be missing.
    thumbnail: takes the id of an item and returns a small picture of it, or None. The index that was searched sets it.
    """

    exact: bool = True
    thumbnail: Callable[[int], Image.Image | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"exact": self.exact}  # without `thumbnail`, which refers to the open index

    def to_pandas(self) -> Any:
        """Returns a pandas.DataFrame with a column for each field of `Match`, and one for its `word`.

        Raises MissingExtraError if pandas is not installed.
        """
        return to_pandas({**asdict(match), "word": match.word} for match in self)

    def _repr_html_(self) -> str:
        """Returns HTML for a notebook: the pictures in a row, with label, distance and word below each."""
        cells = "".join(self._cell(match) for match in self) or "<p>no match</p>"
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{cells}</div>'

    def _cell(self, match: Match) -> str:
        image = None
        if self.thumbnail is not None:
            with contextlib.suppress(SimsearchError):  # the engine may be closed by now
                image = self.thumbnail(match.id)
        shown = f"<i>{html.escape(match.path)}</i>"
        if image is not None:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=85)
            data = base64.b64encode(buffer.getvalue()).decode()
            shown = f'<img src="data:image/jpeg;base64,{data}" alt="" style="height:128px">'
        caption = f"<figcaption>{html.escape(match.label or '')} {match.distance:.4g} {match.word}</figcaption>"
        return f'<figure style="margin:0" title="{html.escape(match.path)}">{shown}{caption}</figure>'


@dataclass(frozen=True)
class QueryResult:
    """One query and its matches.

    took_ms: wall-clock time in milliseconds; for a query of a batch, the batch's time divided by the number of queries.
    """

    query: str
    model: str
    exact: bool
    took_ms: float
    matches: Sequence[Match]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values, as `simsearch query --format json` prints them."""
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
