from __future__ import annotations

import base64
import io
import os
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simsearch import report
from simsearch.errors import UsageError
from simsearch.report import Picture, Row

NASTY = "<script>alert(1)</script>\"'"
RED, GREEN = (255, 0, 0), (0, 160, 0)


def solid(size: tuple[int, int] = (320, 240), colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", size, colour)


def match(path: str = "a/match.jpg", image: Image.Image | None = None, label: str | None = "cat") -> Picture:
    return Picture(image or solid(colour=GREEN), path, label=label, id=7, distance=31.23456, similarity=0.625)


def row(*matches: Picture, path: str = "a/query.jpg") -> Row:
    return Row(Picture(solid(), path), matches)


def page(*rows: Row, title: str = "Similar images", facts: dict[str, str] | None = None) -> str:
    return report.html(rows, title, facts or {})


class Outline(HTMLParser):
    """The start tags of a page with their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def colour_box(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The bounding box (left, top, right, bottom) of all pixels of exactly this colour."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


# montage


def test_montage_puts_the_query_first_and_keeps_aspect_ratios() -> None:
    picture = report.montage([row(match(image=solid((100, 200), GREEN)))], side=120)
    red, green = colour_box(picture, RED), colour_box(picture, GREEN)
    assert (red[2] - red[0], red[3] - red[1]) == (120, 90)
    assert (green[2] - green[0], green[3] - green[1]) == (60, 120)
    assert red[2] < green[0]
    assert (red[1] + red[3]) // 2 == (green[1] + green[3]) // 2  # both centred in their tiles


def test_montage_sets_the_query_apart() -> None:
    greens = [match(image=solid((64, 64), colour)) for colour in [(0, 160, 0), (0, 0, 200)]]
    picture = report.montage([Row(Picture(solid((64, 64)), "q.jpg"), greens)], side=64)
    red, green, blue = (colour_box(picture, colour) for colour in [RED, (0, 160, 0), (0, 0, 200)])
    assert green[0] - red[2] > blue[0] - green[2]  # a wider gap
    middle = (red[1] + red[3]) // 2
    assert picture.getpixel((red[0] - 1, middle)) != picture.getpixel((green[0] - 1, middle))  # on another background


def test_montage_grows_by_rows_and_by_the_longest_row() -> None:
    one = report.montage([row(match())], side=64)
    longer = report.montage([row(match(), match(), match())], side=64)
    taller = report.montage([row(match()), row()], side=64)
    assert longer.height == one.height and longer.width > one.width + 2 * 64
    assert taller.width == one.width and taller.height > one.height + 64


def test_montage_enlarges_small_images_to_at_most_twice_their_size() -> None:
    box = colour_box(report.montage([Row(Picture(solid((20, 10)), "q.jpg"), [])], side=160), RED)
    assert (box[2] - box[0], box[3] - box[1]) == (40, 20)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (0, 5), (6000, 4000)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    rows = [Row(Picture(Image.new("RGB", size), "q.jpg"), [])]
    assert report.montage(rows).mode == "RGB"
    assert page(*rows)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes(mode: str) -> None:
    rows = [Row(Picture(Image.new(mode, (8, 8)), "q.jpg"), [])]
    assert report.montage(rows).mode == "RGB"
    assert page(*rows)


def test_the_pictures_given_are_left_as_they_were() -> None:
    image = solid((500, 400))
    report.montage([Row(Picture(image, "q.jpg"), [])])
    assert image.size == (500, 400)


@pytest.mark.parametrize(
    "text", ["日本語", "שלום", "naïve\u0301", "👩\u200d🔬", "\udcff", "a\nb\x00", "", "w" * 100_000]
)
def test_montage_draws_any_text(text: str) -> None:
    report.montage([Row(Picture(None, text, label=text), [match(path=text, label=text)])], side=64)


def test_long_captions_stay_inside_their_tile() -> None:
    short, long = (report.montage([row(match(label=label), match(label=None, path=""))]) for label in ["", "W" * 99])
    left = colour_box(short, GREEN)[0]
    tile = (left, 0, left + 160, short.height)
    assert short.crop(tile).tobytes() != long.crop(tile).tobytes()
    for image in (short, long):
        image.paste((0, 0, 0), tile)
    assert short.tobytes() == long.tobytes()


def test_montage_without_matches_or_images_or_rows() -> None:
    words = report.montage([row()], side=100)
    assert words.width > 2 * 100  # room for "no match"
    assert report.montage([Row(Picture(None, "gone.jpg"), [match(path="b.jpg")])], side=100).height == words.height
    assert report.montage([]).width > 2 * 160


# html


def test_html_shows_everything_known_of_a_match() -> None:
    text = Outline(page(row(match("pets/tom.jpg")), facts={"model": "alexnet"})).text
    for expected in ["31.23", "62.5%", "cat", "pets/tom.jpg", "id 7", "1", "query", "model", "alexnet"]:
        assert expected in text


@pytest.mark.parametrize(
    ("distance", "shown"),
    [(0.0, "0"), (1e-6, "0"), (0.123456, "0.1235"), (85.0, "85"), (1234.4, "1234"), (float("inf"), "inf")],
)
def test_distances_have_four_significant_digits(distance: float, shown: str) -> None:
    assert f"</small> {shown}</span>" in page(row(Picture(None, "m.jpg", distance=distance)))


def test_html_ranks_in_order() -> None:
    text = Outline(page(row(*(match(f"{name}.jpg") for name in "abc")))).text
    assert [text.index(f"{name}.jpg") for name in "abc"] == sorted(text.index(f"{name}.jpg") for name in "abc")
    assert re.findall(r'"badge">(\w+)<', page(row(match(), match()))) == ["query", "1", "2"]


def test_html_escapes_every_string() -> None:
    rows = [Row(Picture(None, NASTY, label=NASTY), [match(NASTY, label=NASTY)])]
    source = page(*rows, title=NASTY, facts={NASTY: NASTY})
    outline = Outline(source)
    assert "script" not in {tag for tag, _ in outline.tags}
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    assert "<script" not in source
    assert escape(NASTY) in source and NASTY in outline.text
    assert [image["alt"] for image in outline.attributes("img")] == [f"Match 1: {NASTY}, {NASTY}"]


def test_html_needs_nothing_but_itself() -> None:
    source = page(row(match("http://example.com/a.jpg")), path := row(path="https://example.com/q.jpg"))
    outline = Outline(source)
    links = [value or "" for _, a in outline.tags for key, value in a.items() if key in {"src", "href", "srcset"}]
    assert len(links) == 3 and all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "url(" not in source and "@import" not in source
    policy = [meta["content"] for meta in outline.attributes("meta") if "http-equiv" in meta]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert path.query.path in outline.text


def test_html_is_semantic_and_adapts() -> None:
    source = page(row(match(), match()), row())
    counts = {tag: len(Outline(source).attributes(tag)) for tag in ["main", "section", "figure", "figcaption", "img"]}
    assert counts == {"main": 1, "section": 2, "figure": 4, "figcaption": 4, "img": 4}
    assert all(image["alt"] for image in Outline(source).attributes("img"))
    assert "prefers-color-scheme: dark" in source and 'name="viewport"' in source
    assert Outline(source).text.count("no match") == 1


def test_html_thumbnails_fit_the_side() -> None:
    source = report.html([row()], "t", {}, side=100)
    (image,) = Outline(source).attributes("img")
    data = base64.b64decode((image["src"] or "").partition(",")[2])
    assert (image["width"], image["height"]) == ("100", "75")
    assert Image.open(io.BytesIO(data)).size == (100, 75)


def test_html_of_a_missing_image_and_of_no_rows() -> None:
    source = page(Row(Picture(None, "gone.jpg"), []))
    assert "not available" in Outline(source).text and not Outline(source).attributes("img")
    assert "no queries" in Outline(page()).text


def test_html_has_a_table_where_there_is_one() -> None:
    page = report.html([], "Title", {}, table=[("class", "P@1"), ("<cats>", "0.5"), ("dogs", "1.0")])
    assert '<th scope="col">class</th><th scope="col">P@1</th>' in page
    assert '<th scope="row" dir="auto">&lt;cats&gt;</th><td>0.5</td>' in page
    assert "<table" not in report.html([], "Title", {})


def test_html_of_unusual_names() -> None:
    name = os.fsdecode(b"caf\xe9\n\x00.jpg") + "\u202egpj"
    source = page(row(match(name, label=name), path=name), title=name, facts={name: name})
    assert source.encode("utf-8")
    assert r"caf\udce9\n\x00.jpg\u202egpj" in source
    assert "日本語 👩\u200d🔬" in page(row(match(label="日本語 👩\u200d🔬")))


@pytest.mark.parametrize(("similarity", "shown"), [(-0.5, "0.0%"), (1.0000001, "100.0%"), (0.5, "50.0%")])
def test_the_bar_stays_within_its_bounds(similarity: float, shown: str) -> None:
    assert f"width: {shown}" in page(row(Picture(None, "m.jpg", similarity=similarity)))


# files


@pytest.mark.parametrize(
    ("name", "kind"), [("m.png", "PNG"), ("m.JPG", "JPEG"), ("m.jpeg", "JPEG"), ("m.webp", "WEBP")]
)
def test_save_montage_by_extension(tmp_path: Path, name: str, kind: str) -> None:
    report.save_montage([row(match())], tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, report.montage([row(match())]).size)


@pytest.mark.parametrize("name", ["m.bmp", "m", "m.png.txt"])
def test_an_unknown_extension_is_refused_before_any_work(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "montage", lambda rows: pytest.fail("work was done"))
    with pytest.raises(UsageError, match=re.escape(repr(Path(name).suffix))) as caught:
        report.save_montage([row()], tmp_path / name)
    assert caught.value.hint == "known extensions: .png, .jpg, .jpeg, .webp"
    assert not list(tmp_path.iterdir())


def test_a_montage_too_large_for_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(report.FORMATS, ".webp", ("WEBP", 100))
    with pytest.raises(UsageError, match="limit of 100"):
        report.save_montage([row()], tmp_path / "m.webp")


def test_save_html(tmp_path: Path) -> None:
    report.save_html([row(match("日本/\udcff.jpg"))], tmp_path / "r.html", "title", {"items": "1"})
    assert (tmp_path / "r.html").read_text("utf-8") == report.html(
        [row(match("日本/\udcff.jpg"))], "title", {"items": "1"}
    )


def test_writing_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in [b"old", b"new"]:
        report.write_atomically(path, data)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        assert [file.name[0] for file in tmp_path.iterdir() if file != path] == ["."]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(UsageError, match="No space left on device") as caught:
        report.write_atomically(path, b"new")
    assert str(path) in str(caught.value) and isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(UsageError, match=re.escape(str(path))) as caught:
        report.write_atomically(path, b"")
    assert caught.value.hint == f"create the folder {path.parent} first"


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in [tmp_path, fifo]:
        with pytest.raises(UsageError, match="not a regular file"):
            report.write_atomically(path, b"")
    with pytest.raises(UsageError, match="Not a directory"):
        report.write_atomically(_file(tmp_path / "plain") / "file", b"")
    with pytest.raises(UsageError, match="name too long"):
        report.write_atomically(tmp_path / ("x" * 300), b"")


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(_file(tmp_path / "target"))
    report.write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def _file(path: Path) -> Path:
    path.write_bytes(b"old")
    return path
