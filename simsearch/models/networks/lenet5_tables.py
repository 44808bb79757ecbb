"""LeNet-5's fixed parts: which maps are connected, how pixels are scaled, and the codes of its output units.

LeCun, Bottou, Bengio, Haffner: "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998,
section II.B. Needs numpy alone, so that the ONNX graph and the torch network share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENET5_INPUT = (20.0, 200.0)
"""Mean and deviation on the 0 to 255 scale that map 0 to -0.1 and 255 to 1.175: background and ink of the paper."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

_SPANS = [
    [0, 1, 2],
    [1, 2, 3],
    [2, 3, 4],
    [3, 4, 5],
    [4, 5, 0],
    [5, 0, 1],
    [0, 1, 2, 3],
    [1, 2, 3, 4],
    [2, 3, 4, 5],
    [3, 4, 5, 0],
    [4, 5, 0, 1],
    [5, 0, 1, 2],
    [0, 1, 3, 4],
    [1, 2, 4, 5],
    [0, 2, 3, 5],
    [0, 1, 2, 3, 4, 5],
]

C3_TABLE: NDArray[np.float32] = np.array([[float(i in span) for i in range(6)] for span in _SPANS], np.float32)
"""(16, 6): which maps of S2 each map of C3 reads (table I): runs of three, runs of four, broken fours, and all."""

_DIGITS = (
    "..###.. .#...#. ##...## ##...## ##...## ##...## ##...## ##...## .#...#. ..###..",
    "...##.. ..###.. .####.. ...##.. ...##.. ...##.. ...##.. ...##.. ...##.. .######",
    ".#####. ##...## .....## .....## ....##. ...##.. ..##... .##.... ##..... #######",
    ".#####. ##...## .....## .....## ..####. .....## .....## .....## ##...## .#####.",
    "....##. ...###. ..####. .##.##. ##..##. ##..##. ####### ....##. ....##. ....##.",
    "####### ##..... ##..... ######. .....## .....## .....## .....## ##...## .#####.",
    "..####. .##.... ##..... ##..... ######. ##...## ##...## ##...## ##...## .#####.",
    "####### ##...## .....## ....##. ....##. ...##.. ...##.. ..##... ..##... ..##...",
    ".#####. ##...## ##...## ##...## .#####. ##...## ##...## ##...## ##...## .#####.",
    ".#####. ##...## ##...## ##...## ##...## .###### .....## .....## ....##. .####..",
)


def codes(classes: int) -> NDArray[np.float32]:
    """(C, 84) of -1 and 1: the target of layer F6 for each class.

    For ten classes the digits as bitmaps 7 wide and 12 high (figure 3 of the paper, drawn anew here); otherwise codes
    chosen at random with equal probability, which the paper names as the alternative.
    """
    if classes == len(_DIGITS):
        rows = [digit.replace(" ", "").ljust(84, ".") for digit in _DIGITS]
        return np.array([[1.0 if cell == "#" else -1.0 for cell in row] for row in rows], np.float32)
    random = np.random.default_rng(1998)
    chosen: NDArray[np.float32] = np.where(random.random((classes, 84)) < 0.5, -1, 1).astype(np.float32)
    return chosen
