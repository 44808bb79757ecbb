#!/usr/bin/env python3
"""Draws the README's picture of the web page: scripts/screenshot.py [FILE]

FILE is docs/images/page.webp unless given. Draws the sample pictures, indexes them, serves them on this machine, and
photographs the page in Debian's Chromium after a search by a picture that is not among them, one "like this" and one
"not this".
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from in_venv import reexecute

    reexecute()

from PIL import Image
from playwright.sync_api import Playwright, expect, sync_playwright

LARGEST = 200_000
"""Bytes."""


def photograph(server: subprocess.Popen[str], play: Playwright, chromium: str, query: str) -> Image.Image:
    assert server.stderr is not None
    url = re.search(r"http://\S+", server.stderr.readline())[0]  # type: ignore[index]
    threading.Thread(target=server.stderr.read).start()
    browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1320, "height": 900})
    page.goto(url)
    page.set_input_files("#file", query)
    for vote in ("[aria-label^=More][aria-label*=sailboat]", "[aria-label^=Less]:not([aria-label*=sailboat])"):
        expect(page.locator("#results .rank")).to_have_count(12)
        expect(page.locator("#results[aria-busy]")).to_have_count(0)
        page.locator(vote).nth(1).click()
    expect(page.locator("#liked img")).to_have_count(2)
    expect(page.locator("#results img")).to_have_count(12)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot()))
    browser.close()
    return picture


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images" / "page.webp"
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("error: chromium is not installed\nhint: apt-get install chromium")
    simsearch = [sys.executable, "-m", "simsearch"]
    with tempfile.TemporaryDirectory() as folder:
        drawn, index = f"{folder}/drawn", f"{folder}/index"
        subprocess.run([*simsearch, "sample", drawn], check=True)
        subprocess.run([*simsearch, "sample", f"{folder}/others", "-n", "60", "--seed", "4"], check=True)
        subprocess.run([*simsearch, "build", drawn, "-i", index], check=True)
        command = [*simsearch, "serve", "-i", f"drawn={index}", "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as play:
            try:
                picture = photograph(server, play, chromium, f"{folder}/others/sailboat/sailboat-000.jpg")
            finally:
                server.terminate()
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
