"""Query results as one image with a row for each query, as in figure 4 (right) of Krizhevsky et al. 2012.

A row shows the query and its matches by ascending Euclidean distance.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from simsearch.common.atomic_files import atomic_write
from simsearch.common.printable import printable
from simsearch.errors import UsageError
from simsearch.reports.text import format_distance
from simsearch.reports.tiles import FAINT, INK, PAPER, ResultRow, Tile, file_name, fit_image
from simsearch.search.results import word_of

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FORMATS = {".png": ("PNG", 2**31 - 1), ".jpg": ("JPEG", 65_535), ".jpeg": ("JPEG", 65_535), ".webp": ("WEBP", 16_383)}
"""For each file extension: Pillow's name of the format, and the format's largest width or height in pixels."""

TILE, PANEL, FRAME = "#f2f3f5", "#e3eaf4", "#34557f"


@dataclass(frozen=True)
class _Layout:
    """The sizes and positions in a montage, in pixels.

    Column 0 has the queries; a wider gap separates it from the columns with matches.
    """

    side: int  # width and height of an image's square
    gap: int
    line: int  # from one line of text to the next
    cell: int  # from the top of the square to the end of the two lines of text below it
    font: Font

    def left(self, column: int) -> int:
        return (2 if column == 0 else 4) * self.gap + column * (self.side + self.gap)

    def top(self, row: int) -> int:
        return 3 * self.gap + self.line + row * (self.cell + 3 * self.gap)


def draw_montage(rows: Sequence[ResultRow], side: int = 160) -> Image.Image:
    """Returns an RGB image with a square of `side` pixels for each query and each match.

    Pillow's built-in font has little more than ASCII. Accents are therefore dropped, and characters of other scripts
    appear as boxes.
    """
    text = max(10, side // 11)
    gap, line = max(6, side // 16), round(text * 1.35)
    layout = _Layout(side, gap, line, side + gap // 2 + 2 * line, ImageFont.load_default(size=text))
    columns = max((len(row.matches) for row in rows), default=0) or 1
    canvas = Image.new("RGB", (layout.left(columns + 1) + gap, layout.top(len(rows))), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, heading in enumerate(["query", *map(str, range(1, columns + 1))]):
        draw.text((layout.left(column) + side // 2, gap), heading, fill=FAINT, font=layout.font, anchor="ma")
    for number, row in enumerate(rows):
        _draw_panel(draw, number, layout)
        for column, tile in enumerate([row.query, *row.matches]):
            _draw_tile(canvas, tile, (layout.left(column), layout.top(number)), layout)
        if not row.matches:
            middle = (layout.left(1) + side // 2, layout.top(number) + side // 2)
            draw.text(middle, "no match", fill=FAINT, font=layout.font, anchor="mm")
    return canvas


def _draw_panel(draw: ImageDraw.ImageDraw, row: int, layout: _Layout) -> None:
    """Draws the background and the frame behind the query of a row."""
    x, y, pad = layout.left(0), layout.top(row), layout.gap * 3 // 4
    box = (x - pad, y - pad, x + layout.side + pad - 1, y + layout.cell + pad - 1)
    draw.rounded_rectangle(box, radius=pad, fill=PANEL, outline=FRAME, width=max(1, layout.side // 80))


def _draw_tile(canvas: Image.Image, tile: Tile, corner: tuple[int, int], layout: _Layout) -> None:
    """Draws an image and two lines of text below it.

    For a match, these are similarity and distance, then the label, or the file name if there is no label. For a query,
    they are the file name, then the label.
    """
    (x, y), side, font = corner, layout.side, layout.font
    draw = ImageDraw.Draw(canvas)
    if x != layout.left(0):  # the background of a query is drawn by `_draw_panel`
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=TILE)
    fitted = fit_image(tile.image, side)
    if fitted is None:
        middle = (x + side // 2, y + side // 2)
        draw.text(middle, _elide("not available", font, side), fill=FAINT, font=font, anchor="mm")
    else:
        canvas.paste(fitted, (x + (side - fitted.width) // 2, y + (side - fitted.height) // 2))
    name = file_name(tile.path)
    first = name if tile.distance is None else format_distance(tile.distance)
    if tile.similarity is not None:
        first = f"{word_of(tile.similarity)}, {first}"
    second = tile.label or ("" if tile.distance is None else name)
    for line, (text, colour) in enumerate([(first, INK), (second, FAINT)]):
        place = (x + side // 2, y + side + layout.gap // 2 + line * layout.line)
        draw.text(place, _elide(_drop_accents(text), font, side), fill=colour, font=font, anchor="ma")


def save_montage(rows: Sequence[ResultRow], path: Path) -> None:
    """Writes a montage to a file, in the format of the file's extension.

    Raises UsageError for an unknown extension, a montage too large for the format, or a path that cannot be written.
    """
    name, largest = FORMATS[montage_extension(path)]
    image = draw_montage(rows)
    if max(image.size) > largest:
        message = f"{path}: a montage of {image.width} by {image.height} pixels exceeds {name}'s limit of {largest}"
        raise UsageError(message, hint="show fewer queries or matches, or write a .png file")
    buffer = io.BytesIO()
    image.save(buffer, name, quality=92)  # PNG ignores `quality`
    atomic_write(path, buffer.getvalue())


def montage_extension(path: Path) -> str:
    """Returns the extension of `path` in lower case. Raises UsageError if it is not one of FORMATS."""
    extension = path.suffix.lower()
    if extension not in FORMATS:
        message = f"{path}: no montage format has the extension {extension!r}"
        raise UsageError(message, hint=f"known extensions: {', '.join(FORMATS)}")
    return extension


def _drop_accents(text: str) -> str:
    """Returns the text in printable form and without accents, which the montage's font lacks."""
    decomposed = unicodedata.normalize("NFKD", printable(text))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _elide(text: str, font: Font, width: int) -> str:
    """Returns the text, shortened to at most `width` pixels. A shortened text ends in an ellipsis."""
    kept = text[:width]  # no letter is narrower than a pixel, and measuring is slow
    while kept and font.getlength(kept if kept == text else kept + "…") > width:
        kept = kept[:-1]
    return kept if kept == text else kept.rstrip() + "…"
