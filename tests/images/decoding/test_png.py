"""PNG files with damaged or large optional chunks, transparent colours, and animations."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from simsearch.images import decode
from tests.helpers.encoded import HEIGHT, WHITE, WIDTH, assert_close, chunk, encoded, error, numbers, picture, png

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

BODIES = {
    b"tEXt": b"a\0b",
    b"pHYs": struct.pack(">IIB", 1, 1, 0),
    b"tIME": bytes(7),
    b"iTXt": b"k\0\0\0\0\0v",
    b"gAMA": struct.pack(">I", 45455),
    b"tRNS": b"\0\0\0\0\0\0",
    b"iCCP": b"x\0\0" + zlib.compress(b"none"),
    b"eXIf": b"II*\0",
}


def with_chunk(data: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """Puts chunks before the pixels, and behind them."""
    return data[:33] + before + data[33:-12] + after + data[-12:]


@pytest.mark.parametrize("name", BODIES)
def test_damaged_optional_chunks_do_not_matter(name: bytes) -> None:
    bad = chunk(name, BODIES[name], damaged=True)
    for data in (with_chunk(encoded(picture(), "PNG"), bad), with_chunk(encoded(picture(), "PNG"), b"", bad)):
        assert_close(decode.decode_image(data).image, picture(), 0)
        assert_close(decode.decode_image(io.BytesIO(data)).image, picture(), 0)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_large_optional_chunks_do_not_matter(name: bytes, where: str) -> None:
    packed = zlib.compress(b'{"workflow": 1}' * 100_000)
    body = {b"zTXt": b"prompt\0\0", b"iTXt": b"prompt\0\1\0\0\0", b"iCCP": b"profile\0\0"}[name] + packed
    data = with_chunk(encoded(picture(), "PNG"), **{where: chunk(name, body)})
    assert_close(decode.decode_image(data).image, picture(), 0)


def test_damaged_chunk_leaves_what_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture().transpose(Image.Transpose.ROTATE_90)
    data = with_chunk(encoded(stored, "PNG", exif=exif), chunk(b"tEXt", b"a\0b", damaged=True))
    assert_close(decode.decode_image(data).image, picture(), 0)
    transparent = encoded(Image.new("RGB", (3, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    data = with_chunk(transparent, chunk(b"pHYs", b"", damaged=True))
    assert (numbers(decode.decode_image(data).image) == 255).all()


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_damaged_needed_chunk_is_a_reason(name: bytes) -> None:
    data = bytearray(encoded(picture().quantize(16), "PNG"))
    place = data.index(name)
    length = struct.unpack(">I", data[place - 4 : place])[0]
    data[place + 4 + length] ^= 255
    assert error(bytes(data)) == "the file is damaged: it begins like PNG, but its header cannot be read"


def stream(data: bytes) -> bytes:
    """The compressed pixels of a PNG with one IDAT."""
    place = data.index(b"IDAT")
    return data[place + 4 : place + 4 + int.from_bytes(data[place - 4 : place], "big")]


def with_stream(data: bytes, pixels: bytes, split: int = 1 << 20, damaged: bool = False) -> bytes:
    """The PNG with other compressed pixels, in chunks of `split` bytes. damaged: True for wrong checksums."""
    parts = [pixels[start : start + split] for start in range(0, len(pixels), split)]
    start = data.index(b"IDAT") - 4
    return data[:start] + b"".join(chunk(b"IDAT", part, damaged) for part in parts) + data[-12:]


@pytest.mark.parametrize("split", [1 << 20, 100, 3])
@pytest.mark.parametrize("end", [b"", b"\1\2\3\4", b"\1\2", b"\1\2\3\4 and more"])
def test_wrong_checksum_of_the_pixels(end: bytes, split: int) -> None:
    data = encoded(picture(), "PNG")
    wrong = stream(data)[:-4] + end
    assert_close(decode.decode_image(with_stream(data, wrong, split)).image, picture(), 0)
    right = with_stream(data, stream(data), split, damaged=True)  # of the chunks in its place
    assert_close(decode.decode_image(right).image, picture(), 0)
    if end:
        assert error(with_stream(data, wrong, split, damaged=True)).startswith("the file is ")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("longer", [0, 100_000])
def test_file_that_ends_with_zeros(share: float, longer: int) -> None:
    noise = np.random.default_rng(0).integers(0, 8, (100, 100, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(np.asarray(picture(100, 100)) // 2 + noise), "PNG")
    cut = int(len(whole) * share)
    assert "the file is " in error(whole[:cut] + bytes(len(whole) - cut + longer))
    assert "the file is " in error(whole[:cut] + bytes(200) + whole[cut + 200 :])
    assert decode.decode_image(whole + bytes(longer)).image.size == (100, 100)


def test_checking_pixels_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(50_000_000))
    data = with_stream(encoded(picture(), "PNG"), bomb, damaged=True)
    sizes: list[int] = []
    real = zlib.decompressobj

    class Counted:
        def __init__(self, bits: int = zlib.MAX_WBITS) -> None:
            self.inner = real(bits)

        def decompress(self, block: bytes, most: int = 0) -> bytes:
            found = self.inner.decompress(block, most)
            sizes.append(len(found))
            return found

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    assert "damaged" in error(data) or "truncated" in error(data)
    assert sum(sizes) < 20_000_000


# -- transparency


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_of_any_depth(bits: int) -> None:
    top = (1 << bits) - 1
    chosen = 1 if bits < 16 else 0x1234
    levels = [0, chosen] if bits == 1 else [0, chosen, top, chosen + 1]
    if bits == 16:
        row = struct.pack(">4H", *levels)
    else:
        row = np.packbits([level >> bit & 1 for level in levels for bit in reversed(range(bits))]).tobytes()
    data = png(len(levels), 1, bits, 0, b"\0" + row, chunk(b"tRNS", struct.pack(">H", chosen)))
    expected = [255 if level == chosen else level >> 8 if bits == 16 else level * 255 // top for level in levels]
    assert numbers(decode.decode_image(data).image)[0, :, 0].tolist() == expected


def test_transparent_colour_of_16_bits() -> None:
    row = struct.pack(">9H", 0x1234, 0x5678, 0x9ABC, 0x1234, 0x5678, 0x9ABD, 0x1200, 0x5600, 0x9A00)
    data = png(3, 1, 16, 2, b"\0" + row, chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))
    almost = [0x12, 0x56, 0x9A]
    for source in (data, io.BytesIO(data)):
        assert numbers(decode.decode_image(source).image)[0].tolist() == [list(WHITE), almost, almost]


def test_transparent_level_out_of_range() -> None:
    data = png(4, 1, 2, 0, b"\0\x1b", chunk(b"tRNS", struct.pack(">H", 4)))
    assert numbers(decode.decode_image(data).image)[0, :, 0].tolist() == [0, 85, 170, 255]


# -- animations


def animation(place: tuple[int, int], frame: Image.Image, default: Image.Image, control: bytes = b"\0\0") -> bytes:
    """An animation whose default image is not a frame."""
    rows, other = (
        zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(image))) for image in (default, frame)
    )
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", *default.size, 8, 2, 0, 0, 0)),
            chunk(b"acTL", struct.pack(">II", 2, 0)),
            chunk(b"IDAT", rows),
            chunk(b"fcTL", struct.pack(">5IHH", 0, *frame.size, *place, 0, 1) + control),
            chunk(b"fdAT", struct.pack(">I", 1) + other[:20]),
            chunk(b"fdAT", struct.pack(">I", 2) + other[20:]),
            chunk(b"fcTL", struct.pack(">5IHH", 3, *frame.size, *place, 0, 1) + control),
            chunk(b"fdAT", struct.pack(">I", 4) + rows),
            chunk(b"IEND", b""),
        ]
    )


RED_IMAGE = Image.new("RGB", (WIDTH, HEIGHT), "red")


def test_default_image_that_is_no_frame() -> None:
    for control in (b"\0\0", b"\1\1", b"\2\1"):
        data = animation((0, 0), picture(), RED_IMAGE, control)
        assert_close(decode.decode_image(data).image, picture(), 0)


@pytest.mark.parametrize(
    "optional",
    [
        chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b'{"workflow": 1}' * 100_000)),
        chunk(b"tEXt", b"a\0b", damaged=True),
        chunk(b"iCCP", b""),
    ],
    ids=["large", "damaged", "empty"],
)
def test_optional_chunks_of_an_animation_do_not_matter(optional: bytes) -> None:
    data = animation((0, 0), picture(), RED_IMAGE)
    assert_close(decode.decode_image(with_chunk(data, optional)).image, picture(), 0)


@pytest.mark.parametrize("name", [b"iCCP", b"sRGB", b"eXIf", b"gAMA", b"pHYs", b"tIME"])
def test_empty_optional_chunks_do_not_matter(name: bytes) -> None:
    data = with_chunk(encoded(picture(), "PNG"), chunk(name, b""))
    assert_close(decode.decode_image(data).image, picture(), 0)


def test_frame_smaller_than_its_canvas() -> None:
    decoded = decode.decode_image(animation((5, 7), picture(20, 10), RED_IMAGE))
    expected = Image.new("RGB", (WIDTH, HEIGHT), "white")
    expected.paste(picture(20, 10), (5, 7))
    assert_close(decoded.image, expected, 0)
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)


def test_damaged_animation_shows_its_default() -> None:
    whole = animation((0, 0), picture(), RED_IMAGE)
    outside = animation((40, 0), picture(), RED_IMAGE)
    for data in (whole[: whole.index(b"fdAT") + 30], outside):
        assert_close(decode.decode_image(data).image, RED_IMAGE, 0)
