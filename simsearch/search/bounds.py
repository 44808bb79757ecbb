"""Computes lower bounds on Euclidean distances from short codes of the features.

A row x of features, minus their mean, is mapped to a point s(x) with w = d + 1 coordinates: the first d principal
components of x, rotated so that they vary about equally, and the length of the rest of x. If the axes of the components
are exactly orthonormal, this never increases a distance: |s(x) - s(q)| <= |x - q|. The coordinates of s(x) are then
rounded to a grid with 256 points in each dimension, `step` apart. The code of x is the position of its grid point, one
byte for each coordinate. The squared distance of two codes is a whole number, so it is computed without rounding.

error(x) is an upper bound of the distance between the exact s(x) and the grid point of x. It follows that

    |x - q| * sqrt(1 + defect) >= step * |code(x) - code(q)| - error(x) - error(q)

The float32 axes of the principal components are not quite orthonormal: they may lengthen a squared distance by the
relative amount `defect`.
The grid fills a box. A row outside the box gets the nearest grid point, and its error includes the distance to this
point. A query outside the box is first moved to the nearest point of the box, which does not increase its distance to
any point in the box.

Shape letters: n rows, D dimension, d components, w = d + 1 bytes of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.numpy

from simsearch.common.float16 import to_float32
from simsearch.search.ranking import TINY

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 512
"""Number of products that are summed in float32, as one block. The sums of the blocks are added in float64."""

UNIT = 2.0**-24
"""Relative rounding error of one float32 operation."""

SUM = (BLOCK + 4) * UNIT / (1 - (BLOCK + 4) * UNIT)
"""Relative error bound of a float32 sum of `BLOCK` products, in any order (Higham, "Accuracy and Stability", 3.1)."""

SLACK = 1 + 1e-9
"""Factor that covers rounding errors of float64 arithmetic; the actual errors are some thousand times smaller."""

LEVELS = 255
"""Largest value of a coordinate in a code, which has a byte for each coordinate."""

FARTHEST = 2.0**40
"""A number larger than every squared distance between two codes."""

WIDER = 1.3
"""Length of the sides of a grid's box, relative to the widest range of a coordinate in the sample."""

SKEW, ROTATED = 0.01, 1e-10
"""Largest permitted deviations from orthonormality: of the axes, and of a rotation.

In undamaged files, the deviations are thousands of times smaller.
"""


class Encoded(NamedTuple):
    """The codes of rows or queries, with the errors of the codes.

    codes: (n, w) uint8.
    errors: (n,) float64, upper bounds of the distance between the exact s(x) and the grid point of the code.
    """

    codes: NDArray[np.uint8]
    errors: NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """The grid for codes of one width.

    rotation: (d, d) float64, rotates the first d components.
    low: (w,) float64, the lowest corner of the box, which has the smallest coordinates.
    step: the distance between neighbouring grid points along an axis.
    cap: a limit that the errors of nearly all rows do not exceed. `Sketch` calls rows "odd" if their narrow
    codes have larger errors.
    """

    rotation: NDArray[np.float64]
    low: NDArray[np.float64]
    step: float
    cap: float

    @property
    def width(self) -> int:
        """The number of bytes of a code, w."""
        return len(self.low)

    def reach(self, distance: float, defect: float, error: float | NDArray[Any]) -> NDArray[np.float64]:
        """Returns the largest possible squared distance between the codes of a query and a row.

        distance: the query and the row are at most this far apart.
        defect: from `defect_of`.
        error: the error of the query plus the error of the row.
        Returns `FARTHEST` if the result is too large to be computed.
        """
        with np.errstate(all="ignore"):
            root = (distance * SLACK * np.sqrt(1 + defect) + error) / self.step
            squared = root * root * SLACK
            return np.where(squared < FARTHEST, squared, FARTHEST)


