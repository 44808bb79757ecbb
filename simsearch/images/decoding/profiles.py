"""Finds ICC profiles that Pillow does not read, and makes profiles for files that describe their colours by numbers.

BMP and JPEG 2000 can hold a profile. PNG (gAMA, cHRM, cICP), AVIF and HEIC (nclx) can give numbers instead, from which
a profile is made. HDR (PQ and HLG) is not supported: such pictures keep their values.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image

from simsearch.images.decoding import png
from simsearch.images.decoding.colour import LARGEST_PROFILE
from simsearch.images.decoding.iso_boxes import boxes

Primaries = tuple[float, ...]
"""The chromaticities x and y of white, red, green and blue."""

_D65 = (0.3127, 0.3290)
_SRGB: Primaries = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_PRIMARIES: dict[int, Primaries] = {
    1: _SRGB,
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
"""Maps numbers of ITU-T H.273, "coding-independent code points" (CICP), to the supported primaries."""

_GAMMAS = {1: 0.0, 2: 0.0, 6: 0.0, 13: 0.0, 14: 0.0, 15: 0.0, 4: 2.2, 5: 2.8, 8: 1.0}
"""Maps numbers of transfer characteristics in H.273 to exponents of the curve; 0 stands for the curve of sRGB."""

_USUAL_GAMMA, _NEAR, _GAMMA_RANGE = 0.45455, 0.05, (0.2, 5.0)
"""A gAMA that differs from `_USUAL_GAMMA` by at most this share (`_NEAR`) means the curve of sRGB.

