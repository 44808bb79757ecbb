"""Parts of a picture, in pixels and in percent."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from simsearch.errors import ImageError, UsageError
from simsearch.images import boxes, decode


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("1,2,30,40", (1, 2, 30, 40)),
        (" 1, 2 ,30,40", (1, 2, 30, 40)),
        ("-1,0,5,5", (-1, 0, 5, 5)),
        ("0,50%,50%,50%", (0, "50%", "50%", "50%")),
        ("0%,12.5%,100%,100.0%", ("0%", "12.5%", "100%", "100.0%")),
    ],
)
def test_texts_that_are_read(text: str, box: boxes.Box) -> None:
    assert boxes.read_box(text) == box


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,0,101%,5%", "0,0,-5%,5%", "0,0,1_0,5", "0,0,٣,5", "0,0,1e1%,5"]
)
def test_texts_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        boxes.read_box(text)


@pytest.mark.parametrize(
    ("box", "size", "pixels"),
    [
        ((0, "50%", "50%", "50%"), (256, 192), (0, 96, 128, 96)),
        (("35%", 0, "65%", "100%"), (256, 192), (90, 0, 166, 192)),
        (("25%", "25%", 10, 20), (100, 200), (25, 50, 10, 20)),
        ((10, 0, "50%", "50%"), (100, 200), (10, 0, 50, 100)),
        ((0, 0, "33.3%", "100%"), (10, 10), (0, 0, 3, 10)),
    ],
)
def test_percent_of_a_size(box: boxes.Box, size: tuple[int, int], pixels: boxes.PixelBox) -> None:
    assert decode.check_box(box, size) == pixels


@pytest.mark.parametrize("side", range(1, 120))
def test_parts_that_meet_in_percent_meet_in_pixels(side: int) -> None:
    """And together they are the whole picture."""
    edge = 0
    for start in range(0, 100, 5):
        x, _, width, _ = boxes.in_pixels((f"{start}%", 0, "5%", 1), (side, 9))
        assert x == edge
        edge += width
        assert boxes.least_side((f"{start}%", 0, "5%", side), (side, side)) <= max(width, 0)
    assert edge == side


@pytest.mark.parametrize(
    "box", ["0,0,5,5", 5, None, (1, 2, 3), (0, 0, "5", 5), (0, 0, "5px", 5), (0.0, 0, 5, 5), {"x": 1}, ("50%",) * 3]
)
def test_values_that_are_no_box(box: Any) -> None:
    with pytest.raises(
        UsageError, match='a crop is x, y, width, height: whole numbers of pixels, or percent such as "50%"'
    ):
        decode.check_box(box, (10, 10))
    assert boxes.least_side(box, (10, 10)) == 0 or len(box) == 4


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (("50%", 0, "55%", 5), "crop 50%,0,55%,5 does not lie within the 40x30 image"),
        ((0, 0, "1%", "1%"), "crop 0,0,1%,1% has no area"),
        (("99%", 0, 5, 5), "crop 99%,0,5,5 does not lie within the 40x30 image"),
    ],
)
def test_parts_outside_or_without_area(box: boxes.Box, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode.crop(Image.new("RGB", (40, 30)), box)
