"""Result rows for tests of reports."""

from __future__ import annotations

from PIL import Image

from simsearch.reports.html import render_html
from simsearch.reports.tiles import ResultRow, Tile

RED, GREEN = (255, 0, 0), (0, 160, 0)


def solid(size: tuple[int, int] = (320, 240), colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", size, colour)


def match(path: str = "a/match.jpg", image: Image.Image | None = None, label: str | None = "cat") -> Tile:
    return Tile(image or solid(colour=GREEN), path, label=label, id=7, distance=31.23456, similarity=0.625)


def row(*matches: Tile, path: str = "a/query.jpg") -> ResultRow:
    return ResultRow(Tile(solid(), path), matches)


def page(*rows: ResultRow, title: str = "Similar images", facts: dict[str, str] | None = None) -> str:
    return render_html(rows, title, facts or {})
