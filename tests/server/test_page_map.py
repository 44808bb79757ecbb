"""The map in the web page, in a real browser: looked at, searched, selected, reloaded."""

import contextlib
import re

import pytest

import simsearch
from simsearch.curation import layout
from tests.helpers.live import serving
from tests.helpers.pictures import draw
from tests.server.test_maps import drawn, store, without_extra  # noqa: F401
from tests.server.test_page import CHROMIUM, accessible, playwright, visit, wait_until

expect = playwright.expect
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture
def open_page(browser, engine):
    """Opens the page of a service; by default with a stored map: 24 pictures from the left top to the right."""
    with contextlib.ExitStack() as stack:

        def open_(address="?map=1", phone=False, stored=True, **options):
            if stored:
                store(engine)
            port = stack.enter_context(serving(simsearch.create_app(engine, **options)))
            page = visit(browser, f"http://127.0.0.1:{port}/{address}", phone)
            stack.callback(page.close)
            stack.callback(lambda: check(page, port))
            return page

        def check(page, port):
            assert page.complaints == []
            assert all(url.startswith((f"http://127.0.0.1:{port}", "blob:", "data:")) for url in page.asked)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        yield open_


def opened(page, count=24):
    expect(page.locator("#map-canvas")).to_be_visible(timeout=20_000)
    expect(page.locator("#map-canvas")).to_have_attribute("aria-label", f"Map of {count} pictures")
    expect(page.locator("#status")).to_contain_text(f"{count} pictures")


def spot(page, n):
    """Where picture n, counted from 0, lies when everything is shown."""
    box = page.locator("#map-canvas").bounding_box()
    pad = min(48, box["width"] / 10, box["height"] / 10)
    k = min((box["width"] - 2 * pad) / 23, (box["height"] - 2 * pad) / (23 / 3))
    return box["x"] + box["width"] / 2 + (n - 11.5) * k, box["y"] + box["height"] / 2 + (-n / 3 + 23 / 6) * k


def lasso(page, first, last):
    """Draws around some pictures."""
    (x0, y0), (x1, y1) = spot(page, first), spot(page, last)
    corners = [(x0 - 8, y0 + 8), (x1 + 8, y0 + 8), (x1 + 8, y1 - 8), (x0 - 8, y1 - 8)]
    page.click("#map-lasso")
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in [*corners[1:], corners[0]]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()


@pytest.mark.parametrize("phone", [False, True])
def test_view_is_accessible(open_page, phone):
    page = open_page("", phone)
    page.click("#to-map")
    opened(page)
    assert "map=1" in page.url
    expect(page).to_have_title("Map · simsearch")
    accessible(page)
    if phone:
        page.click("#map-toggle")
    page.locator("#map-legend button").first.click()
    expect(page.locator("#map-selected")).to_have_text("12 selected")
    accessible(page)
    page.click("#to-all")
    expect(page.locator(".item").first).to_be_visible()
    expect(page.locator("#map")).to_be_hidden()
    page.go_back()
    opened(page)


