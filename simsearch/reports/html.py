"""The two pictures of a query's result: a montage and a self-contained HTML page.

Both show the right half of figure 4 in Krizhevsky et al. 2012: a row a query, the query first, then the images whose
features lie nearest to its own, in order of Euclidean distance.
"""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePath

from PIL import Image, ImageDraw, ImageFont

from simsearch.errors import UsageError
from simsearch.files import write_atomically
from simsearch.output import distance

__all__ = ["Picture", "Row", "html", "montage", "montage_format", "save_html", "save_montage", "write_atomically"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# extension: Pillow's name of the format, the most pixels a side of it can have
FORMATS = {".png": ("PNG", 2**31 - 1), ".jpg": ("JPEG", 65_535), ".jpeg": ("JPEG", 65_535), ".webp": ("WEBP", 16_383)}
LARGEST_ENLARGEMENT = 2.0  # a 32-pixel image blown up to a whole tile shows nothing but the filter

PAPER, TILE, PANEL, FRAME, INK, FAINT = "#ffffff", "#f2f3f5", "#e3eaf4", "#34557f", "#1c1f23", "#5d646c"

# control characters, bidirectional overrides, os.fsdecode's surrogates: they break lines, disguise names, do not encode
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Picture:
    """A query or a match. `image` is upright and of any size, None where it could not be opened."""

    image: Image.Image | None
    path: str
    label: str | None = None
    id: int | None = None
    distance: float | None = None  # Euclidean
    similarity: float | None = None  # in [0, 1]


@dataclass(frozen=True)
class Row:
    """A query and its matches, nearest first."""

    query: Picture
    matches: Sequence[Picture]


@dataclass(frozen=True)
class _Layout:
    """Where a montage's pictures go, in pixels; column 0 is the query's, set apart."""

    side: int  # of a tile
    gap: int
    line: int  # from one line of text to the next
    cell: int  # from the top of a tile to the end of the second line below it
    font: Font

    def left(self, column: int) -> int:
        return (2 if column == 0 else 4) * self.gap + column * (self.side + self.gap)

    def top(self, row: int) -> int:
        return 3 * self.gap + self.line + row * (self.cell + 3 * self.gap)


def montage(rows: Sequence[Row], side: int = 160) -> Image.Image:
    """An RGB image after figure 4 (right) of Krizhevsky et al. 2012, each picture in a square of `side` pixels.

    Pillow's built-in font knows little more than ASCII: accents are dropped, other scripts show as boxes.
    """
    text = max(10, side // 11)
    gap, line = max(6, side // 16), round(text * 1.35)
    layout = _Layout(side, gap, line, side + gap // 2 + 2 * line, ImageFont.load_default(size=text))
    columns = max((len(row.matches) for row in rows), default=0) or 1
    canvas = Image.new("RGB", (layout.left(columns + 1) + gap, layout.top(len(rows))), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, words in enumerate(["query", *map(str, range(1, columns + 1))]):
        draw.text((layout.left(column) + side // 2, gap), words, fill=FAINT, font=layout.font, anchor="ma")
    for number, row in enumerate(rows):
        _draw_panel(draw, number, layout)
        for column, picture in enumerate([row.query, *row.matches]):
            _draw_picture(canvas, picture, (layout.left(column), layout.top(number)), layout)
        if not row.matches:
            middle = (layout.left(1) + side // 2, layout.top(number) + side // 2)
            draw.text(middle, "no match", fill=FAINT, font=layout.font, anchor="mm")
    return canvas


def _draw_panel(draw: ImageDraw.ImageDraw, row: int, layout: _Layout) -> None:
    """The background and frame that tell a query from its matches."""
    x, y, pad = layout.left(0), layout.top(row), layout.gap * 3 // 4
    box = (x - pad, y - pad, x + layout.side + pad - 1, y + layout.cell + pad - 1)
    draw.rounded_rectangle(box, radius=pad, fill=PANEL, outline=FRAME, width=max(1, layout.side // 80))


def _draw_picture(canvas: Image.Image, picture: Picture, corner: tuple[int, int], layout: _Layout) -> None:
    """The picture in its tile and up to two lines below: distance (a query: file name), then label (else file name)."""
    (x, y), side, font = corner, layout.side, layout.font
    draw = ImageDraw.Draw(canvas)
    if x != layout.left(0):  # the query lies on its panel
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=TILE)
    fitted = _fitted(picture.image, side)
    if fitted is None:
        place = (x + side // 2, y + side // 2)
        draw.text(place, _elided("not available", font, side), fill=FAINT, font=font, anchor="mm")
    else:
        canvas.paste(fitted, (x + (side - fitted.width) // 2, y + (side - fitted.height) // 2))
    name = _name(picture.path)
    first = name if picture.distance is None else distance(picture.distance)
    second = picture.label or ("" if picture.distance is None else name)
    for line, (words, colour) in enumerate([(first, INK), (second, FAINT)]):
        place = (x + side // 2, y + side + layout.gap // 2 + line * layout.line)
        draw.text(place, _elided(_plain(words), font, side), fill=colour, font=font, anchor="ma")


def html(
    rows: Sequence[Row], title: str, facts: Mapping[str, str], side: int = 224, table: Sequence[Sequence[str]] = ()
) -> str:
    """One page that needs nothing but itself: pictures inlined, no script, every request forbidden by its own policy.

    `facts` are shown below the title (model, index, ...), then `table`: its first row are the headings, and the first
    column names each row. Any text encodes to UTF-8, whatever the names came from.
    """
    terms = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    sections = "\n".join(_section(number, row, side) for number, row in enumerate(rows, start=1))
    most = max((len(row.matches) for row in rows), default=0) or 1
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title>
<style>:root {{ --side: {side}px; --most: {most}; }}{STYLE}</style>
</head><body>
<header><h1>{_text(title)}</h1>{f"<dl>{terms}</dl>" if terms else ""}{_table(table)}</header>
<main>{sections or '<p class="none">no queries</p>'}</main>
</body></html>
"""


def _table(table: Sequence[Sequence[str]]) -> str:
    if not table:
        return ""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table[0])
    body = "\n".join(
        f'<tr><th scope="row" dir="auto">{_text(name)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in table[1:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _section(number: int, row: Row, side: int) -> str:
    matches = "\n".join(f"<li>{_figure(match, rank, side)}</li>" for rank, match in enumerate(row.matches, start=1))
    return f"""<section aria-labelledby="query-{number}">
<h2 id="query-{number}" dir="auto">{_text(_name(row.query.path))}</h2>
<div class="row"><div class="query">{_figure(row.query, 0, side)}</div>
{f"<ol>{matches}</ol>" if matches else '<p class="none">no match</p>'}
</div></section>"""


def _figure(picture: Picture, rank: int, side: int) -> str:
    """A picture and all that is known of it; rank 0 is the query."""
    alt = f"Match {rank}: " if rank else "Query: "
    alt += f"{picture.label}, {picture.path}" if picture.label else picture.path
    lines = [f'<span class="badge">{rank or "query"}</span>']
    if picture.distance is not None:
        lines.append(f"<span><small>distance</small> {distance(picture.distance)}</span>")
    if picture.similarity is not None:
        percent = f"{min(max(picture.similarity, 0.0), 1.0) * 100:.1f}%"
        bar = f'<span class="bar" aria-hidden="true"><span style="width: {percent}"></span></span>'
        lines.append(f'<span class="similarity" title="similarity">{bar}{percent}</span>')
    if picture.label:
        lines.append(f'<span class="label" dir="auto">{_text(picture.label)}</span>')
    lines.append(f'<span class="path" dir="auto">{_text(picture.path)}</span>')
    if picture.id is not None:
        lines.append(f'<span class="id">id {picture.id}</span>')
    return f"<figure>{_image(picture, alt, side)}<figcaption>{''.join(lines)}</figcaption></figure>"


def _image(picture: Picture, alt: str, side: int) -> str:
    fitted = _fitted(picture.image, side)
    if fitted is None:
        return f'<div class="tile" role="img" aria-label="{_text(alt)} (not available)">not available</div>'
    buffer = io.BytesIO()
    fitted.save(buffer, "JPEG", quality=88, optimize=True)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = fitted.size
    return f'<div class="tile"><img src="{source}" width="{width}" height="{height}" alt="{_text(alt)}"></div>'


def save_montage(rows: Sequence[Row], path: Path) -> None:
    """The montage as a file. UsageError: an unknown extension, a montage too large for it, or no way to write there."""
    name, largest = FORMATS[montage_format(path)]
    picture = montage(rows)
    if max(picture.size) > largest:
        message = f"{path}: a montage of {picture.width} by {picture.height} pixels exceeds {name}'s limit of {largest}"
        raise UsageError(message, hint="fewer queries or matches, or .png")
    buffer = io.BytesIO()
    picture.save(buffer, name, quality=92)  # PNG takes no notice of a quality
    write_atomically(path, buffer.getvalue())


def montage_format(path: Path) -> str:
    """The key in FORMATS that `path` asks for. UsageError where its extension is none of them."""
    extension = path.suffix.lower()
    if extension not in FORMATS:
        message = f"{path}: no montage format has the extension {extension!r}"
        raise UsageError(message, hint=f"known extensions: {', '.join(FORMATS)}")
    return extension


def save_html(
    rows: Sequence[Row], path: Path, title: str, facts: Mapping[str, str], table: Sequence[Sequence[str]] = ()
) -> None:
    """The page as a UTF-8 file. UsageError where it cannot be written."""
    write_atomically(path, html(rows, title, facts, table=table).encode("utf-8"))


def _fitted(image: Image.Image | None, side: int) -> Image.Image | None:
    """An RGB copy, its aspect ratio kept, that fits into `side` by `side`; None where there is nothing to show."""
    if image is None or 0 in image.size:
        return None
    scale = min(side / max(image.size), LARGEST_ENLARGEMENT)
    width, height = (max(1, round(length * scale)) for length in image.size)
    pixels = image if image.mode == "RGB" else image.convert("RGB")  # convert copies, also where nothing changes
    return pixels.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _name(path: str) -> str:
    return PurePath(path).name or path


def _printable(text: str) -> str:
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _text(text: str) -> str:
    """Safe inside an HTML element or a quoted attribute."""
    return escape(_printable(text), quote=True)


def _plain(text: str) -> str:
    """Letters without their accents, which the montage's font lacks."""
    decomposed = unicodedata.normalize("NFKD", _printable(text))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _elided(text: str, font: Font, width: int) -> str:
    """`text`, or as much of its beginning as fits into `width` pixels with an ellipsis after it."""
    kept = text[:width]  # no letter is narrower than a pixel, and measuring takes time
    while kept and font.getlength(kept if kept == text else kept + "…") > width:
        kept = kept[:-1]
    return kept if kept == text else kept.rstrip() + "…"


# --most is the largest number of matches: no row has more columns than that, and no tile much exceeds its picture.
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --tile: #f2f3f5; --panel: #e9eff7; --frame: #34557f; --ink: #1c1f23;
  --faint: #5d646c; --line: #dfe2e6; --bar: #2f6fb7; --least: min(100%, calc(var(--side) * .65));
  --share: calc((100% - (var(--most) - 1) * 1rem) / var(--most) - 1px); }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --tile: #22262b; --panel: #1d2733; --frame: #7fa6d6;
  --ink: #e8eaed; --faint: #9aa2ab; --line: #30353b; --bar: #6ea8e6; } }
* { box-sizing: border-box; margin: 0; overflow-wrap: anywhere; }
body { margin: auto; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem); max-width: 110rem; background: var(--paper);
  color: var(--ink); font: 14px/1.4 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { margin-bottom: .75rem; font-size: 1rem; } small, .path, .id { font-size: .85em; }
dl { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin-top: .5rem; } dl div { display: flex; gap: .4rem; }
dt, small, .path, .id, .none, .tile { color: var(--faint); }
table { margin-top: 1rem; border-collapse: collapse; } thead { color: var(--faint); text-align: left; }
th, td { padding: .1rem 1.25rem .1rem 0; border-bottom: 1px solid var(--line); font-weight: 400; }
td, thead th + th { text-align: right; font-variant-numeric: tabular-nums; } tbody th { text-align: left; }
section { margin-top: 1.5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.row { display: grid; grid-template-columns: calc(var(--side) * .85) 1fr; gap: 1.5rem; align-items: start; }
.query { padding: .5rem; border: 2px solid var(--frame); border-radius: .5rem; background: var(--panel); }
ol { display: grid; gap: 1.25rem 1rem; padding: calc(.5rem + 2px) 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(clamp(var(--least), var(--share), var(--side)), 1fr)); }
.tile { display: flex; align-items: center; justify-content: center; aspect-ratio: 1; background: var(--tile); }
.query .tile { background: none; } img { max-width: 100%; max-height: 100%; height: auto; object-fit: contain; }
figcaption { display: flex; flex-wrap: wrap; align-items: center; gap: .1rem .5rem; margin-top: .4rem; }
.badge { padding: 0 .4rem; border-radius: .25rem; background: var(--frame); color: var(--paper); font-weight: 600; }
.similarity, .label, .path, .id { flex-basis: 100%; } .similarity { display: flex; align-items: center; gap: .5rem; }
.bar { flex: 1; height: .35rem; border-radius: .2rem; background: var(--line); }
.bar span { display: block; height: 100%; border-radius: inherit; background: var(--bar); }
@media (max-width: 40rem) { .row { grid-template-columns: 1fr; } .query { max-width: var(--side); } }
"""
