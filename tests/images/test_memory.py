"""Estimates of decoding memory are near what decoding takes, and above it."""

import io
import subprocess
import sys

import pytest
from PIL import Image

from simsearch.images import memory

SIDE = 3000


def encoded(mode, form, **options):
    image = Image.new(mode.partition("+")[0], (SIDE, SIDE), options.pop("colour", 1))
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


PICTURES = {
    "RGB JPEG": lambda: encoded("RGB", "JPEG"),
    "RGB PNG": lambda: encoded("RGB", "PNG"),
    "grey PNG": lambda: encoded("L", "PNG"),
    "palette with transparency": lambda: encoded("P", "PNG", transparency=0),
    "RGBA PNG": lambda: encoded("RGBA", "PNG", colour=(1, 2, 3, 4)),
    "16-bit PNG": lambda: encoded("I;16", "PNG"),
    "float TIFF": lambda: encoded("F", "TIFF"),
}
MEASURE = """
import resource, sys
from simsearch.images import decode
data = open(sys.argv[1], "rb").read()
side = int(sys.argv[2]) or None
decode.decode_image(open(sys.argv[3], "rb").read(), side)  # loads what decoding imports
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10
before = peak()
decode.decode_image(data, side)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("side", [0, 256])
@pytest.mark.parametrize("kind", PICTURES)
def test_estimate_holds(kind, side, tmp_path):
    data = PICTURES[kind]()
    (tmp_path / "a").write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        image.resize((8, 8)).save(tmp_path / "small", image.format)
    command = [sys.executable, "-c", MEASURE, tmp_path / "a", str(side), tmp_path / "small"]
    used = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert used <= memory.peak_memory(data, side or None) + (12 << 20)


def test_crop_needs_more_and_small_copies_less():
    data = encoded("RGB", "PNG")
    assert memory.peak_memory(data, None, crop=True) > memory.peak_memory(data) > SIDE * SIDE * 4
    assert memory.peak_memory(encoded("RGB", "JPEG"), 64) < SIDE * SIDE
    assert memory.peak_memory(b"no image") == 0


def test_part_of_large_image_is_decoded_smaller():
    assert memory.scaled_side((8000, 6000), (0, 0, 8000, 6000), 256) == 256
    assert memory.scaled_side((8000, 6000), (0, 0, 2000, 1500), 256) == 1024
    assert memory.scaled_side((8000, 6000), (0, 0, 500, 500), 256) is None  # every pixel is needed
    assert memory.scaled_side((8000, 6000), (0, 0, "100%", "25%"), 256) == 1024
    assert memory.scaled_side((8000, 6000), (0, 0, "25%", "100%"), 256) == 1024  # as if it were turned
    assert memory.scaled_side((8000, 6000), "0,0,5,5", 256) is None  # type: ignore[arg-type]
    assert memory.scaled_side((4000, 3000), (0, 0, 4000, 3000), 256) is None  # not large
    assert memory.scaled_side((100_000, 1000), (0, 0, 1000, 1000), 256) is None  # nothing to spare
