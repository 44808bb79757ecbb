"""TIFF files of every layout decode to the pixels that they hold, or are refused."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images import decode
from tests.helpers.encoded import HEIGHT, WIDTH, encoded, numbers, picture, tiff

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

COLOUR = np.asarray(picture())
GREY = np.asarray(picture().convert("L"))
needs_tifffile = pytest.mark.skipif(find_spec("tifffile") is None, reason="tifffile is not installed")


def difference(data: bytes, expected: NDArray[Any]) -> float:
    found = numbers(decode.decode_image(data).image)
    assert found.shape == (HEIGHT, WIDTH, 3)
    return float(np.abs(found - (expected if expected.ndim == 3 else expected[..., None])).max())


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", [False, True])
def test_colour_of_16_bits(order: str, planes: bool) -> None:
    assert difference(tiff(COLOUR.astype(np.uint16) * 257, 2, order, planes), COLOUR) == 0


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", [False, True])
def test_colour_and_alpha_of_16_bits(order: str, planes: bool) -> None:
    layers = np.dstack([COLOUR.astype(np.uint16) * 257, np.full(GREY.shape, 65535, np.uint16)])
    assert difference(tiff(layers, 2, order, planes, t338=(2,)), COLOUR) == 0


@needs_tifffile
@pytest.mark.parametrize("planes", [False, True])
def test_grey_and_alpha_of_8_bits(planes: bool) -> None:
    layers = np.dstack([GREY, np.full_like(GREY, 255)])
    assert difference(tiff(layers, 1, planes=planes, t338=(2,)), GREY) == 0


@needs_tifffile
@pytest.mark.parametrize("planes", [False, True])
def test_alpha_that_is_multiplied_in(planes: bool) -> None:
    half = np.full_like(GREY, 128)
    for values, photometric in ((GREY, 1), (COLOUR, 2)):
        data = tiff(np.dstack([values // 2, half]), photometric, planes=planes, t338=(1,))
        assert difference(data, 127 + values.astype(float) / 2) <= 3


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(order: str, dtype: type[np.unsignedinteger[Any]]) -> None:
    top = np.iinfo(dtype).max
    values = (top - GREY.astype(dtype) * (top // 255)).astype(dtype)
    try:
        assert difference(tiff(values, 0, order), GREY) == 0
    except ImageError as error:
        assert (order, dtype) == (">", np.uint16)
        assert "a TIFF of 16-bit integers" in str(error)


def test_white_is_zero_of_floats() -> None:
    assert difference(tiff((1 - GREY / 255).astype(np.float32), 0), GREY) <= 1


@needs_tifffile
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_large_offsets(order: Any, dtype: Any) -> None:
    """BigTIFF."""
    import tifffile

    values = (COLOUR / 255 * (1 if dtype is np.float32 else np.iinfo(dtype).max)).astype(dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, values, byteorder=order, bigtiff=True, photometric="rgb")
    assert difference(file.getvalue(), COLOUR) <= 1


@needs_tifffile
@pytest.mark.parametrize("bright", [1.02, 7.9, np.inf])
def test_floats_brighter_than_white(bright: float) -> None:
    values = (COLOUR / 255).astype(np.float32)
    values[0, 0] = bright
    expected = COLOUR.copy()
    expected[0, 0] = 255
    assert difference(tiff(values, 2), expected) <= 1
    assert difference(tiff(values[..., 0].copy(), 1), expected[..., 0]) <= 1


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_either_photometric(bits: int, photometric: int) -> None:
    top = (1 << bits) - 1
    levels = np.arange(64, dtype=np.uint8)[None].repeat(8, 0) % (top + 1)
    packed = np.packbits(np.unpackbits(levels[..., None], axis=2)[..., 8 - bits :].reshape(8, -1), axis=1)
    found = numbers(decode.decode_image(tiff(levels, photometric, t258=(bits,), data=packed.tobytes())).image)
    assert (found[..., 0] == np.abs(levels.astype(int) - (0 if photometric else top)) * 255 // top).all()


def test_signed_values_reach_to_white() -> None:
    assert difference(tiff((GREY // 2).astype(np.int8), 1), (GREY // 2).astype(float) * 255 / 127) <= 1
    for order in "<>":
        assert difference(tiff(GREY.astype(np.int16) * 128, 1, order), GREY) <= 1


def test_unsigned_integers_of_32_bits() -> None:
    for factor in (16_843_009, 257, 1):
        assert difference(tiff(GREY.astype(np.uint32) * np.uint32(factor), 1), GREY) == 0


@pytest.mark.parametrize("order", "<>")
def test_signed_integers_of_32_bits(order: str) -> None:
    assert difference(tiff(GREY.astype(np.int32) * 8_421_504, 1, order), GREY) <= 1
    assert difference(tiff(GREY.astype(np.int32) * 257, 1, order), GREY) == 0


def test_12_bits_reach_to_white() -> None:
    values = GREY.astype(np.uint32) << 4
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data = tiff(GREY.astype(np.uint16), 1, t258=(12,), data=packed.astype(np.uint8).tobytes())
    assert difference(data, GREY) == 0


@pytest.mark.parametrize("order", "<>")
def test_floats_of_either_byte_order(order: str) -> None:
    assert difference(tiff((GREY / 255).astype(np.float32), 1, order), GREY) <= 1


def test_colours_of_8_bits_in_the_palette() -> None:
    indexes = (np.arange(WIDTH * HEIGHT) % 256).astype(np.uint8).reshape(HEIGHT, WIDTH)
    colours = np.random.default_rng(0).integers(0, 256, (3, 256))
    for factor in (1, 257):
        data = tiff(indexes, 3, t320=tuple((colours * factor).ravel().tolist()))
        assert difference(data, colours.T[indexes]) == 0


def test_unmarked_fourth_channel_is_no_alpha() -> None:
    layers = np.dstack([COLOUR, np.zeros_like(GREY)])
    assert difference(tiff(layers, 2), COLOUR) == 0
    assert difference(tiff(layers, 2, t338=(0,)), COLOUR) == 0


def test_orientation_of_a_tiff_counts_once() -> None:
    xmp = b'<x tiff:Orientation="6"/>'
    stored = picture().transpose(Image.Transpose.ROTATE_90)
    data = encoded(stored, "TIFF", tiffinfo={0x0112: 6, 700: xmp})
    assert numbers(decode.decode_image(data).image).tolist() == numbers(picture()).tolist()
    data = encoded(picture(), "TIFF", tiffinfo={700: xmp})
    assert numbers(decode.decode_image(data).image).tolist() == numbers(picture()).tolist()


# -- what only tifffile knows


@needs_tifffile
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint32])
def test_colours_of_other_types(dtype: Any, planes: bool) -> None:
    kind = np.dtype(dtype).kind
    values = (COLOUR / 255).astype(dtype) if kind == "f" else COLOUR.astype(dtype) * np.uint32(16_843_009)
    assert difference(tiff(values, 2, planes=planes), COLOUR) <= 1


@needs_tifffile
def test_white_is_zero_of_other_order() -> None:
    assert difference(tiff(65535 - GREY.astype(np.uint16) * 257, 0, ">"), GREY) == 0
    assert difference(tiff(GREY.astype(np.uint32) * np.uint32(16_843_009), 1, ">"), GREY) == 0


@needs_tifffile
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int16])
@pytest.mark.parametrize("order", "<>")
def test_compressed_files_keep_their_order(order: Any, dtype: Any) -> None:
    import tifffile

    scale = {"float32": 1 / 255, "int32": 4001, "int16": 128}[np.dtype(dtype).name]
    out = io.BytesIO()
    tifffile.imwrite(
        out, (GREY.astype(float) * scale).astype(dtype), compression="zlib", byteorder=order, photometric="minisblack"
    )
    assert difference(out.getvalue(), GREY.astype(float) if dtype is np.int32 else GREY) <= 1


@needs_tifffile
def test_turned_file_of_another_type() -> None:
    stored = np.ascontiguousarray(np.rot90(COLOUR))
    data = tiff((stored / 255).astype(np.float32), 2, t274=(6,))
    assert difference(data, COLOUR) <= 1


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    cure = r"a TIFF of 3 x 32-bit floats needs the \[tiff\] extra: .*\[tiff\]'"
    with pytest.raises(ImageError, match=cure):
        decode.decode_image(tiff((COLOUR / 255).astype(np.float32), 2))


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(ImageError, match="a TIFF of 32-bit values of another kind"):
        decode.decode_image(tiff(GREY.astype(np.float32), 1, t339=(6,)))


@pytest.mark.parametrize("order", [b"II", b"MM"])
def test_offset_past_what_a_file_can_have(order: bytes) -> None:
    """BigTIFF has offsets of 64 bits; a file can be read up to 63."""
    number = "little" if order == b"II" else "big"
    numbers_of = [(43, 2), (8, 2), (0, 2), (2**64 - 5, 8)]
    data = order + b"".join(value.to_bytes(size, number) for value, size in numbers_of) + bytes(100)  # type: ignore[arg-type]
    assert decode.decode_memory(data, 128) == 0
    with pytest.raises(ImageError):
        decode.decode_image(data)
