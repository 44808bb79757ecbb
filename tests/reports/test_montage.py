"""Montages of results."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from simsearch.reports import tiles
from simsearch.reports.montage import draw_montage
from simsearch.reports.tiles import ResultRow, Tile
from tests.helpers.reports import GREEN, RED, match, page, row, solid


def colour_box(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The bounding box (left, top, right, bottom) of all pixels of exactly this colour."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


# montage


def test_montage_puts_query_first_keeps_aspect() -> None:
    picture = draw_montage([row(match(image=solid((100, 200), GREEN)))], side=120)
    red, green = colour_box(picture, RED), colour_box(picture, GREEN)
    assert (red[2] - red[0], red[3] - red[1]) == (120, 90)
    assert (green[2] - green[0], green[3] - green[1]) == (60, 120)
    assert red[2] < green[0]
    assert (red[1] + red[3]) // 2 == (green[1] + green[3]) // 2  # both centred in their tiles


def test_montage_has_words_under_matches() -> None:
    """The word is drawn: the same distance looks different with another similarity, and alike with the same word."""
    pictures = [
        np.asarray(draw_montage([row(Tile(solid(), "m.jpg", distance=3.0, similarity=similarity))]))
        for similarity in (0.9, 0.8, 0.1)
    ]
    assert (pictures[0] == pictures[1]).all()
    assert not (pictures[0] == pictures[2]).all()


def test_montage_sets_the_query_apart() -> None:
    greens = [match(image=solid((64, 64), colour)) for colour in [(0, 160, 0), (0, 0, 200)]]
    picture = draw_montage([ResultRow(Tile(solid((64, 64)), "q.jpg"), greens)], side=64)
    red, green, blue = (colour_box(picture, colour) for colour in [RED, (0, 160, 0), (0, 0, 200)])
    assert green[0] - red[2] > blue[0] - green[2]  # a wider gap
    middle = (red[1] + red[3]) // 2
    assert picture.getpixel((red[0] - 1, middle)) != picture.getpixel((green[0] - 1, middle))  # on another background


def test_montage_grows_by_rows_and_longest_row() -> None:
    one = draw_montage([row(match())], side=64)
    longer = draw_montage([row(match(), match(), match())], side=64)
    taller = draw_montage([row(match()), row()], side=64)
    assert longer.height == one.height and longer.width > one.width + 2 * 64
    assert taller.width == one.width and taller.height > one.height + 64


def test_montage_enlarges_at_most_twice() -> None:
    box = colour_box(draw_montage([ResultRow(Tile(solid((20, 10)), "q.jpg"), [])], side=160), RED)
    assert (box[2] - box[0], box[3] - box[1]) == (40, 20)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (0, 5), (6000, 4000)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    rows = [ResultRow(Tile(Image.new("RGB", size), "q.jpg"), [])]
    assert draw_montage(rows).mode == "RGB"
    assert page(*rows)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes(mode: str) -> None:
    rows = [ResultRow(Tile(Image.new(mode, (8, 8)), "q.jpg"), [])]
    assert draw_montage(rows).mode == "RGB"
    assert page(*rows)


def test_given_pictures_stay_as_they_were() -> None:
    image = solid((500, 400))
    draw_montage([ResultRow(Tile(image, "q.jpg"), [])])
    assert image.size == (500, 400)


@pytest.mark.parametrize(
    "text", ["日本語", "שלום", "naïve\u0301", "👩\u200d🔬", "\udcff", "a\nb\x00", "", "w" * 100_000]
)
def test_montage_draws_any_text(text: str) -> None:
    draw_montage([ResultRow(Tile(None, text, label=text), [match(path=text, label=text)])], side=64)


def test_long_captions_stay_inside_their_tile() -> None:
    short, long = (draw_montage([row(match(label=label), match(label=None, path=""))]) for label in ["", "W" * 99])
    left = colour_box(short, GREEN)[0]
    tile = (left, 0, left + 160, short.height)
    assert short.crop(tile).tobytes() != long.crop(tile).tobytes()
    for image in (short, long):
        image.paste((0, 0, 0), tile)
    assert short.tobytes() == long.tobytes()


def test_montage_without_matches_images_or_rows() -> None:
    words = draw_montage([row()], side=100)
    assert words.width > 2 * 100  # room for "no match"
    assert draw_montage([ResultRow(Tile(None, "gone.jpg"), [match(path="b.jpg")])], side=100).height == words.height
    assert draw_montage([]).width > 2 * 160


def test_marked_part_is_bright_and_the_rest_dark() -> None:
    """The box is in pixels of the original, which is four times as large as what is shown."""
    image = Image.new("RGB", (100, 60), (200, 200, 200))
    marked = tiles.mark_part(image, (0, 120, 200, 120), (400, 240))
    assert marked.size == image.size
    assert marked.getpixel((25, 45)) == (200, 200, 200)
    assert marked.getpixel((75, 45)) == marked.getpixel((25, 15)) == (79, 79, 79)  # 0.4 of it
    assert marked.getpixel((0, 30)) == (255, 255, 255)
    assert image.getpixel((75, 45)) == (200, 200, 200)
    assert tiles.mark_part(image.convert("L"), (399, 239, 1, 1), (400, 240)).size == (100, 60)
