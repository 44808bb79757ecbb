#!/usr/bin/env python3
"""Draws the README's picture of the web page: scripts/screenshot.py [FILE] [--states FOLDER]

FILE is docs/images/page.webp unless given. Draws the sample pictures, indexes them, serves them on this machine, and
photographs the page in Debian's Chromium after a search by a picture that is not among them.

--states writes a PNG of every state of the page instead, at a desk, on a phone and dark, to be looked at.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from in_venv import reexecute

    reexecute()

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

LARGEST = 200_000
"""Bytes."""

SIMSEARCH = [sys.executable, "-m", "simsearch"]
SCREENS = {
    "desk": {"viewport": {"width": 1320, "height": 860}},
    "dark": {"viewport": {"width": 1320, "height": 860}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 800},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    },
}
KEY = "sesame"


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Serves indexes; gives the URL."""
    command = [*SIMSEARCH, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            url = re.search(r"http://\S+", server.stderr.readline())
            threading.Thread(target=server.stderr.read).start()
            assert url is not None
            yield url[0]
        finally:
            server.terminate()


def settled(page: Page) -> None:
    """Waits until the pictures in sight are there."""
    expect(page.locator("#skeleton")).to_be_hidden()
    expect(page.locator("#results[aria-busy]")).to_have_count(0)
    page.wait_for_load_state("networkidle")
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)


def searched(page: Page, url: str, query: str) -> None:
    """Opens the page and searches by a picture."""
    page.goto(url)
    expect(page.locator(".item img.here").first).to_be_visible()
    page.set_input_files("#file", query)
    expect(page.locator(".matches .item img.here").first).to_be_visible()
    settled(page)


def photograph_states(browser: Browser, urls: dict[str, str], query: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for screen, settings in SCREENS.items():
        page = browser.new_context(**settings).new_page()  # type: ignore[arg-type]

        def shoot(name: str, page: Page = page, screen: str = screen) -> None:
            page.screenshot(path=folder / f"{screen}-{name}.png")

        page.goto(urls["all"])
        settled(page)
        shoot("browse")
        page.locator("#labels button").nth(1).click()
        page.click("#filter-button")
        settled(page)
        shoot("filters")
        page.route("**/v1/items?limit*", lambda route: None)
        page.goto(urls["all"])
        page.wait_for_timeout(600)
        shoot("loading")
        page.unroute("**/v1/items?limit*")
        searched(page, urls["all"], query)
        shoot("results")
        box = page.locator("#shown").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 10, box["y"] + 10)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=4)
        page.mouse.up()
        settled(page)
        shoot("crop")
        page.route("**/v1/search*", lambda route: route.abort())
        page.select_option("#min_similarity", index=1)
        expect(page.get_by_role("alert")).to_be_visible()
        settled(page)
        shoot("error")
        page.unroute("**/v1/search*")
        page.click("#again")
        settled(page)
        page.locator(".item a").first.click()
        page.wait_for_timeout(1200)
        shoot("view")
        for name in ("empty", "key"):
            page.goto(urls[name])
            page.wait_for_timeout(800)
            shoot(name)
        page.route("**/v1/indexes", lambda route: route.abort())
        page.goto(urls["all"])
        page.wait_for_timeout(500)
        shoot("gone")
        page.context.close()


def photograph(browser: Browser, url: str, query: str) -> Image.Image:
    page = browser.new_page(viewport={"width": 1320, "height": 900})
    searched(page, url, query)
    return Image.open(io.BytesIO(page.screenshot()))


def main() -> None:
    given = sys.argv[1:]
    states = Path(given.pop(given.index("--states") + 1)) if "--states" in given else None
    files = [name for name in given if name != "--states"]
    target = Path(files[0]) if files else Path(__file__).parents[1] / "docs" / "images" / "page.webp"
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("error: chromium is not installed\nhint: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        drawn, index, empty = f"{folder}/drawn", f"{folder}/index", f"{folder}/empty"
        few = ["-n", "150"] if states else []
        subprocess.run([*SIMSEARCH, "sample", drawn, *few], check=True)
        subprocess.run([*SIMSEARCH, "sample", f"{folder}/others", "-n", "60", "--seed", "4"], check=True)
        subprocess.run([*SIMSEARCH, "build", drawn, "-i", index], check=True)
        query = f"{folder}/others/cat/cat-000.jpg"
        url = stack.enter_context(served("-i", f"drawn={index}"))
        play = stack.enter_context(sync_playwright())
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if states is not None:
            shutil.copytree(index, empty)
            subprocess.run([*SIMSEARCH, "remove", "*", "--yes", "-i", empty], check=True)
            urls = {
                "all": url,
                "empty": stack.enter_context(served("-i", empty)),
                "key": stack.enter_context(served("-i", index, "--api-key", KEY)),
            }
            photograph_states(browser, urls, query, states)
            return
        picture = photograph(browser, url, query)
    for quality in range(90, 10, -5):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() < LARGEST // 2 or quality < 60:
            break
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(buffer.getvalue())
    print(f"{target}: {len(buffer.getvalue()):,} bytes, quality {quality}")


if __name__ == "__main__":
    main()
