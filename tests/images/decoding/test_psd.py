"""Photoshop files, made by hand."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from simsearch.images import decode, memory
from tests.helpers.encoded import HEIGHT, WIDTH, assert_close, error, numbers, picture
from tests.helpers.profiles import WIDE
from tests.images.decoding.test_colour import in_prophoto

PICTURE = np.asarray(picture())
GREY = np.asarray(picture().convert("L"))
HALF = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))


def psd(
    mode: int, channels: Any, packed: bool, large: bool = False, colours: bytes = b"", resources: bytes = b""
) -> bytes:
    """A merged picture. channels: arrays of uint8, uint16 or float32 values, or of bits packed in bytes for mode 0."""
    parts = [np.asarray(channel) for channel in channels]
    kind = parts[0].dtype
    depth = 1 if mode == 0 else 8 * kind.itemsize
    head = b"8BPS" + struct.pack(">H6xHIIHH", 2 if large else 1, len(parts), HEIGHT, WIDTH, depth, mode)
    head += struct.pack(">I", len(colours)) + colours + struct.pack(">I", len(resources)) + resources
    head += bytes(8 if large else 4)
    rows = [row.astype(kind.newbyteorder(">")).tobytes() for part in parts for row in part]
    if not packed:
        return head + b"\0\0" + b"".join(rows)
    rows = [
        b"".join(bytes([len(row[at : at + 90]) - 1]) + row[at : at + 90] for at in range(0, len(row), 90))
        for row in rows
    ]
    return head + b"\0\1" + struct.pack(f">{len(rows)}{'I' if large else 'H'}", *map(len, rows)) + b"".join(rows)


def planes(values: NDArray[Any]) -> list[NDArray[Any]]:
    return [values[..., number] for number in range(values.shape[2])]


def resource(number: int, data: bytes, name: bytes = b"") -> bytes:
    text = bytes([len(name)]) + name
    return (
        b"8BIM"
        + struct.pack(">H", number)
        + text
        + bytes(len(text) % 2)
        + struct.pack(">I", len(data))
        + data
        + bytes(len(data) % 2)
    )


both = pytest.mark.parametrize("packed", [False, True])


@both
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("more", [0, 1, 3])
def test_colours_and_more_channels(more: int, large: bool, packed: bool) -> None:
    for depth in (np.uint8(1), np.uint16(257)):
        data = psd(3, [*planes(PICTURE * depth), *[HALF * depth] * more], packed, large)
        assert_close(decode.decode_image(data).image, picture(), 0)
        grey = psd(1, [GREY * depth, *[HALF * depth] * more], packed, large)
        assert_close(decode.decode_image(grey).image, picture().convert("L").convert("RGB"), 0)
        inks = [*planes(PICTURE * depth), np.full_like(GREY, 255) * depth, *[HALF * depth] * more]  # 255 is no ink
        assert_close(decode.decode_image(psd(4, inks, packed, large)).image, picture(), 1)
        assert memory.peak_memory(data) > 3 * WIDTH * HEIGHT


@both
def test_floats(packed: bool) -> None:
    values = (PICTURE / 255).astype(np.float32)
    values[0, 0] = (2, np.nan, -1)
    found = decode.decode_image(psd(3, planes(values), packed)).image
    assert found.getpixel((0, 0)) == (255, 0, 0)
    assert np.abs(numbers(found) - PICTURE)[1:].max() <= 1


@both
def test_other_modes(packed: bool) -> None:
    bits = np.packbits(GREY < 100, axis=1)  # 1 is black
    expected = np.where(GREY < 100, 0, 255).astype(np.uint8)
    assert_close(decode.decode_image(psd(0, [bits], packed)).image, Image.fromarray(expected).convert("RGB"), 0)
    colours = np.random.default_rng(0).integers(0, 256, (3, 256), dtype=np.uint8)
    found = decode.decode_image(psd(2, [GREY], packed, colours=colours.tobytes())).image
    assert_close(found, Image.fromarray(colours.T[GREY]), 0)
    duotone = decode.decode_image(psd(8, [GREY], packed, colours=b"inks"))
    assert_close(duotone.image, Image.fromarray(GREY).convert("RGB"), 0)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(picture(), to_lab)
    assert lab is not None
    signed = np.asarray(lab) ^ np.array([0, 128, 128], np.uint8)  # Photoshop adds 128 to a and b
    assert_close(decode.decode_image(psd(9, planes(signed), packed)).image, picture(), 3)


def test_transparency_lies_on_white() -> None:
    mixed = (PICTURE * (HALF / 255)[..., None] + 255 * (1 - HALF / 255)[..., None]).round().astype(np.uint8)
    data = psd(3, [*planes(mixed), HALF], False)  # Photoshop has mixed the colours with white
    assert_close(decode.decode_image(data).image, Image.fromarray(mixed), 0)


def test_profile_and_resources() -> None:
    resources = resource(1005, b"abc") + resource(1060, b"xmp", b"na") + resource(1039, WIDE)
    data = psd(3, planes(np.asarray(in_prophoto(picture()))), True, resources=resources)
    assert_close(decode.decode_image(data).image, picture(), 3)
    for damaged in (resources[:-50], b"8BIM", b"x" * 40, resource(1039, b"") * 3):
        assert decode.decode_image(psd(3, planes(PICTURE), True, resources=damaged)).image.size == (WIDTH, HEIGHT)


def test_damaged_files_are_reasons() -> None:
    for packed in (False, True):
        whole = psd(3, planes(PICTURE), packed)
        for size in (*range(4, 60), len(whole) // 2, len(whole) - 1):
            assert error(whole[:size])
    assert "holds no pixels" in error(whole[:14] + bytes(4) + whole[18:])
    assert "too large" in error(whole[:14] + b"\0\1\0\0\0\1\0\0" + whole[22:])
    for at, value in ((4, 3), (12, 0), (22, 7), (24, 99)):
        assert "variant" in error(whole[:at] + struct.pack(">H", value) + whole[at + 2 :])
    assert error(whole[:26] + b"\xff" * 4 + whole[30:])