@dataclass(frozen=True)
class Bounds:
    """Computes two codes of each row or query: a narrow code, and a wide code, which has more bytes and is more exact.

    `Sketch` compares the narrow code of a query with those of all rows. It compares the wide codes only for the rows
    that the narrow codes do not exclude.

    mean: (D,) float32, subtracted from the features.
    axes: (d, D) float32, the principal components, nearly orthonormal.
    grids: the grid of the narrow and the grid of the wide codes. A grid for w bytes uses the first w - 1 axes.
    defect: from `defect_of`.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    grids: tuple[Grid, ...]
    defect: float

    def encode(self, features: NDArray[np.floating], query: bool = False) -> list[Encoded]:
        """Returns the codes of (n, D) features on each grid.

        query: True for queries. A query outside a grid's box is moved to the nearest point of the box.
        """
        with np.errstate(all="ignore"):  # values that overflow get an infinite error
            components, squared, product = project(features, self.mean, self.axes)
            return [
                _encode(grid, *_point(grid.rotation, components, squared, product, self.defect), query)
                for grid in self.grids
            ]

    def save(self) -> bytes:
        """Returns the bounds as the content of a safetensors file, which `load` reads."""
        arrays: dict[str, NDArray[np.generic]] = {"mean": self.mean, "axes": self.axes}
        for number, grid in enumerate(self.grids):
            arrays[f"rotation{number}"], arrays[f"low{number}"] = grid.rotation, grid.low
            arrays[f"scale{number}"] = np.array([grid.step, grid.cap])
        return bytes(safetensors.numpy.save(arrays))

    @classmethod
    def load(cls, data: bytes, dimension: int) -> Bounds:
        """Reads the content that `save` returned. Raises ValueError or KeyError if it is invalid.

        dimension: D, the dimension of the features.
        """
        try:
            arrays = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error
        mean, axes = arrays["mean"], arrays["axes"]
        if mean.shape != (dimension,) or axes.ndim != 2 or axes.shape[1] != dimension:
            raise ValueError(f"its axes have shape {axes.shape}, but the features have {dimension} dimensions")
        grids = []
        for number in range(2):
            rotation, low = arrays[f"rotation{number}"], arrays[f"low{number}"]
            step, cap = arrays[f"scale{number}"].tolist()
            if rotation.shape != (len(low) - 1, len(low) - 1) or len(rotation) > len(axes) or not step > 0:
                raise ValueError("its grids do not match its axes")
            if not np.linalg.norm(rotation @ rotation.T - np.eye(len(rotation))) < ROTATED:
                raise ValueError("its rotations are not orthonormal")
            grids.append(Grid(rotation, low, step, cap))
        if not (defect := defect_of(axes)) < SKEW:
            raise ValueError("its axes are not orthonormal")
        return cls(mean, axes, tuple(grids), defect)


def defect_of(axes: NDArray[np.float32]) -> float:
    """Returns an upper bound of the relative amount by which a projection lengthens a squared distance.

    The projection multiplies features by the (d, D) axes, then by the rotation of a grid.
    """
    exact = axes.astype(np.float64)
    gram = exact @ exact.T
    gram[np.diag_indices(len(gram))] -= 1
    return float(np.linalg.norm(gram)) * (1 + 1e-6) + 1e-10


def make_grid(
    components: NDArray[np.float64], squared: NDArray[np.float64], product: NDArray[np.float64], d: int, defect: float
) -> Grid:
    """Returns a grid for the first d components, fitted to a sample of features.

    components, squared, product: what `project` returned for the sample.
    defect: from `defect_of`.
    """
    normal = np.random.default_rng(d).standard_normal((d, d))
    rotation = np.linalg.qr(normal)[0]
    points, errors = _point(rotation, components, squared, product, defect)
    least, most = np.quantile(points, [0.0005, 0.9995], axis=0)
    middle, half = (least + most) / 2, WIDER * float((most - least).max(initial=0)) / 2
    half = max(half, float(errors.max()), TINY)
    low, step = middle - half, 2 * half / LEVELS
    rough = Grid(rotation, low, step, np.inf)
    found = _encode(rough, points, errors, False).errors
    cap = min(1.1 * float(found.max()), 1.5 * float(np.quantile(found, 0.99)))
    return Grid(rotation, low, step, cap)


def project(
    features: NDArray[np.floating], mean: NDArray[np.float32], axes: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Computes the components along the axes, and the squared lengths, of (n, D) features minus the mean.

    Let x be a row of the features minus the mean. Returns three arrays:
    the components of each x, (n, d);
    the squared length of each x, rounded up, (n,);
    and for each x, an upper bound of the rounding error of its float32 product with an axis of length 1, (n,).
    """
    x = to_float32(features)
    x -= mean
    components, squared = np.zeros((len(x), len(axes))), np.zeros(len(x))
    for start in range(0, x.shape[1], BLOCK):
        part = x[:, start : start + BLOCK]
        components += part @ axes[:, start : start + BLOCK].T
        squared += np.einsum("nd,nd->n", part, part)
    squared *= 1 + 2 * SUM
    return components, squared, SUM * np.sqrt(squared) + TINY