def test_hover_shows_and_a_click_opens(open_page, engine):
    page = open_page()
    opened(page)
    page.mouse.move(*spot(page, 5))
    expect(page.locator("#map-preview")).to_be_visible()
    expect(page.locator("#map-values")).to_contain_text("left")
    expect(page.locator("#map-path")).to_have_text("/".join(engine.paths([engine.item(6)])[0].split("/")[-2:]))
    page.mouse.click(*spot(page, 5))
    expect(page.locator("#view")).to_be_visible()
    assert "view=6" in page.url
    accessible(page)
    page.keyboard.press("Escape")
    expect(page.locator("#view")).to_be_hidden()
    opened(page)
    wait_until(page, "document.activeElement.id === 'map-canvas'")
    page.keyboard.press("n")
    expect(page.locator("#map-card")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#view")).to_be_visible()
    page.click("#from-here")
    expect(page.locator("#results.matches .item").first).to_be_visible()
    expect(page.locator("#map")).to_be_hidden()


def test_selection(open_page):
    page = open_page()
    opened(page)
    lasso(page, 3, 8)
    expect(page.locator("#map-selected")).to_have_text("6 selected")
    expect(page.locator("#map-paths li")).to_have_count(6)
    page.fill("#map-search", "/0")
    expect(page.locator("#map-selected")).to_have_text(re.compile("^[12] selected"))  # within the lasso
    page.fill("#map-search", "")
    expect(page.locator("#map-selected")).to_have_text("6 selected")
    with page.expect_download() as download:
        page.click("#map-save")
    assert len(download.value.path().read_text().splitlines()) == 6
    page.mouse.click(*spot(page, 4))
    expect(page.locator("#view")).to_be_visible()
    page.keyboard.press("ArrowRight")  # to the next one of the selection
    wait_until(page, "location.search.includes('view=6')")
    expect(page.locator("#next")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.locator("#view")).to_be_hidden()
    expect(page.locator("#map-selected")).to_have_text("6 selected")
    page.keyboard.press("Escape")
    expect(page.locator("#map-selection")).to_be_hidden()


def test_address_holds_all(open_page, browser):
    page = open_page()
    opened(page)
    lasso(page, 3, 8)
    page.select_option("#map-colour", label="label")
    page.click("#map-in")
    wait_until(page, "['lasso=', 'colour=label', 'at='].every(part => location.search.includes(part))")
    other = visit(browser, page.url)
    opened(other)
    expect(other.locator("#map-selected")).to_have_text("6 selected")
    expect(other.locator("#map-legendname")).to_have_text("label")
    look = "location.search.match(/at=([^&]*)/)[1]"
    assert other.evaluate(look) == page.evaluate(look)
    assert other.complaints == []
    other.close()
    page.keyboard.press("Escape")
    page.go_back()


def test_zooming_shows_pictures(open_page):
    page = open_page()
    opened(page)
    page.select_option("#map-pictures", "always")
    wait_until(page, "performance.getEntriesByType('resource').filter(e => e.name.includes('thumbnail')).length >= 5")
    box = page.locator("#map-canvas").bounding_box()
    page.mouse.move(*spot(page, 0))
    for _ in range(5):
        page.mouse.wheel(0, -200)
    page.mouse.move(spot(page, 0)[0] + 1, spot(page, 0)[1])
    expect(page.locator("#map-values")).to_contain_text("left")
    wait_until(page, "location.search.includes('at=')")
    page.locator("#map-canvas").focus()
    page.keyboard.press("0")
    wait_until(page, "!location.search.includes('at=')")
    assert box["height"] > 300


def test_a_map_that_is_outdated(open_page, engine, photos, without_extra):  # noqa: F811
    store(engine)
    draw(photos / "amber" / "new.png", 99)
    engine.add(photos / "amber" / "new.png")
    page = open_page(stored=False)
    opened(page)
    expect(page.locator("#outdated-text")).to_contain_text("1 picture is new")
    expect(page.locator("#outdated-command")).to_have_text("simsearch map -i default")
    expect(page.locator("#redraw")).to_be_hidden()
    accessible(page)


def test_drawing_it_again(open_page, engine, photos, drawn):  # noqa: F811
    store(engine)
    draw(photos / "amber" / "new.png", 99)
    engine.add(photos / "amber" / "new.png")
    page = open_page(stored=False)
    opened(page)
    page.click("#redraw")
    opened(page, 25)
    expect(page.locator("#outdated")).to_be_hidden()
    assert drawn == [1]


def test_no_map(open_page, without_extra):  # noqa: F811
    page = open_page(stored=False)
    expect(page.locator("#state")).to_contain_text("No map yet")
    expect(page.locator("#state")).to_contain_text("simsearch map -i")
    expect(page.locator("#state")).to_contain_text("pip install")
    accessible(page)
    page.click("#to-all")
    expect(page.locator(".item").first).to_be_visible()


def test_drawn_by_the_service(open_page):
    try:
        layout.check_installed()
    except ImportError:
        pytest.skip("the [map] extra is not installed")
    page = open_page(stored=False)
    opened(page)
    page.click("#map summary")
    expect(page.locator("#map-facts")).to_contain_text("t-SNE")


def test_a_key(open_page, engine):
    page = open_page(api_keys="secret")
    page.fill("#key", "secret")
    page.keyboard.press("Enter")
    opened(page)
    page.mouse.move(*spot(page, 5))
    expect(page.locator("#map-preview")).to_be_visible()
