"""The constants of LeNet-5: which maps are connected, how pixels are scaled, and the codes of the output units.

LeCun, Bottou, Bengio, Haffner: "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998,
section II.B. The torch network and the ONNX graph both use this module, so it must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENET5_INPUT = (20.0, 200.0)
"""Mean and standard deviation that normalise the input, on the scale 0 to 255.

They map 0 to -0.1 and 255 to 1.175, the paper's values for background and ink.
"""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""

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
"""(16, 6): 1 where a map of layer C3 reads a map of layer S2, else 0 (table I).

A map of C3 reads three or four adjacent maps, two pairs of adjacent maps, or all six.
"""

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
    """Returns the target of layer F6 for each of C classes: (C, 84) float32, of values -1 and 1.

    For ten classes the targets are bitmaps of the digits, 7 wide and 12 high, redrawn after figure 3 of the paper. For
    any other number they are random, which the paper mentions as an alternative.
    """
    if classes == len(_DIGITS):
        rows = [digit.replace(" ", "").ljust(84, ".") for digit in _DIGITS]
        return np.array([[1.0 if cell == "#" else -1.0 for cell in row] for row in rows], np.float32)
    random = np.random.default_rng(1998)
    random_codes: NDArray[np.float32] = np.where(random.random((classes, 84)) < 0.5, -1, 1).astype(np.float32)
    return random_codes
