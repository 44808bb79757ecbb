"""Compares pixels to find copies of pictures, even if scaled, saved again, cropped a little, turned or mirrored.

Two pictures are compared at a time. Each is scaled to a small square, called a view. The second picture's view is
turned or mirrored to the position that fits the first view best. An affine map then aligns it with the first view
(Gauss-Newton on the grey values, inverse compositional: Baker and Matthews 2004). The pictures are copies if the
aligned views agree as a whole and in their details, and have the same colours. Pictures that are only similar, of one
scene or kind, share the coarse shapes but not the details.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]

SIDE = 64
"""Side of a view in pixels."""

DECODED = SIDE * 4 // 3 + 1
"""The `shorter_side` with which a picture is decoded for its view; see `decode.decode_image`."""

ALIKE = 0.75
"""Two views are aligned only if their correlation, at a quarter of their size, is at least this."""

WHOLE, DETAILS = 0.9, 0.65
"""The least correlations of two aligned views that count as copies: of their grey values and of their details."""

COLOURS = 30.0
"""Aligned views of copies differ by at most this in R - G and in B - G (root mean square, on the scale 0 to 255)."""

FARTHEST = 0.15
"""The largest change of scale, shear or place that the affine map between two copies may make.

Coordinates run from -1 to 1, so 0.15 is 15 % for scale and shear, but 7.5 % of the sides for places.
"""

GREY_NOISE, DETAIL_NOISE = 4.0, 1.0
"""Standard deviations (on the scale 0 to 255) below which grey values and details count as noise."""

STEPS = ((SIDE // 2, 12), (SIDE, 3))
"""Pairs (side in pixels, steps of Gauss-Newton): views are aligned at half their side, then at their full side."""

IDENTITY_BONUS = 0.02
"""A turned or mirrored view is only chosen if its correlation exceeds that of the unchanged view by this amount."""

_AT_ONCE = 32


def view(image: Image.Image) -> NDArray[np.uint8]:
    """Scales an RGB picture to a view, the small square that is compared: (SIDE, SIDE, 3) uint8."""
    enlarges = min(image.size) < SIDE
    method = Image.Resampling.BICUBIC if enlarges else Image.Resampling.BOX
    return np.asarray(image.resize((SIDE, SIDE), method))


def are_copies(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns (n,) bool: True for each pair of views that show copies of one picture.

    first, second: the first and the second view of each pair, two arrays (n, SIDE, SIDE, 3) uint8.
    """
    parts = [
        _are_copies(first[start : start + _AT_ONCE], second[start : start + _AT_ONCE])
        for start in range(0, len(first), _AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def _are_copies(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    copies = np.zeros(len(first), bool)
    a, b = first.astype(np.float32), second.astype(np.float32)
    fit, form = _best_forms(a.mean(3), b.mean(3))
    near = np.flatnonzero(fit >= ALIKE)
    if not len(near):
        return copies
    a = a[near]
    b = np.stack([_turned(b[place], number) for place, number in zip(near, form[near].tolist(), strict=True)])
    copies[near] = _agree(a, b, np.ones(a.shape[:3], np.float32))  # most copies agree without alignment
    rest = np.flatnonzero(~copies[near])
    if len(rest):
        a, b = a[rest], b[rest]
        grey_a, grey_b = a.mean(3), b.mean(3)
        moved = np.zeros((len(rest), 2, 3), np.float32)
        for side, steps in STEPS:
            moved = _align(_scaled(grey_a, side), _scaled(grey_b, side), moved, steps)
        copies[near[rest]] = _agree(a, *_warp(b, moved)) & (np.abs(moved).max((1, 2)) <= FARTHEST)
    return copies


def _agree(a: Pixels, b: Pixels, inside: Pixels) -> NDArray[np.bool_]:
    """Returns (n,) bool: True for each pair of aligned views (n, SIDE, SIDE, 3) that agree.

    inside: (n, SIDE, SIDE), 1 for pixels to compare and 0 for pixels to ignore.
    """
    grey_a, grey_b = a.mean(3), b.mean(3)
    agree: NDArray[np.bool_] = (
        (_correlation(grey_a, grey_b, inside, GREY_NOISE) >= WHOLE)
        & (_correlation(_details(grey_a), _details(grey_b), inside, DETAIL_NOISE) >= DETAILS)
        & (_colour_difference(a, b, inside) <= COLOURS)
    )
    return agree


def _turned(image: Pixels, form: int) -> Pixels:
    """Turns a square image (H, H, …) by (`form` modulo 4) quarter turns. If `form` is 4 or more, mirrors it first."""
    return np.rot90(image[:, ::-1] if form & 4 else image, form & 3)


def _scaled(images: Pixels, side: int) -> Pixels:
    """Scales images (n, SIDE, SIDE) down to (n, side, side). side: a divisor of SIDE."""
    step = images.shape[1] // side
    scaled: Pixels = images.reshape(len(images), side, step, side, step).mean((2, 4))
    return scaled


def _best_forms(a: Pixels, b: Pixels) -> tuple[Pixels, NDArray[np.int64]]:
    """Returns two arrays (n,): the best correlation of each pair, and the form of `b` that gives it (see `_turned`).

    a, b: grey views (n, SIDE, SIDE). They are compared at a quarter of their size.
    """

    def normalised(images: Pixels) -> Pixels:
        flat = images.reshape(len(images), -1)
        flat = flat - flat.mean(1, keepdims=True)
        unit: Pixels = flat / np.sqrt((flat * flat).sum(1, keepdims=True) + flat.shape[1] * GREY_NOISE**2)
        return unit

    small_a, small_b = _scaled(a, SIDE // 4), _scaled(b, SIDE // 4)
    noise = (SIDE // 4) ** 2 * GREY_NOISE**2
    own = normalised(small_a)
    fits = np.stack(
        [
            (own * normalised(np.stack([_turned(each, form) for each in small_b]))).sum(1)
            + _free(small_a, small_b, noise)
            for form in range(8)
        ],
        1,
    )
    preferred = fits.copy()
    preferred[:, 0] += IDENTITY_BONUS
    form = preferred.argmax(1)
    return fits[np.arange(len(fits)), form], form


def _free(a: Pixels, b: Pixels, noise: float) -> Pixels:
    """Returns (n,): a number to add to the correlation of each pair of views: from 1 (both are plain) down to 0.

    Two plain grey views are alike, but their correlation is near 0. The number makes up for this. The larger the
    contrast (the sum of a view's squared differences from its mean), the smaller the number.
    noise: the contrast that still counts as plain.
    """
    sums = [((images - images.mean((1, 2), keepdims=True)) ** 2).sum((1, 2)) + noise for images in (a, b)]
    free: Pixels = noise / np.sqrt(sums[0] * sums[1])
    return free


def _align(a: Pixels, b: Pixels, moved: Pixels, steps: int) -> Pixels:
    """Returns affine maps (n, 2, 3) that align the grey images `b` with `a`, both (n, H, H).

    moved: the maps to start from. These maps and the result are differences from the identity: a map of zeros leaves
    an image as it is.
    steps: the number of Gauss-Newton steps.
    """
    count, side = a.shape[0], a.shape[1]
    x, y = _grid(side)
    slope_y, slope_x = (slope.reshape(count, -1) * (side / 2) for slope in np.gradient(a, axis=(1, 2)))
    change = np.stack([slope_x * x, slope_x * y, slope_x, slope_y * x, slope_y * y, slope_y], 1)  # (n, 6, H * H)
    change -= change.mean(2, keepdims=True)
    hessian = change @ change.transpose(0, 2, 1)
    hessian += np.eye(6, dtype=np.float32) * (1e-3 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] / 6 + 1e-3)
    solved = np.linalg.inv(hessian)
    grey = a.reshape(count, -1)
    for _ in range(steps):
        warped, inside = _warp(b[..., None], moved)
        own, other, mask = grey, warped.reshape(count, -1), inside.reshape(count, -1)
        area = mask.sum(1, keepdims=True) + 1e-6
        own = (own - (own * mask).sum(1, keepdims=True) / area) * mask
        other = (other - (other * mask).sum(1, keepdims=True) / area) * mask
        gain = np.clip((own * other).sum(1) / ((other * other).sum(1) + 1e-6), 0.3, 3)[:, None]
        step = (solved @ (change @ (gain * other - own)[..., None]))[..., 0].reshape(count, 2, 3)
        moved = _composed(moved, step)
    return moved


def _composed(moved: Pixels, step: Pixels) -> Pixels:
    """Returns the affine maps `moved`, corrected by a step of `_align`: moved times the inverse of `step`.

    Each map is given as its difference from the identity map.
    """

    def full(maps: Pixels) -> Pixels:
        return np.concatenate([maps, np.zeros((len(maps), 1, 3), np.float32)], 1) + np.eye(3, dtype=np.float32)

    after = full(moved) @ np.linalg.inv(full(np.clip(step, -0.3, 0.3))) - np.eye(3, dtype=np.float32)
    clipped: Pixels = np.clip(after[:, :2], -0.35, 0.35).astype(np.float32)
    return clipped


def _grid(side: int) -> tuple[Pixels, Pixels]:
    """Returns the x and the y coordinates of a square's pixels, from -1 to 1, as two arrays (side * side,)."""
    along = ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
    y, x = np.meshgrid(along, along, indexing="ij")
    return x.ravel(), y.ravel()


def _warp(images: Pixels, moved: Pixels) -> tuple[Pixels, Pixels]:
    """Applies affine maps to images (n, H, H, C), with bilinear interpolation.

    Returns the images, and a mask (n, H, H): 1 for pixels from inside the original image, 0 for all others.
    """
    count, side, _, channels = images.shape
    x, y = _grid(side)
    u, v = (
        ((row == 0) * x + (row == 1) * y + moved[:, row, :1] * x + moved[:, row, 1:2] * y + moved[:, row, 2:])
        * (side / 2)
        + (side - 1) / 2
        for row in (0, 1)
    )
    inside = ((u >= -0.01) & (u <= side - 0.99) & (v >= -0.01) & (v <= side - 0.99)).astype(np.float32)
    u, v = (np.clip(each, 0, side - 1.001) for each in (u, v))
    left, top = u.astype(np.int32), v.astype(np.int32)
    across, down = (u - left)[..., None], (v - top)[..., None]
    flat = images.reshape(-1, channels)
    corner = top * side + left + (np.arange(count, dtype=np.int32) * side * side)[:, None]
    upper = flat[corner] * (1 - across) + flat[corner + 1] * across
    lower = flat[corner + side] * (1 - across) + flat[corner + side + 1] * across
    warped = upper * (1 - down) + lower * down
    return warped.reshape(images.shape), inside.reshape(count, side, side)


def _details(grey: Pixels) -> Pixels:
    """Subtracts from each pixel of grey images (n, H, H) the mean of the 5 × 5 pixels around it."""
    around = np.pad(grey.astype(np.float64), ((0, 0), (3, 2), (3, 2)), mode="edge").cumsum(1).cumsum(2)
    sums = around[:, 5:, 5:] - around[:, :-5, 5:] - around[:, 5:, :-5] + around[:, :-5, :-5]
    details: Pixels = (grey - sums / 25).astype(np.float32)
    return details


def _correlation(a: Pixels, b: Pixels, inside: Pixels, noise: float) -> Pixels:
    """Returns (n,): the correlation of each pair of images (n, H, H).

    inside: (n, H, H), 1 for pixels to compare and 0 for pixels to ignore.
    noise: a standard deviation, in levels from 0 to 255. If both images vary much less than this, their correlation is
    near 1, so that two plain images count as alike.
    """
    area = inside.sum((1, 2)) + 1e-6
    a, b = ((each - ((each * inside).sum((1, 2)) / area)[:, None, None]) * inside for each in (a, b))
    floor = area * noise**2
    both = np.sqrt(((a * a).sum((1, 2)) + floor) * ((b * b).sum((1, 2)) + floor))
    correlation: Pixels = ((a * b).sum((1, 2)) + floor) / both
    return correlation


def _colour_difference(a: Pixels, b: Pixels, inside: Pixels) -> Pixels:
    """Returns (n,): the larger of the RMS differences in R - G and in B - G, for each pair of images (n, H, H, 3)."""
    area = inside.sum((1, 2)) + 1e-6
    differences = []
    for one, other in ((0, 1), (2, 1)):
        off = ((a[..., one] - a[..., other]) - (b[..., one] - b[..., other])) * inside
        differences.append(np.sqrt((off * off).sum((1, 2)) / area))
    largest: Pixels = np.maximum(*differences)
    return largest
