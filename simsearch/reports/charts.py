"""Draws line charts, the errors of a training, and the kernels of a network's first layer.

The kernels are drawn as in figure 3 of Krizhevsky et al. 2012.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simsearch.reports.tiles import FAINT, INK, PAPER

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRID = "#e3e6ea"
LINES = (
    "#34557f",
    "#c0562f",
    "#3f8f5f",
    "#8a5aa8",
    "#b08a1e",
    "#4aa3b5",
    "#7f9fd1",
    "#e39b80",
    "#86c49f",
    "#c4a3d6",
    "#d9bd6c",
    "#666666",
)


STEPS = 100
"""Largest number of points in a curve of the training error."""

SCALE = 2
"""Pixels per unit of a chart's width and height; 2 suits high-resolution screens."""

FINE = 2
"""Charts are drawn this many times larger and then reduced, so that lines are smooth."""

TEXT, HEADING = 13, 15
"""Font sizes of text and of headings, in units of SCALE pixels."""

Points = Sequence[tuple[float, float]]
Band = Sequence[tuple[float, float, float]]


def kernels(weights: NDArray[np.float32], columns: int = 12, scale: int = 10, gap: int = 1) -> Image.Image:
    """Returns an image of kernels as tiles, in the order of `sorted_kernels`.

    The weights of each kernel are drawn with values from 0, for its smallest weight, to 255, for its largest.
    weights: (K, 3, H, W) for colour or (K, 1, H, W) for grey.
    columns: number of tiles in a row.
    scale: width of a weight in pixels.
    gap: space between tiles, in weights.
    """
    count, channels, height, width = weights.shape
    rows = math.ceil(count / columns)
    canvas = np.full((gap + rows * (height + gap), gap + columns * (width + gap), 3), 255, np.uint8)
    for number, kernel in enumerate(weights[sorted_kernels(weights)]):
        low, high = float(kernel.min()), float(kernel.max())
        tile = (kernel - low) / max(high - low, 1e-12) * 255
        tile = np.broadcast_to(tile, (3, height, width)) if channels == 1 else tile[:3]
        y, x = gap + number // columns * (height + gap), gap + number % columns * (width + gap)
        canvas[y : y + height, x : x + width] = tile.transpose(1, 2, 0).round().astype(np.uint8)
    image = Image.fromarray(canvas)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def sorted_kernels(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the indices that sort (K, C, H, W) kernels so that similar kernels are adjacent: (K,).

    Grey kernels come first, by the direction of their stripes, then coloured kernels by hue, and noise last.
    """
    grey = weights.mean(1)  # (K, H, W)
    varying = weights - weights.mean((2, 3), keepdims=True)
    energy = (varying**2).sum((1, 2, 3)) + 1e-12
    steps = (np.diff(varying, axis=2) ** 2).sum((1, 2, 3)) + (np.diff(varying, axis=3) ** 2).sum((1, 2, 3))
    rough = steps / energy  # about 4 for noise, less for smooth kernels
    spread = weights - grey[:, None]
    colour = (spread**2).sum((1, 2, 3)) / ((weights**2).sum((1, 2, 3)) + 1e-12)
    down, right = (part[:, 1:-1, 1:-1] for part in np.gradient(np.pad(grey, ((0, 0), (1, 1), (1, 1))), axis=(1, 2)))
    angle = np.arctan2(2 * (down * right).sum((1, 2)), (right**2 - down**2).sum((1, 2)))
    strongest = np.abs(spread).reshape(len(weights), weights.shape[1], -1).argmax(2)
    tint = np.take_along_axis(spread.reshape(*strongest.shape, -1), strongest[:, :, None], 2)[:, :, 0]  # (K, C)
    if tint.shape[1] == 3:
        red, green, blue = tint.T
        hue = np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)
    else:
        hue = np.zeros(len(weights))
    kind = np.where(rough > _NOISE, 2, np.where(colour > _COLOURED, 1, 0))
    within = np.select([kind == 0, kind == 1], [angle, hue], rough)
    order: NDArray[np.int64] = np.lexsort((within, kind))
    return order


_NOISE, _COLOURED = 1.3, 0.15
"""In `sorted_kernels`, a kernel is noise if `rough` exceeds _NOISE, else coloured if `colour` exceeds _COLOURED."""


def plot(
    series: Mapping[str, Points],
    title: str,
    x_label: str,
    y_label: str,
    *,
    bands: Mapping[str, Band] | None = None,
    width: int = 720,
    height: int = 420,
    across: tuple[float, float] | None = None,
    lowest: float | None = None,
    highest: float | None = None,
    line: float | None = None,
    names: Sequence[str] = (),
    legend: bool = True,
) -> Image.Image:
    """Returns a chart with one or more lines through points.

    series: maps the name of each line to its (x, y) points. Points that are not finite are left out.
    bands: maps the name of a line to the (x, low, high) edges of a pale area behind the line.
    width, height: of the image, in units of SCALE pixels. Text has size 13 in these units.
    across: the first and the last x of the x axis; by default, the smallest and the largest x of the points.
    lowest: the first y of the y axis; by default, the smallest y of the points.
    highest: a value up to which the y axis reaches even if all points are lower.
    line: the y of a horizontal line across the chart.
    names: labels of the x axis, the first at x = 1, the second at x = 2, and so on. If there are any, the axis has no
    numbers, and the points are marked by dots.
    legend: True to show the names of the lines above the chart, if there are several lines.
    """
    lines = {name: [point for point in pairs if math.isfinite(point[1])] for name, pairs in series.items()}
    areas = {name: [edge for edge in (bands or {}).get(name, ()) if all(map(math.isfinite, edge))] for name in lines}
    points = [point for pairs in lines.values() for point in pairs]
    points += [(x, y) for area in areas.values() for x, *ends in area for y in ends]
    fine = SCALE * FINE
    image = Image.new("RGB", (width * fine, height * fine), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((width * fine / 2, 14 * fine), title, INK, font=_font(HEADING * FINE), anchor="mm")
    shown = list(lines) if legend and len(lines) > 1 else []
    rows = _legend_rows(shown, width - 84)
    if not points:
        draw.text(
            (width * fine / 2, height * fine / 2), "nothing to show yet", FAINT, font=_font(TEXT * FINE), anchor="mm"
        )
        return image.reduce(FINE)
    x_low, x_high = across or (min(x for x, _ in points), max(x for x, _ in points))
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    y_low = min(y_low, y_high - 1e-3) if lowest is None else lowest
    y_high = max(y_high, y_low + 1e-3, line or y_low, y_low if highest is None else highest)
    left, top, right, bottom = 64 * fine, (52 + 20 * len(rows)) * fine, (width - 20) * fine, (height - 46) * fine

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * (bottom - top)

    y_marks = {place(x_low, value)[1]: label for value, label in _labelled(ticks(y_low, y_high)).items()}
    labels = {float(number): name for number, name in enumerate(names, 1)}
    labels = labels or _labelled(ticks(x_low, x_high))
    x_marks = {place(value, y_low)[0]: label for value, label in labels.items()}
    _draw_axes(draw, (left, top, right, bottom), x_marks, y_marks)
    draw.text(((left + right) / 2, (height - 12) * fine), x_label, INK, font=_font(TEXT * FINE), anchor="mm")
    draw.text((8 * fine, top - 16 * fine), y_label, INK, font=_font(TEXT * FINE), anchor="lm")
    image = _draw_bands(image, [[(place(x, low), place(x, high)) for x, low, high in areas[name]] for name in lines])
    draw = ImageDraw.Draw(image)
    if line is not None:
        draw.line([place(x_low, line), place(x_high, line)], INK, fine // 2)
    for number, pairs in enumerate(lines.values()):
        colour = LINES[number % len(LINES)]
        path = [place(x, y) for x, y in pairs]
        if len(path) > 1:
            draw.line(path, colour, 2 * fine, joint="curve")
        for x, y in path if names or len(path) == 1 else ():
            draw.ellipse((x - 3 * fine, y - 3 * fine, x + 3 * fine, y + 3 * fine), colour)
    for row, members in enumerate(rows):
        x = 64.0
        for name in members:
            x = _key(draw, (x, 34 + 20 * row), name, shown.index(name), fine) + 24
    return image.reduce(FINE)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def _legend_rows(names: Sequence[str], width: float) -> list[list[str]]:
    """Returns the names of lines, distributed over rows of at most `width` units of SCALE pixels."""
    rows: list[list[str]] = []
    used = math.inf
    for name in names:
        own = 26 + _font(TEXT).getlength(name) / SCALE + 24
        if used + own > width:
            rows.append([])
            used = 0
        rows[-1].append(name)
        used += own
    return rows


def _draw_bands(
    image: Image.Image, bands: Sequence[Sequence[tuple[tuple[float, float], tuple[float, float]]]]
) -> Image.Image:
    """Returns the chart `image` after drawing a translucent area for each line.

    bands: for each line, (lower, upper) pairs of points on the edges of its area, in pixels.
    """
    for number, band in enumerate(bands):
        if len(band) < 2:
            continue
        area = Image.new("L", image.size, 0)
        ImageDraw.Draw(area).polygon([*(low for low, _ in band), *(high for _, high in reversed(band))], 48)
        image.paste(Image.new("RGB", image.size, LINES[number % len(LINES)]), mask=area)
    return image


def _draw_axes(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    x_marks: Mapping[float, str],
    y_marks: Mapping[float, str],
) -> None:
    """Draws the axes and the grid of a chart.

    box: left, top, right and bottom, in pixels. x_marks, y_marks: map each x or y in pixels to the label there.
    """
    left, top, right, bottom = box
    font, fine = _font(TEXT * FINE), SCALE * FINE
    for y, label in y_marks.items():
        draw.line([(left, y), (right, y)], GRID, fine)
        draw.text((left - 8 * fine, y), label, FAINT, font=font, anchor="rm")
    for x, label in x_marks.items():
        draw.line([(x, bottom), (x, bottom + 4 * fine)], FAINT, fine)
        draw.text((x, bottom + 13 * fine), label, FAINT, font=font, anchor="mm")
    draw.line([(left, top), (left, bottom), (right, bottom)], FAINT, fine)


def legend(image: Image.Image, names: Sequence[str], corner: tuple[float, float]) -> None:
    """Draws the names of lines side by side, as the common legend of several charts in one image.

    corner: (x, y) of the legend's left end, in units of SCALE pixels.
    """
    draw, (x, y) = ImageDraw.Draw(image), corner
    for number, name in enumerate(names):
        x = _key(draw, (x, y), name, number, SCALE) + 24


def _key(draw: ImageDraw.ImageDraw, corner: tuple[float, float], name: str, number: int, scale: int) -> float:
    """Draws the legend entry of a line (its colour and its name), and returns the x at which the entry ends.

    corner: (x, y) of the entry's left end. number: the line's number, which decides its colour.
    scale: pixels per unit of x and y.
    """
    (x, y), font = corner, ImageFont.load_default(TEXT * scale)
    draw.line([(x * scale, y * scale), ((x + 20) * scale, y * scale)], LINES[number % len(LINES)], 3 * scale)
    draw.text(((x + 26) * scale, y * scale), name, INK, font=font, anchor="lm")
    return x + 26 + draw.textlength(name, font) / scale


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Returns about `about` round numbers at equal distances between `low` and `high`. `low` must be below `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _labelled(values: Sequence[float]) -> dict[float, str]:
    """Returns a dictionary from the value of each tick to its label.

    All labels have the same number of decimals. If a value has five or more digits, commas group the thousands.
    """
    plain = [f"{value:.10f}".rstrip("0") for value in values]
    decimals = max((len(text.partition(".")[2]) for text in plain), default=0)
    comma = "," if any(abs(value) >= 10_000 for value in values) else ""
    return {value: f"{value:{comma}.{decimals}f}" for value in values}


def curve(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Returns a chart of the errors in a training log by epoch, in percent.

    It shows the top-1 error in training, and the top-1 and top-5 errors in validation. Since the errors of single
    training steps vary a lot, successive steps are grouped, and the line of the training error has a point for the mean
    of each group. There are at most STEPS groups. If a group has more than four steps, a band behind the line shows the
    range from the 10th to the 90th percentile of each group.
    rows: the rows of the log, with `event`, `epoch`, `top1` and `top5`.
    """
    steps = [(row["epoch"], 100 * (1 - row["top1"])) for row in rows if row.get("event") == "step"]
    name, size = "training, top-1", math.ceil(len(steps) / STEPS)
    groups = [steps[start : start + size] for start in range(0, len(steps), size)] if steps else []
    training = [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
    spread = [
        (group[-1][0], *(float(end) for end in np.percentile([y for _, y in group], (10, 90)))) for group in groups
    ]
    epochs = [row for row in rows if row.get("event") == "epoch"]
    series = {
        name: training,
        "validation, top-1": [(row["epoch"], 100 * (1 - row["top1"])) for row in epochs],
        "validation, top-5": [(row["epoch"], 100 * (1 - row["top5"])) for row in epochs if "top5" in row],
    }
    shown = {name: pairs for name, pairs in series.items() if pairs}
    bands = {name: spread} if size > 4 else {}
    return plot(shown, "Error while training", "epoch", "error in %", bands=bands, lowest=0.0)


def png(image: Image.Image) -> bytes:
    """Returns an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
