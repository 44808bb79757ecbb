"""Draws queries and matches in the terminal with Kitty or Sixel graphics, or as coloured half blocks.

A half block is a character that shows two pixels, one in its upper half and one in its lower half.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console, Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from simsearch.common.printable import printable
from simsearch.installation import install_line
from simsearch.reports.montage import draw_montage
from simsearch.reports.text import format_distance
from simsearch.reports.tiles import ResultRow, Tile, file_name
from simsearch.search.results import word_of

SIDE = 18
"""Smallest width of a tile, in characters; the height in lines is half the width."""

WIDEST = 32
"""Largest width of a tile, in characters."""

GAP = 2
"""Number of characters between tiles."""


def show(rows: Sequence[ResultRow], console: Console, renderable: Any = None) -> None:
    """Draws the pictures of each query and its matches in a terminal.

    console: a terminal for which `can_show` is True.
    renderable: the class with which the library textual-image draws a picture; None for half blocks.
    """
    tiles = max(2, (console.width + GAP) // (SIDE + GAP))
    for row in rows:
        if renderable is None:
            console.print(_grid(row, console.width))
            continue
        for start in range(0, max(1, len(row.matches)), tiles - 1):
            chunk = ResultRow(row.query, row.matches[start : start + tiles - 1])
            if start:
                console.print(f"{start + 1} to {start + len(chunk.matches)}:", highlight=False)
            width = min(console.width, (1 + len(chunk.matches)) * (SIDE + GAP))
            console.print(renderable(draw_montage([chunk]), width=width))


def can_show(console: Console) -> bool:
    """Returns True if the console is a terminal that can show pictures, at least as coloured half blocks."""
    return console.is_terminal and console.color_system is not None and not console.no_color


def graphics() -> Any:
    """Returns the class with which textual-image draws a picture in this terminal; None if only half blocks work."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):  # textual-image asks the terminal and reads its answer
        return None
    try:
        from textual_image import renderable
    except ImportError:
        return None
    return renderable.Image if renderable.Image in (renderable.TGPImage, renderable.SixelImage) else None


def advice() -> str | None:
    """Returns a hint to install textual-image; None if it is installed or if the terminal may lack graphics."""
    knows = os.environ.get("TERM") == "xterm-kitty" or os.environ.get("TERM_PROGRAM") in {"WezTerm", "iTerm.app"}
    missing = knows and importlib.util.find_spec("textual_image") is None
    return f"this terminal shows sharper pictures after {install_line('show')}" if missing else None


def _grid(row: ResultRow, width: int) -> Table:
    """Returns a query and its matches as a table of tiles.

    Tiles are so wide that four fill a row, but at least SIDE and at most WIDEST characters wide. So rows have more than
    four tiles in a wide terminal, and fewer in a narrow one.
    width: of the terminal, in characters.
    """
    side = min(max(SIDE, (width + GAP) // 4 - GAP), WIDEST)
    cells = [_tile(row.query, "query", side)]
    cells += [_tile(match, str(rank), side) for rank, match in enumerate(row.matches, 1)]
    if not row.matches:
        cells.append(Group(Text("no match")))
    grid = Table.grid(padding=(0, GAP, 1, 0))
    columns = max(1, (width + GAP) // (side + GAP))
    for start in range(0, len(cells), columns):
        grid.add_row(*cells[start : start + columns])
    return grid


def _tile(picture: Tile, title: str, side: int) -> Group:
    name = file_name(picture.path)
    first = title if picture.distance is None else f"{title}  {format_distance(picture.distance)}"
    if picture.similarity is not None:
        first += f" {word_of(picture.similarity)}"
    captions = _caption(first, "bold", side), _caption(picture.label or name, "dim", side)
    return Group(*blocks(picture.image, side), *captions)


def _caption(words: str, style: str, side: int) -> Text:
    text = Text(printable(words), style, no_wrap=True)
    text.truncate(side, overflow="ellipsis", pad=True)
    return text


def blocks(image: Image.Image | None, side: int = SIDE) -> list[Text]:
    """Returns a picture as coloured half blocks: `side` / 2 lines of `side` characters.

    The picture is centred and keeps its proportions. If `image` is None, the lines say "not available".
    """
    side -= side % 2
    lines = [Text(" " * side) for _ in range(side // 2)]
    if image is None:
        lines[side // 4] = Text("not available".center(side), "dim")
        return lines
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    left, top = (side - width) // 2, (side - height) // 2
    resized = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = np.asarray(resized)  # (height, width, 3) uint8

    def colour(x: int, y: int) -> str | None:
        if not (0 <= x - left < width and 0 <= y - top < height):
            return None
        red, green, blue = pixels[y - top, x - left]
        return f"rgb({red},{green},{blue})"

    for number in range(len(lines)):
        line = Text()
        for x in range(side):
            upper, lower = colour(x, 2 * number), colour(x, 2 * number + 1)
            if upper is None and lower is None:
                line.append(" ")
            elif upper is None:
                line.append("▄", Style(color=lower))
            else:
                line.append("▀", Style(color=upper, bgcolor=lower))
        lines[number] = line
    return lines
