"""Result rows for tests of reports."""

from __future__ import annotations

from PIL import Image

from simsearch.reports import html as report
from simsearch.reports.html import Picture, Row

RED, GREEN = (255, 0, 0), (0, 160, 0)


def solid(size: tuple[int, int] = (320, 240), colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", size, colour)


def match(path: str = "a/match.jpg", image: Image.Image | None = None, label: str | None = "cat") -> Picture:
    return Picture(image or solid(colour=GREEN), path, label=label, id=7, distance=31.23456, similarity=0.625)


def row(*matches: Picture, path: str = "a/query.jpg") -> Row:
    return Row(Picture(solid(), path), matches)


def page(*rows: Row, title: str = "Similar images", facts: dict[str, str] | None = None) -> str:
    return report.html(rows, title, facts or {})
