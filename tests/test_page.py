"""The web page in a real browser: Debian's Chromium, without a screen."""

import re
import shutil
import subprocess
import sys

import pytest

import simsearch

playwright = pytest.importorskip("playwright.sync_api", reason="the [test] extra is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_weights):
    from simsearch import sample

    folder = tmp_path_factory.mktemp("site")
    sample.write(folder / "drawn", 60)
    simsearch.build(folder / "drawn", folder / "index", model=str(tiny_weights)).close()
    command = [sys.executable, "-m", "simsearch", "serve", "-i", str(folder / "index"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = re.search(r"http://\S+", server.stderr.readline())
        assert found is not None
        yield found[0], sorted((folder / "drawn").rglob("*.jpg"))
        server.terminate()
        server.stderr.read()


@pytest.fixture(params=["desktop", "phone, dark"])
def page(request, site):
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        phone = request.param != "desktop"
        page = browser.new_page(
            viewport={"width": 390, "height": 800} if phone else {"width": 1280, "height": 800},
            color_scheme="dark" if phone else "light",
        )
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(site[0])
        yield page
        assert all(url.startswith((site[0], "blob:")) for url in asked)
        browser.close()


def test_search_click_crop_and_filter(page, site):
    status, results = page.locator("#status"), page.locator("#results button")
    page.set_input_files("#file", site[1][0])
    playwright.expect(results).to_have_count(12)
    playwright.expect(page.locator("#results img")).to_have_count(12)
    page.fill("#k", "3")
    page.press("#k", "Enter")
    playwright.expect(results).to_have_count(3)
    results.nth(1).focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#shown")).to_have_attribute("alt", re.compile(r"The query: .+\.jpg"))
    playwright.expect(results).to_have_count(3)
    page.locator("#shown").scroll_into_view_if_needed()
    box = page.locator("#shown").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 80, box["y"] + 70)
    page.mouse.up()
    playwright.expect(page.locator("#crop")).not_to_have_value("")
    playwright.expect(status).to_contain_text("3 matches")
    page.fill("#filter", "label=nothing")
    page.press("#filter", "Enter")
    playwright.expect(status).to_contain_text("No match")
    page.fill("#filter", "nonsense")
    page.press("#filter", "Enter")
    playwright.expect(status).to_contain_text("is not FIELD=VALUE")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#clear")
    playwright.expect(page.locator("#go")).to_be_disabled()


def test_accessible(page, site):
    from axe_playwright_python.sync_playwright import Axe

    assert Axe().run(page).response["violations"] == []
    page.set_input_files("#file", site[1][0])
    playwright.expect(page.locator("#results img")).to_have_count(12)
    assert Axe().run(page).response["violations"] == []
