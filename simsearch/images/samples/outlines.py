"""Outlines of the sample pictures: arrays of points, x to the right and y down."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]  # (n, 2), a closed outline or an open path


def rotation(angle: float) -> Points:
    """Returns a (2, 2) matrix: `points @ rotation(angle)` turns points clockwise on the image. angle: in radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def path(text: str) -> Points:
    """Reads points from a text of pairs x y in hundredths of a unit: "100 2, 70 -70" is (1, 0.02) and (0.7, -0.7)."""
    return np.array([point.split() for point in text.split(",")], dtype=np.float64) / 100


def both(half: Points) -> Points:
    """Returns a symmetric outline, given its right half from top to bottom."""
    return np.concatenate([half, half[::-1] * (-1, 1)])


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Returns the outline of a rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def oval(x: float, y: float, across: float, down: float, turn: float = 0.0) -> Points:
    """Returns an ellipse around (x, y) with the radii `across` and `down`, turned clockwise by `turn` radians."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return np.stack([across * np.cos(angle), down * np.sin(angle)], axis=-1) @ rotation(turn) + (x, y)


def curve(points: ArrayLike, closed: bool = True) -> Points:
    """Returns a smooth line through the points (a Catmull-Rom spline), with eight steps between neighbours.

    closed: True to connect the last point with the first.
    """
    knots = np.asarray(points, dtype=np.float64)
    p = np.concatenate([knots[-1:], knots, knots[:2]] if closed else [knots[:1], knots, knots[-1:]])
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    smooth = (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * (b - c) + d - a) * t**3) / 2
    return smooth.reshape(-1, 2) if closed else np.concatenate([smooth.reshape(-1, 2), knots[-1:]])


def ribbon(points: ArrayLike, start: float, end: float | None = None) -> Points:
    """Returns the outline of a line drawn with a pen whose width changes from `start` to `end`.

    end: None for the width `start` everywhere.
    """
    line = np.asarray(points, dtype=np.float64)
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=-1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    side = normal * np.linspace(start / 2, (start if end is None else end) / 2, len(line))[:, None]
    return np.concatenate([line + side, (line - side)[::-1]])
