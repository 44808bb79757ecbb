#!/usr/bin/env python3
"""How fluid the page of `simsearch map` is: frames per second in Chromium while zooming and while dragging.

    scripts/bench/map_page.py [--items 100000] [--thumbnails 2000] [--size 1280x900] [--page FILE]

The page has ITEMS points in 100 clusters drawn at random, or is the one given. The wheel is turned in and out at the
middle of the map, or the map dragged in a circle, once for each animation frame (requestAnimationFrame) for three
seconds, and the frames are counted. The CPU time
of the script per frame, by Chromium's own measure, says what a machine that does nothing else would reach.
Chromium draws without a screen and, without a graphics card, in software. Needs playwright and Debian's Chromium.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image

from simsearch.curation.map import representatives
from simsearch.reports.map import MapData, save_map
from simsearch.reports.thumbnail_sheets import make_sheets

MOVE = """kind => new Promise(done => {
  const canvas = document.getElementById("map-canvas"), box = canvas.getBoundingClientRect(), times = [], drawn = [];
  const x = box.left + box.width / 2, y = box.top + box.height / 2, start = performance.now();
  const pointer = (type, dx, dy) => canvas.dispatchEvent(new PointerEvent(type, {
    pointerId: 1, bubbles: true, clientX: x + dx, clientY: y + dy, isPrimary: true, pointerType: "mouse" }));
  canvas.setPointerCapture = () => {};
  if (kind === "drag") pointer("pointerdown", 0, 0);
  const step = now => {
    times.push(now);
    const elapsed = performance.now() - start, turn = elapsed / 500;
    if (elapsed > 3000) {
      if (kind === "drag") pointer("pointerup", 0, 0);
      const gaps = times.slice(1).map((time, at) => time - times[at]).sort((a, b) => a - b);
      return done({ frames: times.length, seconds: elapsed / 1000, worst: gaps[Math.floor(gaps.length * .95)] });
    }
    if (kind === "zoom") canvas.dispatchEvent(new WheelEvent("wheel", {
      deltaY: Math.sin(turn) > 0 ? -25 : 25, clientX: x, clientY: y, bubbles: true, cancelable: true }));
    else pointer("pointermove", 200 * Math.sin(turn), 150 * Math.cos(turn));
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


def synthetic_page(items: int, thumbnails: int, file: Path, seed: int = 0) -> int:
    """Writes a page of points in 100 clusters, with pictures of one colour; returns its size."""
    random = np.random.default_rng(seed)
    centres, kinds = random.normal(0, 40, (100, 2)), random.integers(0, 100, items)
    positions = (centres[kinds] + random.normal(0, 3, (items, 2))).astype(np.float32)
    pixels = random.integers(0, 255, (100, 3))

    def picture(place: int) -> Image.Image:
        return Image.new("RGB", (96, 64), tuple(pixels[kinds[place]].tolist()))

    sheets = make_sheets(representatives(positions, thumbnails).tolist(), picture)
    data = MapData(
        positions=positions,
        ids=np.arange(1, items + 1),
        clusters=kinds.astype(np.int32),
        cluster_names=[f"cluster {number}" for number in range(1, 101)],
        cluster_notes=[""] * 100,
        paths=[f"/pictures/{kinds[n]:02}/{n:06}.jpg" for n in range(items)],
        labels=[f"label {kind % 10}" for kind in kinds.tolist()],
        metadata=[{"year": 2000 + n % 25} for n in range(items)],
        neighbours=random.integers(0, items, (items, 8)),
        sheets=sheets,
    )
    return save_map(data, file, "Synthetic", {"points": f"{items:,}"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--thumbnails", type=int, default=2000)
    parser.add_argument("--size", default="1280x900")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of each state")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        page_file = options.page or Path(folder) / "map.html"
        if not options.page:
            synthetic_page(options.items, options.thumbnails, page_file)
        size = page_file.stat().st_size
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        width, height = map(int, options.size.split("x"))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: print("error:", error))
        cores = len(os.sched_getaffinity(0))
        print(f"Chromium {browser.version}, {width} x {height}, {platform.machine()}, {cores} cores")
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("#map-state", state="hidden", timeout=120_000)
        opened = page.evaluate("performance.now()")
        page.wait_for_timeout(1500)
        name = options.page or f"{options.items:,} points"
        print(f"{name}: {size / 1e6:.1f} MB, drawn {opened / 1000:.1f} s after opening")
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def script_seconds() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return next(each["value"] for each in metrics if each["name"] == "ScriptDuration")

        for kind in ("zoom", "drag"):
            before = script_seconds()
            got = page.evaluate(MOVE, kind)
            busy = 1000 * (script_seconds() - before) / got["frames"]
            rate = got["frames"] / got["seconds"]
            print(
                f"{kind}: {rate:5.1f} frames/s, 95 % of frames within {got['worst']:.0f} ms;"
                f" {busy:.1f} ms of CPU time in the script per frame"
            )
            if options.screenshots:
                options.screenshots.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=options.screenshots / f"{kind}.png")
        browser.close()


if __name__ == "__main__":
    main()