The exponent of the curve is 1 / gAMA. If the exponent is outside `_GAMMA_RANGE`, the gAMA is ignored.
"""

FORMATS = frozenset({"PNG", "BMP", "JPEG2000", "AVIF", "HEIF"})
"""The formats, as Pillow calls them, for which `found_profile` looks."""


def found_profile(image: Image.Image, file: IO[bytes]) -> bytes | None:
    """Returns an ICC profile for an opened image that has none; None if its colours are sRGB or not described.

    For a PNG with cICP, a profile is returned even if the image has one, because cICP takes precedence.
    """
    known = bool(image.info.get("icc_profile"))
    if image.format == "PNG":
        return _of_png(file, known)
    if known:
        return None
    if image.format == "BMP":
        return _of_bmp(file)
    if image.format == "JPEG2000":
        return _of_jp2(file)
    return _of_nclx(file) if image.format in {"AVIF", "HEIF"} else None


@functools.lru_cache(64)
def made_profile(primaries: Primaries, gamma: float) -> bytes | None:
    """Returns an ICC profile for RGB with these primaries; None for sRGB and for impossible primaries.

    gamma: the exponent of the curve; 0 for the curve of sRGB.
    """
    if not gamma and np.allclose(primaries, _SRGB, atol=0.003):
        return None
    white, *colours = ((x / y, 1.0, (1 - x - y) / y) if y else (0.0,) * 3 for x, y in np.reshape(primaries, (4, 2)))
    try:
        scales = np.linalg.solve(np.transpose(colours), white)
    except np.linalg.LinAlgError:
        return None
    rows = (np.array(colours) * scales[:, None]) @ _to_d50(np.array(white)).T
    if not np.isfinite(rows).all() or np.abs(rows).max() > 4:
        return None
    if gamma:
        curve = b"para" + bytes(4) + struct.pack(">HH", 0, 0) + _number(gamma)
    else:
        curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0)
        curve += b"".join(map(_number, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
    tags = {b"wtpt": _xyz(np.array(_D50))}
    for letter, row in zip((b"r", b"g", b"b"), rows, strict=True):
        tags |= {letter + b"XYZ": _xyz(row), letter + b"TRC": curve}
    return _profile(tags)


_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _to_d50(white: np.ndarray) -> np.ndarray:
    """Returns the matrix that adapts XYZ values from the white point `white` to the white point D50 of ICC profiles."""
    factors = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ white)
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(factors) @ _BRADFORD)


def _number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_number(float(value)) for value in values)


def _profile(tags: dict[bytes, bytes]) -> bytes:
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I", start + len(body)) + bytes(4) + struct.pack(">I", 0x04300000) + b"mntrRGB XYZ "
    head = head.ljust(36, b"\0") + b"acsp"
    return (head.ljust(68, b"\0") + b"".join(map(_number, _D50))).ljust(128, b"\0") + table + body


def _of_codes(primaries: int, transfer: int) -> bytes | None:
    """Returns a profile for code points of H.273; None for sRGB and for code points that are not supported."""
    if primaries not in _PRIMARIES or transfer not in _GAMMAS:
        return None
    return made_profile(_PRIMARIES[primaries], _GAMMAS[transfer])


def _of_png(file: IO[bytes], known: bool) -> bytes | None:
    found: dict[bytes, bytes] = {}
    for chunk in png.chunks(file):
        if chunk.name == b"IDAT":
            break
        if chunk.name in {b"gAMA", b"cHRM", b"cICP", b"sRGB"} and chunk.length <= 32:
            file.seek(chunk.start)
            data, checksum = file.read(chunk.length), file.read(4)
            if checksum == struct.pack(">I", zlib.crc32(chunk.name + data)):
                found[chunk.name] = data
    if len(codes := found.get(b"cICP", b"")) == 4:
        return _of_codes(codes[0], codes[1])
    if known or b"sRGB" in found:
        return None
    gamma, primaries = 0.0, _SRGB
    if len(data := found.get(b"gAMA", b"")) == 4 and (value := int.from_bytes(data, "big") / 100_000):
        usual = abs(value - _USUAL_GAMMA) <= _NEAR * _USUAL_GAMMA
        gamma = 1 / value if not usual and _GAMMA_RANGE[0] <= 1 / value <= _GAMMA_RANGE[1] else 0.0
    if len(data := found.get(b"cHRM", b"")) == 32:
        primaries = tuple(value / 100_000 for value in struct.unpack(">8I", data))
    return made_profile(primaries, gamma)


def _of_bmp(file: IO[bytes]) -> bytes | None:
    file.seek(14)
    header = file.read(124)
    if len(header) < 124 or header[:4] != struct.pack("<I", 124) or header[56:60] != b"DEBM":
        return None
    start, length = struct.unpack("<II", header[112:120])
    return _read(file, 14 + start, length)


def _of_jp2(file: IO[bytes]) -> bytes | None:
    for name, start, end in boxes(file):
        if name == b"jp2h":
            for inner, place, stop in boxes(file, start, end):
                if inner == b"colr":
                    file.seek(place)
                    method = file.read(1)
                    return _read(file, place + 3, stop - place - 3) if method in {b"\2", b"\3"} else None
    return None


def _of_nclx(file: IO[bytes]) -> bytes | None:
    """Returns a profile for the code points in an AVIF or HEIC file; None if its images have different ones or none."""
    found = set()
    for name, start, end in boxes(file):
        if name == b"meta":
            for outer, first, last in boxes(file, start + 4, end):
                if outer == b"iprp":
                    found |= set(_nclx_codes(file, first, last))
    return _of_codes(*found.pop()) if len(found) == 1 else None


def _nclx_codes(file: IO[bytes], start: int, end: int) -> Iterator[tuple[int, int]]:
    for name, first, last in boxes(file, start, end):
        if name == b"ipco":
            for inner, place, _ in boxes(file, first, last):
                if inner == b"colr":
                    file.seek(place)
                    data = file.read(8)
                    if data[:4] == b"nclx" and len(data) == 8:
                        yield int.from_bytes(data[4:6], "big"), int.from_bytes(data[6:8], "big")


def _read(file: IO[bytes], start: int, length: int) -> bytes | None:
    if not 128 < length <= LARGEST_PROFILE:
        return None
    file.seek(start)
    data = file.read(length)
    return data if len(data) == length else None
