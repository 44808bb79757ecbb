"""Query results as one self-contained HTML page: inlined images, no scripts, and a policy that forbids requests.

Like figure 4 (right) of Krizhevsky et al. 2012, the page has a row for each query: the query and its matches by
ascending Euclidean distance.
"""

from __future__ import annotations

import base64
import functools
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simsearch.common.atomic_files import atomic_write
from simsearch.common.links import file_link
from simsearch.reports.page_templates import page_environment
from simsearch.reports.text import format_distance
from simsearch.reports.tiles import ResultRow, Tile, file_name, fit_image
from simsearch.search.results import word_of

if TYPE_CHECKING:
    from jinja2 import Template
    from PIL import Image

Table = tuple[str, Sequence[Sequence[str]]]
"""A table's caption and its rows. The first row has the headings; each other row begins with its name."""


def save_html(
    rows: Sequence[ResultRow],
    path: Path,
    title: str,
    facts: Mapping[str, str],
    *,
    tables: Sequence[Table] = (),
    charts: Mapping[str, Image.Image] | None = None,
    groups: bool = False,
) -> None:
    """Writes the page of `render_html` to a UTF-8 file. Raises UsageError if the file cannot be written."""
    atomic_write(path, render_html(rows, title, facts, tables=tables, charts=charts, groups=groups).encode("utf-8"))


def render_html(
    rows: Sequence[ResultRow],
    title: str,
    facts: Mapping[str, str],
    side: int = 224,
    *,
    tables: Sequence[Table] = (),
    charts: Mapping[str, Image.Image] | None = None,
    groups: bool = False,
) -> str:
    """Returns an HTML page of queries and matches. It can be encoded as UTF-8 even if file names are not valid UTF-8.

    facts: names and values to show below the title (model, index, ...).
    side: the largest width and height of a picture in the page, in pixels.
    tables: tables to show below the facts.
    charts: maps descriptions to images, which are shown below the tables at half their size in pixels.
    groups: True if each row is a group of similar pictures, without a query.
    """
    sections: list[dict[str, Any]] = []
    folder = _common_folder([tile.path for row in rows for tile in ([row.query] if groups else []) + [*row.matches]])
    facts = {**facts, "folder": folder} if folder else facts
    for number, row in enumerate(rows, 1):
        tiles = [row.query, *row.matches] if groups else row.matches
        name = f"Group {number}: {len(tiles)} pictures" if groups else file_name(row.query.path)
        kind = "Picture" if groups else "Match"
        query = None if groups else _figure(row.query, 0, side)
        matches = [_figure(tile, rank, side, kind, folder) for rank, tile in enumerate(tiles, 1)]
        sections.append({"name": name, "query": query, "matches": matches})
    columns = max((len(section["matches"]) for section in sections), default=0) or 1
    figures = [(text, _data_url(image, "PNG"), image.width // 2) for text, image in (charts or {}).items()]
    return _template().render(
        title=title, facts=facts, tables=tables, charts=figures, sections=sections, side=side, columns=columns
    )


@functools.cache
def _template() -> Template:
    return page_environment().get_template("report.html")


def _common_folder(paths: Sequence[str]) -> str:
    """Returns the deepest folder that contains all files. The page shows it once, not with each file.

    Returns "" if no folder but "/" contains all files, if there are fewer than two files, or if a path is relative.
    """
    if len(paths) < 2 or not all(map(os.path.isabs, paths)):
        return ""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return "" if folder == os.path.sep else folder


def _figure(tile: Tile, rank: int, side: int, kind: str = "Match", folder: str = "") -> dict[str, Any]:
    """Returns the values that the template shows for a tile.

    rank: the rank of a match, from 1; 0 for the query. side: the largest side of the picture in the page, in pixels.
    kind: "Match" or "Picture", for the image's alternative text.
    folder: the folder to remove from the start of the tile's path; "" to show the whole path.
    """
    path = tile.path.removeprefix(folder + os.path.sep) if folder else tile.path
    alt = f"{kind} {rank}: " if rank else "Query: "
    alt += f"{tile.label}, {path}" if tile.label else path
    similarity = None if tile.similarity is None else f"{min(max(tile.similarity, 0.0), 1.0) * 100:.1f}%"
    return {
        "rank": rank,
        "alt": alt,
        "image": _inline_image(tile, side),
        "distance": None if tile.distance is None else format_distance(tile.distance),
        "similarity": similarity,
        "word": None if tile.similarity is None else word_of(tile.similarity),
        "label": tile.label,
        "path": path,
        "id": tile.id,
        "link": tile.link or file_link(tile.path),
        "details": tile.details,
    }


def _inline_image(tile: Tile, side: int) -> dict[str, Any] | None:
    """Returns the tile's image as a JPEG data URL and its size in pixels; None if it could not be opened."""
    fitted = fit_image(tile.image, side)
    if fitted is None:
        return None
    return {"url": _data_url(fitted, "JPEG"), "width": fitted.width, "height": fitted.height}


def _data_url(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=88, optimize=True)  # PNG ignores `quality`
    return f"data:image/{form.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
