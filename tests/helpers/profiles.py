"""ICC profiles made by hand, for tests of colours."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
D50 = (0.9642, 1.0, 0.8249)
PROPHOTO = np.array([[0.7977, 0.2880, 0.0], [0.1352, 0.7119, 0.0], [0.0313, 0.0001, 0.8249]])
"""The primaries of ProPhoto RGB in XYZ under D50, (3, 3): a row for red, green and blue."""
SRGB_PRIMARIES = np.array([[0.4361, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7142]])


def number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(space: bytes, gamma: float, primaries: NDArray[Any] | None = None) -> bytes:
    """An ICC profile by hand: of RGB by its primaries, or of greys; with one gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": b"XYZ " + bytes(4) + b"".join(map(number, D50))}
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        for letter, row in zip(b"rgb", primaries, strict=True):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + b"".join(map(number, row))
            tags[bytes([letter]) + b"TRC"] = curve
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = bytes(8) + struct.pack(">I", 0x02400000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + b"".join(map(number, D50))
    head = struct.pack(">I", start + len(body)) + head[4:].ljust(124, b"\0")
    return head + table + body


def grey_inks() -> bytes:
    """An ICC profile of four inks, by hand, whose black is a middle grey."""
    identity = bytes(range(256))
    greys = b"".join(bytes([{0: 255, 1: 128}.get(place, 0), 128, 128]) for place in range(16))  # black varies fastest
    matrix = b"".join(number(float(row == column)) for row in range(3) for column in range(3))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + greys + identity * 3
    head = bytes(8) + struct.pack(">I", 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + b"".join(map(number, D50))
    head = struct.pack(">I", 144 + len(table)) + head[4:].ljust(124, b"\0")
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


WIDE = profile(b"RGB ", 1.8, PROPHOTO)
LINEAR_GREY = profile(b"GRAY", 1.0)


GREY_INKS = grey_inks()
