"""Query results as one self-contained HTML page: images inlined, no script, requests forbidden by its own policy.

The page shows the right half of figure 4 in Krizhevsky et al. 2012: a row for each query, the query first, then the
images whose features lie nearest to its own, in order of Euclidean distance.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simsearch.common.atomic_files import atomic_write
from simsearch.reports.text import format_distance
from simsearch.reports.tiles import ResultRow, Tile, escape_unprintable, file_name, fit_image

if TYPE_CHECKING:
    from jinja2 import Template


def save_html(
    rows: Sequence[ResultRow],
    path: Path,
    title: str,
    facts: Mapping[str, str],
    table: Sequence[Sequence[str]] = (),
) -> None:
    """Writes the page as a UTF-8 file; see `render_html`. Raises UsageError if it cannot be written."""
    atomic_write(path, render_html(rows, title, facts, table=table).encode("utf-8"))


def render_html(
    rows: Sequence[ResultRow],
    title: str,
    facts: Mapping[str, str],
    side: int = 224,
    table: Sequence[Sequence[str]] = (),
) -> str:
    """The page, which encodes to UTF-8 whatever bytes the names came from.

    facts: shown below the title (model, index, ...). side: of a tile, in pixels.
    table: shown below the facts; its first row are the headings, and the first column names each row.
    """
    sections = [
        {
            "name": file_name(row.query.path),
            "query": _figure(row.query, 0, side),
            "matches": [_figure(match, rank, side) for rank, match in enumerate(row.matches, start=1)],
        }
        for row in rows
    ]
    columns = max((len(row.matches) for row in rows), default=0) or 1
    return _template().render(title=title, facts=facts, table=table, sections=sections, side=side, columns=columns)


@functools.cache
def _template() -> Template:
    """The page's template. Each value that it prints is escaped, and unprintable characters in it are made visible."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return escape_unprintable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _figure(tile: Tile, rank: int, side: int) -> dict[str, Any]:
    """The values of a tile that the template prints; rank 0 is the query."""
    alt = f"Match {rank}: " if rank else "Query: "
    alt += f"{tile.label}, {tile.path}" if tile.label else tile.path
    similarity = None if tile.similarity is None else f"{min(max(tile.similarity, 0.0), 1.0) * 100:.1f}%"
    return {
        "rank": rank,
        "alt": alt,
        "image": _inline_image(tile, side),
        "distance": None if tile.distance is None else format_distance(tile.distance),
        "similarity": similarity,
        "label": tile.label,
        "path": tile.path,
        "id": tile.id,
    }


def _inline_image(tile: Tile, side: int) -> dict[str, Any] | None:
    """The tile's image as a JPEG in a data URL, with its size in pixels; None if it could not be opened."""
    fitted = fit_image(tile.image, side)
    if fitted is None:
        return None
    buffer = io.BytesIO()
    fitted.save(buffer, "JPEG", quality=88, optimize=True)
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"url": url, "width": fitted.width, "height": fitted.height}
