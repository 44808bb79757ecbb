"""Colours that are described without a profile, or by a profile that Pillow does not read."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from simsearch.images import decode
from tests.helpers.encoded import assert_close, chunk, encoded, needs_heif, numbers, picture, png
from tests.helpers.profiles import WIDE

SRGB = ((0.3127, 0.3290), (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.3127, 0.3290), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


def matrix(primaries: tuple[tuple[float, float], ...]) -> NDArray[Any]:
    """From linear values to XYZ: a column for red, green and blue."""
    white, *colours = ([x / y, 1.0, (1 - x - y) / y] for x, y in primaries)
    columns = np.array(colours).T
    return columns * np.linalg.solve(columns, white)


def linear(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def in_p3(image: Image.Image) -> Image.Image:
    """The same picture with values of Display P3."""
    light = linear(numbers(image) / 255) @ (np.linalg.inv(matrix(P3)) @ matrix(SRGB)).T
    light = light.clip(0, 1)
    values = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray((values * 255).round().astype(np.uint8))


def with_chunks(image: Image.Image, *chunks: bytes) -> bytes:
    data = encoded(image, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


CHRM = chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for pair in P3 for v in pair)))
GAMA, P3_CODES = chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cICP", bytes((12, 13, 0, 1)))


@pytest.mark.parametrize("chunks", [(CHRM,), (GAMA, CHRM), (P3_CODES,), (chunk(b"sRGB", b"\0"), P3_CODES)])
def test_primaries_of_a_png(chunks: tuple[bytes, ...]) -> None:
    assert np.abs(numbers(in_p3(picture())) - numbers(picture())).mean() > 5
    assert_close(decode.decode_image(with_chunks(in_p3(picture()), *chunks)).image, picture(), 2)
    layers = in_p3(picture()).convert("RGBA")
    assert_close(decode.decode_image(with_chunks(layers, *chunks)).image, picture(), 2)
    text = chunk(b"tEXt", b"a\0b", damaged=True)  # the file has to be repaired
    assert_close(decode.decode_image(with_chunks(in_p3(picture()), *chunks, text)).image, picture(), 2)


@pytest.mark.parametrize(
    "chunks",
    [
        (GAMA,),
        (chunk(b"gAMA", bytes(4)),),
        (chunk(b"gAMA", b"\xff\xff\xff\xff"),),
        (chunk(b"gAMA", b"\0"),),
        (chunk(b"cHRM", bytes(32)),),
        (chunk(b"cHRM", b"\xff" * 32),),
        (CHRM, chunk(b"sRGB", b"\0")),
        (chunk(b"cICP", bytes((1, 13, 0, 1))),),
        (chunk(b"cICP", bytes((99, 99, 0, 1))),),
        (chunk(b"cICP", bytes((9, 16, 0, 1))),),
        (chunk(b"cHRM", CHRM[8:-4], damaged=True),),
    ],
)
def test_descriptions_of_a_png_that_change_nothing(chunks: tuple[bytes, ...]) -> None:
    assert_close(decode.decode_image(with_chunks(picture(), *chunks)).image, picture(), 0)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_gamma_of_a_png(gamma: float, grey: bool) -> None:
    expected = picture().convert("L") if grey else picture()
    values = (linear(np.asarray(expected) / 255) ** (1 / gamma) * 65535).round().astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    extra = chunk(b"gAMA", struct.pack(">I", round(100_000 / gamma)))
    data = png(expected.width, expected.height, 16, 0 if grey else 2, rows, extra)
    assert_close(decode.decode_image(data).image, expected.convert("RGB"), 4)  # the values are cut to 8 bits first


@pytest.mark.parametrize("kind", ["AVIF", pytest.param("HEIF", marks=needs_heif)])
def test_code_points_of_avif_and_heic(kind: str) -> None:
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    options: dict[str, Any] = {"subsampling": "4:4:4"} if kind == "AVIF" else {"chroma": 444}
    for stored, codes in ((in_p3(picture()), (12, 13)), (picture(), (1, 13)), (picture(), (9, 16))):
        data = bytearray(encoded(stored, kind, quality=98, **options))
        place = data.index(b"nclx")
        data[place + 4 : place + 8] = struct.pack(">HH", *codes)
        assert_close(decode.decode_image(bytes(data)).image, picture(), 4)


def in_prophoto(image: Image.Image) -> Image.Image:
    from tests.images.decoding.test_colour import in_prophoto as convert

    return convert(image)


def test_profile_of_a_bmp() -> None:
    image = in_prophoto(picture())
    pixels = np.ascontiguousarray(np.asarray(image)[::-1, :, ::-1]).tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, *image.size, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    for kind, expected in ((b"DEBM", picture()), (b"BGRs", image)):
        whole = head + bytes(16) + kind + bytes(48) + struct.pack("<IIII", 4, 124 + len(pixels), len(WIDE), 0)
        file = b"BM" + struct.pack("<IHHI", 138 + len(pixels) + len(WIDE), 0, 0, 138) + whole + pixels + WIDE
        assert_close(decode.decode_image(file).image, expected, 3)
        assert decode.decode_image(file[: -len(WIDE)]).image.size == image.size  # it is cut off


def test_profile_of_a_jpeg_2000() -> None:
    data = encoded(in_prophoto(picture()), "JPEG2000", irreversible=False)
    head, place = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    length, old = (int.from_bytes(data[start : start + 4], "big") for start in (head, place))
    box = struct.pack(">I4sBBB", 11 + len(WIDE), b"colr", 2, 0, 0) + WIDE
    longer = struct.pack(">I", length + len(box) - old)
    file = data[:head] + longer + data[head + 4 : place] + box + data[place + old :]
    assert_close(decode.decode_image(file).image, picture(), 3)
