"""The page of a map: its data, and its use in a real browser, Debian's Chromium, on a desk and on a phone."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import re
import shutil
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsearch.reports.map import MapData, pack, render_map, save_map
from simsearch.reports.map_columns import NONE, categories, common_folder, numbers
from simsearch.reports.thumbnail_sheets import COLUMNS, SIDE, make_sheets

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202egpj\n"
SIDES = 20


def lattice(pictured: int = 30, **changes: Any) -> MapData:
    """400 items on a lattice in four quarters, which are the clusters; the labels are its rows."""
    at = np.arange(SIDES**2)
    x, y = at % SIDES, at // SIDES
    drawn = make_sheets(range(pictured), lambda place: Image.new("RGB", (120, 80), (place, 99, 200)))
    data = MapData(
        positions=np.stack([x, y], 1).astype(np.float32),
        ids=at + 1,
        clusters=(x // 10 + 2 * (y // 10)).astype(np.int32),
        cluster_names=["north-west", "north-east", "south-west", "south-east"],
        cluster_notes=["83% of the labels", "", "", ""],
        paths=[f"/photos/row {row:02}/{n:03}.jpg" for n, row in zip(at.tolist(), y.tolist(), strict=True)],
        labels=[f"row {row}" if row else None for row in y.tolist()],
        metadata=[{"weight": 0.5 * n, "place": f"Ort {n % 3}", "name": f"unique {n}" * 2} for n in at.tolist()],
        neighbours=np.stack([(at + 1) % SIDES**2, (at + 2) % SIDES**2, np.full(SIDES**2, -1)], 1),
        sheets=drawn,
    )
    return dataclasses.replace(data, **changes)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    raw = gzip.decompress(data)
    (length,) = struct.unpack_from("<I", raw)
    head = json.loads(raw[8 : 8 + length])
    assert (8 + length) % 8 == 0
    return head, {
        name: np.frombuffer(raw, f"<{kind}", count, 8 + length + offset)
        for name, (kind, offset, count) in head["arrays"].items()
    }


def test_data_is_compact_and_whole() -> None:
    data = lattice()
    head, arrays = unpack(pack(data))
    assert (head["items"], head["near"], head["folder"]) == (400, 3, "/photos/")
    np.testing.assert_array_equal(arrays["positions"].reshape(-1, 2), data.positions)
    np.testing.assert_array_equal(arrays["ids"], data.ids)
    assert arrays["neighbours"].reshape(-1, 3)[399].tolist() == [0, 1, 0xFFFFFFFF]
    assert bytes(arrays["paths"]).decode().split("\n")[21] == "row 01/021.jpg"
    fields = {field["name"]: field for field in head["fields"]}
    assert list(fields) == ["cluster", "label", "weight", "place"]
    assert fields["label"]["names"][0] == "row 1" and (arrays["field 1"][:20] == NONE).all()
    assert fields["weight"]["kind"] == "number" and arrays["field 2"][5] == 2.5
    assert pack(data) == pack(data)
    assert len(pack(data)) < 12_000


def test_odd_names_and_values() -> None:
    paths = ["/a/x\udcff.jpg", "/a/b/\n.jpg", *[f"/a/{n}" for n in range(398)]]
    metadata: list[dict[str, Any]] = [{"v": value} for value in [True, 1, "x", None, 2**70, float("inf"), [1]]]
    head, arrays = unpack(pack(lattice(paths=paths, metadata=metadata + [{}] * 393)))
    shown = bytes(arrays["paths"]).decode().split("\n")
    assert len(shown) == 400 and shown[:2] == [r"x\xff.jpg", r"b/\n.jpg"]
    assert next(field for field in head["fields"] if field["name"] == "v")["kind"] == "category"
    assert common_folder(["/a/b/c", "/a/bc"]) == "/a/" and common_folder(["/x", "y"]) == "" == common_folder(["/a/b"])


def test_fields_to_colour_by() -> None:
    assert numbers([1, 2, 3]) is None and numbers(["a"] * 20) is None
    found = numbers([*range(20), None, 1e300])
    assert found is not None and np.isnan(found.values[20:]).all()
    kinds = categories(["b", "a", "a", None], 5)
    assert kinds is not None and kinds.names == ["a", "b"] and kinds.codes.tolist() == [1, 0, 0, NONE]
    assert categories([None], 5) is None and categories(list("abcdef"), 5) is None


def test_sheets_of_pictures() -> None:
    gone = {3, 5}
    seen: list[tuple[int, int]] = []
    sheets = make_sheets(
        range(COLUMNS**2 + 5),
        lambda place: None if place in gone else Image.new("RGB", (50 + place % 100, 200)),
        lambda done, total: seen.append((done, total)),
    )
    assert len(sheets.images) == 2 and len(sheets.places) == COLUMNS**2 + 3 and seen[-1] == (405, 405)
    assert not gone & set(sheets.places.tolist()) and sheets.sizes.max() == SIDE
    with Image.open(__import__("io").BytesIO(sheets.images[1])) as last:
        assert last.size == (COLUMNS * SIDE, SIDE)


def test_page_runs_its_own_script_only() -> None:
    page = render_map(lattice(cluster_names=[NASTY] * 4, labels=[NASTY] * 400), NASTY, {NASTY: NASTY})
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1 and f"script-src &#39;sha256-{digest}&#39;" in page and "alert" not in scripts[0]
    assert page.count("<script") == 3 and "http://" not in page.replace("http://www.w3.org", "")
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", page)


# -- in the browser


playwright = pytest.importorskip("playwright.sync_api", reason="the [test] extra is not installed")
expect = playwright.expect
CHROMIUM = shutil.which("chromium")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser, file, phone=False):
    size = {"width": 390, "height": 800} if phone else {"width": 1280, "height": 900}
    context = browser.new_context(viewport=size, color_scheme="dark" if phone else "light", has_touch=phone)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.goto(file.as_uri())
    expect(page.locator("#map-state")).to_be_hidden()
    return page


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "map.html"
    save_map(lattice(), path, "Map of photos", {"index": "photos"})
    return path


@pytest.fixture
def page(request, browser, file):
    page = visit(browser, file, getattr(request, "param", "desk") != "desk")
    yield page
    assert page.complaints == []
    assert all(url.startswith((file.as_uri(), "blob:")) for url in page.asked)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.context.close()


both = pytest.mark.parametrize("page", ["desk", "phone, dark"], indirect=True)


def accessible(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


def spot(page, x, y):
    """The place of a lattice point on the screen, when everything is shown."""
    box = page.locator("#map-canvas").bounding_box()
    pad = min(48, box["width"] / 10, box["height"] / 10)
    k = min(box["width"] - 2 * pad, box["height"] - 2 * pad) / (SIDES - 1)
    middle = (SIDES - 1) / 2
    return box["x"] + box["width"] / 2 + (x - middle) * k, box["y"] + box["height"] / 2 + (y - middle) * k


def lasso(page, x0, y0, x1, y1):
    corners = [spot(page, *corner) for corner in [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in [*corners[1:], corners[0]]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()


def colour_at(page, x, y):
    return page.evaluate(
        "([x, y]) => { const c = document.getElementById('map-canvas'), b = c.getBoundingClientRect(), r = c.width / b.width;"
        " return [...c.getContext('2d').getImageData((x - b.left) * r, (y - b.top) * r, 1, 1).data].slice(0, 3); }",
        [x, y],
    )


@both
def test_page_is_accessible(page):
    accessible(page)
    if page.viewport_size["width"] < 500:
        page.click("#map-toggle")
    page.locator("#map-legend button").first.click()
    page.click("summary")
    expect(page.locator("#map-selected")).to_have_text("100 selected")
    accessible(page)
    page.locator("#map-canvas").focus()
    for key in ("n", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#map-card")).to_be_visible()
    accessible(page)


def test_points_are_drawn_in_the_colours_of_the_legend(page):
    dots = page.locator("#map-legend i").evaluate_all("dots => dots.map(dot => getComputedStyle(dot).backgroundColor)")
    assert len(set(dots)) == 4
    for dot, (x, y) in zip(dots, [(2, 2), (17, 2), (2, 17), (17, 17)], strict=True):
        expected = [int(value) for value in re.findall(r"\d+", dot)]
        assert np.abs(np.subtract(colour_at(page, *spot(page, x, y)), expected)).max() < 45
    page.select_option("#map-colour", "2")
    expect(page.locator("#map-ramp")).to_be_visible()
    expect(page.locator("#map-high")).to_have_text("199.5")
    low, high = colour_at(page, *spot(page, 2, 0)), colour_at(page, *spot(page, 17, 19))
    assert sum(high) > sum(low) + 100


def test_lasso_gives_paths(page):
    page.click("#map-lasso")
    expect(page.locator("#map-lasso")).to_have_attribute("aria-pressed", "true")
    lasso(page, -0.5, -0.5, 2.5, 1.5)
    expect(page.locator("#map-selected")).to_have_text("6 selected")
    expect(page.locator("#map-lasso")).to_have_attribute("aria-pressed", "false")
    expected = [f"/photos/row {row:02}/{20 * row + n:03}.jpg" for row in (0, 1) for n in range(3)]
    page.click("#map-copy")
    expect(page.locator("#map-copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").split() == " ".join(expected).split()
    with page.expect_download() as download:
        page.click("#map-save")
    assert download.value.path().read_text() == "\n".join(expected) + "\n"
    page.keyboard.down("Shift")
    lasso(page, 17.5, 17.5, 19.5, 19.5)
    page.keyboard.up("Shift")
    expect(page.locator("#map-selected")).to_have_text("4 selected")
    page.keyboard.press("Escape")
    expect(page.locator("#map-selection")).to_be_hidden()


def test_search(page):
    page.fill("#map-search", "ROW 07/")
    expect(page.locator("#map-selected")).to_have_text("20 selected")
    page.fill("#map-search", "north-west 005")
    expect(page.locator("#map-selected")).to_have_text("1 selected")
    page.press("#map-search", "Enter")
    page.fill("#map-search", "nothing like it")
    expect(page.locator("#map-selected")).to_have_text("0 selected")
    expect(page.locator("#map-copy")).to_be_disabled()
    page.fill("#map-search", "")
    expect(page.locator("#map-selection")).to_be_hidden()


def test_hover_click_and_nearest(page):
    page.mouse.move(*spot(page, 5, 0))
    expect(page.locator("#map-path")).to_have_text("row 00/005.jpg")
    expect(page.locator("#map-preview")).to_be_visible()
    expect(page.locator("#map-values")).to_contain_text("north-west")
    expect(page.locator("#map-nearest")).to_be_hidden()
    page.mouse.move(*spot(page, 9.5, 9.5))
    expect(page.locator("#map-card")).to_be_hidden()
    page.mouse.click(*spot(page, 18, 10))
    expect(page.locator("#map-path")).to_have_text("row 10/218.jpg")
    expect(page.locator("#map-preview")).to_be_hidden()
    expect(page.locator("#map-nearest button")).to_have_count(2)
    page.locator("#map-nearest button").first.click()
    expect(page.locator("#map-path")).to_have_text("row 10/219.jpg")
    page.click("#map-unpin")
    expect(page.locator("#map-card")).to_be_hidden()


def test_wheel_drag_and_keys(page):
    x, y = spot(page, 2, 0)
    page.mouse.move(x, y)
    for _ in range(6):
        page.mouse.wheel(0, -200)
    page.mouse.move(x + 1, y)
    expect(page.locator("#map-path")).to_have_text("row 00/002.jpg")  # zoomed about the pointer
    page.mouse.down()
    page.mouse.move(x + 160, y + 90, steps=5)
    page.mouse.up()
    page.mouse.move(x + 161, y + 90)
    expect(page.locator("#map-path")).to_have_text("row 00/002.jpg")
    page.locator("#map-canvas").focus()
    page.keyboard.press("0")
    page.mouse.move(*spot(page, 12, 12))
    expect(page.locator("#map-path")).to_have_text("row 12/252.jpg")
    page.keyboard.press("ArrowLeft")
    page.mouse.move(*[value + add for value, add in zip(spot(page, 12, 12), (61, 0), strict=True)])
    expect(page.locator("#map-path")).to_have_text("row 12/252.jpg")


def test_pictures_are_drawn_in_place_of_points(page):
    expect(page.locator("#map-canvas")).to_be_visible()
    x, y = spot(page, 0, 0)
    page.select_option("#map-pictures", "always")
    page.wait_for_timeout(300)
    assert np.abs(np.subtract(colour_at(page, x + 9, y + 4), [0, 99, 200])).max() < 25
    page.select_option("#map-pictures", "never")
    page.wait_for_timeout(100)
    assert np.abs(np.subtract(colour_at(page, x + 9, y + 4), [0, 99, 200])).max() > 50


def test_phone(browser, file):
    page = visit(browser, file, phone=True)
    expect(page.locator("#map-panel")).to_be_hidden()
    page.touchscreen.tap(*spot(page, 4, 19))
    expect(page.locator("#map-path")).to_have_text("row 19/384.jpg")
    page.click("#map-unpin")
    page.click("#map-toggle")
    expect(page.locator("#map-panel")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []
    page.context.close()


@in_browser
def test_hostile_names_stay_text(browser, tmp_path):
    file = tmp_path / "map.html"
    data = lattice(cluster_names=[f"{NASTY}{n}" for n in range(4)], labels=[NASTY] * 400, paths=[NASTY] * 400)
    save_map(dataclasses.replace(data, metadata=[{NASTY: NASTY}] * 400), file, NASTY, {NASTY: NASTY})
    page = visit(browser, file)
    page.mouse.click(*spot(page, 5, 5))
    expect(page.locator("#map-path")).to_contain_text("<img src=x onerror=alert(2)>")
    expect(page.locator("#map-legend button").first).to_contain_text("</script>")
    assert page.locator("img").count() == 0 and page.complaints == []
    page.context.close()


def test_many_points_and_few(browser, tmp_path):
    """A map of one spot, and one of 30,000 points, open and can be used."""
    one = lattice(0, positions=np.zeros((400, 2), np.float32))
    random = np.random.default_rng(0)
    n = 30_000
    many = MapData(
        random.normal(0, 30, (n, 2)).astype(np.float32),
        np.arange(n),
        np.zeros(n, np.int32),
        ["all"],
        [""],
        [f"/p/{i}.jpg" for i in range(n)],
        [None] * n,
        [{}] * n,
        np.zeros((n, 0), np.int64),
    )
    for data in (one, many):
        save_map(data, tmp_path / "map.html", "t", {})
        page = visit(browser, tmp_path / "map.html")
        page.locator("#map-canvas").focus()
        for key in ("+", "n", "Enter", "0"):
            page.keyboard.press(key)
        page.locator("#map-legend button").first.click()
        expect(page.locator("#map-selected")).to_contain_text("selected")
        expect(page.locator("#map-picturesfield")).to_be_hidden()
        assert page.complaints == []
        page.context.close()
