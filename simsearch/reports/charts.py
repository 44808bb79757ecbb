"""Charts: lines, the error of a network during training, and its first kernels (Krizhevsky et al. 2012, figure 3)."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simsearch.reports.tiles import FAINT, INK, PAPER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


def kernels(weights: NDArray[np.float32], columns: int = 16, scale: int = 4, gap: int = 2) -> Image.Image:
    """Draws (K, 3 or 1, H, W) kernels as tiles, each scaled to its own range, in the order of the network's outputs.

    columns: tiles in a row. scale: image pixels per weight. gap: weights between tiles.
    """
    count, channels, height, width = weights.shape
    rows = math.ceil(count / columns)
    canvas = np.full((gap + rows * (height + gap), gap + columns * (width + gap), 3), 255, np.uint8)
    for number, kernel in enumerate(weights):
        low, high = float(kernel.min()), float(kernel.max())
        tile = (kernel - low) / max(high - low, 1e-12) * 255
        tile = np.broadcast_to(tile, (3, height, width)) if channels == 1 else tile[:3]
        y, x = gap + number // columns * (height + gap), gap + number % columns * (width + gap)
        canvas[y : y + height, x : x + width] = tile.transpose(1, 2, 0).round().astype(np.uint8)
    image = Image.fromarray(canvas)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def plot(
    series: Any,
    title: str,
    x_label: str,
    y_label: str,
    *,
    width: int = 720,
    height: int = 420,
    lowest: float | None = None,
    highest: float | None = None,
    line: float | None = None,
    names: Sequence[str] = (),
    legend: bool = True,
) -> Image.Image:
    """Draws lines through points.

    series: by name of a line, its (x, y) pairs; points that are not finite are left out.
    width, height: of the image, in pixels.
    lowest: the start of the y axis; by default the smallest y.
    highest: a value that the y axis includes.
    line: the y of a horizontal line across the chart.
    names: of the places 1, 2, ... on the x axis, instead of numbers; points are then marked.
    legend: True to show the names of the lines.
    """
    points = [point for pairs in series.values() for point in pairs if math.isfinite(point[1])]
    image = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    draw.text((width / 2, 14), title, INK, font=ImageFont.load_default(15), anchor="mm")
    left, top, right, bottom = 64, 34, width - 20, height - 46
    if not points:
        draw.text((width / 2, height / 2), "nothing to show yet", FAINT, font=font, anchor="mm")
        return image
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    y_low = min(y_low, y_high - 1e-9) if lowest is None else lowest
    y_high = max(y_high, y_low + 1e-9, line or y_low, y_low if highest is None else highest)
    x_high = max(x_high, x_low + 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * (bottom - top)

    y_marks = {place(x_low, value)[1]: f"{value:g}" for value in ticks(y_low, y_high)}
    labels = {float(number): name for number, name in enumerate(names, 1)}
    labels = labels or {value: f"{value:g}" for value in ticks(x_low, x_high)}
    x_marks = {place(value, y_low)[0]: label for value, label in labels.items()}
    _draw_axes(draw, (left, top, right, bottom), x_marks, y_marks)
    draw.text(((left + right) / 2, height - 12), x_label, INK, font=font, anchor="mm")
    draw.text((8, top - 16), y_label, INK, font=font, anchor="lm")
    if line is not None:
        draw.line([place(x_low, line), place(x_high, line)], INK)
    for number, pairs in enumerate(series.values()):
        colour = LINES[number % len(LINES)]
        path = [place(x, y) for x, y in pairs if math.isfinite(y)]
        if len(path) > 1:
            draw.line(path, colour, 2, joint="curve")
        for x, y in path if names or len(path) == 1 else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    if not legend:
        return image
    # If the lines rise, there is room for the legend on the left, else on the right.
    x = left + 16 if _rises(series) else right - 150
    for number, name in enumerate(series):
        _key(draw, (x, top + 10 + 18 * number), name, number)
    return image


def _draw_axes(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    x_marks: Mapping[float, str],
    y_marks: Mapping[float, str],
) -> None:
    """Draws the axes and grid of a chart. box: left, top, right, bottom. Marks are labels by place, all in pixels."""
    left, top, right, bottom = box
    font = ImageFont.load_default(13)
    for y, label in y_marks.items():
        draw.line([(left, y), (right, y)], GRID)
        draw.text((left - 8, y), label, FAINT, font=font, anchor="rm")
    for x, label in x_marks.items():
        draw.line([(x, bottom), (x, bottom + 4)], FAINT)
        draw.text((x, bottom + 12), label, FAINT, font=font, anchor="mm")
    draw.line([(left, top), (left, bottom), (right, bottom)], FAINT)


def _rises(series: Any) -> bool:
    """Returns True if the lines of `plot` end higher than they start, taken together."""
    ends = [(points[0][1], points[-1][1]) for points in series.values() if points]
    return bool(sum(last - first for first, last in ends if math.isfinite(first + last)) > 0)


def legend(image: Image.Image, names: Sequence[str], corner: tuple[float, float]) -> None:
    """Draws the names of lines side by side, for several charts in one image."""
    draw, (x, y) = ImageDraw.Draw(image), corner
    for number, name in enumerate(names):
        x = _key(draw, (x, y), name, number) + 24


def _key(draw: ImageDraw.ImageDraw, corner: tuple[float, float], name: str, number: int) -> float:
    """Draws a line's colour and name; returns the x of their end."""
    (x, y), font = corner, ImageFont.load_default(13)
    draw.line([(x, y), (x + 20, y)], LINES[number % len(LINES)], 3)
    draw.text((x + 26, y), name, INK, font=font, anchor="lm")
    return x + 26 + draw.textlength(name, font)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Returns about `about` round numbers between low and high, low < high."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def curve(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draws the errors of a training log by epoch, in percent: top-1 in training, top-1 and top-5 in validation."""
    training = [(row["epoch"], 100 * (1 - row["top1"])) for row in rows if row.get("event") == "step"]
    if len(training) > 200:  # averaged in groups, for a smooth line
        size = math.ceil(len(training) / 200)
        groups = [training[start : start + size] for start in range(0, len(training), size)]
        training = [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
    epochs = [row for row in rows if row.get("event") == "epoch"]
    series = {
        "training, top-1": training,
        "validation, top-1": [(row["epoch"], 100 * (1 - row["top1"])) for row in epochs],
        "validation, top-5": [(row["epoch"], 100 * (1 - row["top5"])) for row in epochs if "top5" in row],
    }
    shown = {name: pairs for name, pairs in series.items() if pairs}
    return plot(shown, "Error while training", "epoch", "error in %", lowest=0.0)


def png(image: Image.Image) -> bytes:
    """Encodes an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
