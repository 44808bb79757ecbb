"""HTML reports."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image

from simsearch.common.links import item_link
from simsearch.errors import UsageError
from simsearch.reports.html import render_html
from simsearch.reports.tiles import ResultRow, Tile
from tests.helpers.reports import match, page, row, solid

NASTY = "<script>alert(1)</script>\"'"


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


# html


def test_html_shows_everything_known_of_a_match() -> None:
    text = Outline(page(row(match("pets/tom.jpg")), facts={"model": "alexnet"})).text
    for expected in ["31.23", "close", "cat", "pets/tom.jpg", "id 7", "1", "query", "model", "alexnet"]:
        assert expected in text


def test_html_draws_a_group_alike() -> None:
    equals = [Tile(None, f"{name}.jpg", details="640 × 480, 12 KiB") for name in "abc"]
    source = render_html([ResultRow(equals[0], equals[1:])], "Near-identical", {}, groups=True)
    outline = Outline(source)
    assert "query" not in outline.text.lower().partition("group 1: 3 pictures")[2]
    assert [outline.text.count(word) for word in ("640 × 480, 12 KiB", "a.jpg", "b.jpg", "c.jpg")] == [3, 1, 1, 1]
    assert len(outline.attributes("figure")) == 3
    assert not [each for each in outline.attributes("div") if each.get("class") == "query"]


def test_html_links_to_files(tmp_path: Path) -> None:
    file = tmp_path / "a b#<1>.png"
    solid().save(file)
    outline = Outline(page(row(match(str(file)), match("archive.zip!/x.png"))))
    assert [link["href"] for link in outline.attributes("a")] == [file.as_uri()]


@pytest.mark.parametrize(
    ("distance", "shown"),
    [(0.0, "0"), (1e-6, "0"), (0.123456, "0.1235"), (85.0, "85"), (1234.4, "1234"), (float("inf"), "inf")],
)
def test_distances_have_four_significant_digits(distance: float, shown: str) -> None:
    assert f"</small> {shown}</span>" in page(row(Tile(None, "m.jpg", distance=distance)))


def test_html_ranks_in_order() -> None:
    text = Outline(page(row(*(match(f"{name}.jpg") for name in "abc")))).text
    assert [text.index(f"{name}.jpg") for name in "abc"] == sorted(text.index(f"{name}.jpg") for name in "abc")
    assert re.findall(r'"badge">(\w+)<', page(row(match(), match()))) == ["query", "1", "2"]


def test_html_escapes_every_string() -> None:
    rows = [ResultRow(Tile(None, NASTY, label=NASTY), [match(NASTY, label=NASTY)])]
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
    source = render_html([row()], "t", {}, side=100)
    (image,) = Outline(source).attributes("img")
    data = base64.b64decode((image["src"] or "").partition(",")[2])
    assert (image["width"], image["height"]) == ("100", "75")
    assert Image.open(io.BytesIO(data)).size == (100, 75)


def test_html_of_a_missing_image_and_of_no_rows() -> None:
    source = page(ResultRow(Tile(None, "gone.jpg"), []))
    assert "not available" in Outline(source).text and not Outline(source).attributes("img")
    assert "no queries" in Outline(page()).text


def test_html_has_a_table_where_there_is_one() -> None:
    page = render_html([], "Title", {}, tables=[("By class", [("class", "P@1"), ("<cats>", "0.5"), ("dogs", "1.0")])])
    assert '<th scope="col">class</th><th scope="col">P@1</th>' in page
    assert '<th scope="row" dir="auto">&lt;cats&gt;</th><td>0.5</td>' in page
    assert "<table" not in render_html([], "Title", {})


def test_html_links_to_a_service_and_has_charts() -> None:
    tile = Tile(solid(), "a/b.jpg", id=7, link=item_link("https://photos.example/similar/?index=holiday", 7))
    chart = Image.new("RGB", (400, 200), "white")
    outline = Outline(render_html([ResultRow(Tile(None, "q.jpg"), [tile])], "t", {}, charts={"a curve": chart}))
    (link,) = outline.attributes("a")
    assert link["href"] == "https://photos.example/similar/v1/items/7/image?index=holiday"
    (drawn,) = [image for image in outline.attributes("img") if image.get("class") == "chart"]
    assert (drawn["alt"], drawn["width"]) == ("a curve", "200")
    assert str(drawn["src"]).startswith("data:image/png;base64,")


def test_html_says_a_common_folder_once() -> None:
    paths = ["/photos/2024/pets/tom.jpg", "/photos/2024/zoo/lion.jpg", "/photos/2024/zoo.zip!/ape.jpg"]
    source = page(ResultRow(Tile(None, "/elsewhere/q.jpg"), [match(path) for path in paths]))
    text = Outline(source).text
    assert [text.count(word) for word in ("/photos/2024", "zoo/lion.jpg", "/elsewhere/q.jpg")] == [1, 1, 1]
    assert "folder" not in Outline(page(ResultRow(Tile(None, "q"), [match(paths[0])]))).text
    mixed = page(ResultRow(Tile(None, "q"), [match(paths[0]), match("/other/b.jpg"), match("https://c/d.jpg")]))
    assert paths[0] in Outline(mixed).text


@pytest.mark.parametrize(
    "service", ["photos.example:8000", "javascript:alert(1)", "", "http://", "http://[", "ftp://a/"]
)
def test_links_to_no_service_are_refused(service: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a service"):
        item_link(service, 7)


def test_html_of_unusual_names() -> None:
    name = os.fsdecode(b"caf\xe9\n\x00.jpg") + "\u202egpj"
    source = page(row(match(name, label=name), path=name), title=name, facts={name: name})
    assert source.encode("utf-8")
    assert r"caf\xe9\n\x00.jpg\u202egpj" in source
    assert "日本語 👩\u200d🔬" in page(row(match(label="日本語 👩\u200d🔬")))


@pytest.mark.parametrize(("similarity", "shown"), [(-0.5, "0.0%"), (1.0000001, "100.0%"), (0.5, "50.0%")])
def test_the_bar_stays_within_its_bounds(similarity: float, shown: str) -> None:
    assert f"width: {shown}" in page(row(Tile(None, "m.jpg", similarity=similarity)))