def _point(
    rotation: NDArray[np.float64],
    components: NDArray[np.float64],
    squared: NDArray[np.float64],
    product: NDArray[np.float64],
    defect: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns s(x) as computed for each row, (n, w), and an upper bound of its distance from the exact s(x), (n,).

    rotation: (d, d), of the grid. defect: from `defect_of`.
    components, squared, product: from `project`. The components beyond the first d are ignored.
    """
    d = len(rotation)
    y = components[:, :d]
    # Error bounds: SUM * |axis| * |x| for a component, UNIT * |x| for subtracting the mean; rotation is in float64.
    error = (np.sqrt(d * (1 + defect)) + 2) * product * SLACK
    kept = np.einsum("nd,nd->n", y, y)
    rest = np.maximum(squared - kept, 0)
    doubt = 6 * SUM * squared + error * (2 * np.sqrt(kept) + error) + 2 * defect * kept + TINY
    points = np.concatenate([y @ rotation, np.sqrt(rest)[:, None]], axis=1)
    return points, error + doubt / np.sqrt(np.maximum(rest, doubt))


def _encode(grid: Grid, points: NDArray[np.float64], errors: NDArray[np.float64], query: bool) -> Encoded:
    """Rounds (n, w) points to the grid; returns their codes.

    errors: (n,) bounds of the errors that the points have already; the errors of rounding are added to them.
    query: as in `Bounds.encode`.
    """
    places = (points - grid.low) / grid.step
    codes = np.fmax(np.fmin(np.rint(places), LEVELS), 0).astype(np.uint8)  # a number even where the place is NaN
    if query:
        places = np.clip(places, 0, LEVELS)
    places -= codes
    total = errors + grid.step * np.sqrt(np.einsum("nd,nd->n", places, places)) * SLACK
    return Encoded(codes, np.where(np.isfinite(total), total, np.inf))


def squares(codes: NDArray[np.uint8], query: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the exact squared distances between (n, w) codes and one (w,) code: (n,)."""
    found = np.empty(len(codes), np.int64)
    own = query.astype(np.int16)
    for start in range(0, len(codes), 1024):
        difference = codes[start : start + 1024].astype(np.int16)
        difference -= own
        found[start : start + 1024] = np.einsum("nd,nd->n", difference, difference, dtype=np.int32)
    return found


def sizes(dimension: int, components: int) -> tuple[Sequence[int], Sequence[int]]:
    """Returns the numbers of bytes to try for narrow codes, and the numbers to try for wide codes.

    dimension: D, the dimension of the features.
    components: the number of principal components that are available.
    """
    most = min(dimension, components + 1)
    narrow = [w for w in (32, 64, 128) if w <= most] or [most]
    wide = [w for w in (128, 256, 384) if w <= most and w > narrow[0]] or [most]
    return narrow, wide
