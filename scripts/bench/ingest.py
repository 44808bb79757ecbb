#!/usr/bin/env python3
"""How fast a folder of images becomes an index, beside what the machine allows and what a tutorial does.

    scripts/bench/ingest.py SOURCE [--count 3000] [--enlarge 12] [--times 3] [--model NAME|FILE] [--device cpu]

SOURCE is a folder or a .zip. Its JPEGs are used as they are; with --count, more are made of them by mirroring and by
cutting off a seeded few pixels of each side, enlarged again to the same size and saved at the same quality, since an
image seen before would not be computed again. --enlarge MP makes photographs of MP megapixels of them; other formats
become JPEGs. Measured one after the other, --times rounds of all, each in a process of its own:

- tutorial: Pillow, torchvision's transforms and its AlexNet (eager, random weights, 224 pixels), one image at a time,
  into an IndexFlatL2;
- tutorial, batches: the same, 32 images at a time;
- decoding: what simsearch does up to the pixels that the network sees, and nothing else, on all cores;
- inference: the model on as many batches of pixels, and nothing else, on all cores;
- simsearch: `simsearch build`, the command as a whole, with its start.

The rate that decoding and inference allow together is 1 / (1 / decoding + 1 / inference): both need the same cores.
Imports and the loading of the model are left out of all but the last. CPU seconds are those of all threads; memory is
the peak of the process's resident set. Prints medians of the rounds, and medians of each round's ratios.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image, ImageOps

WAYS = ("tutorial", "tutorial, batches", "decoding", "inference", "simsearch")
QUALITY = 90
"""Of images whose own quality is not kept: enlarged ones, and those that were no JPEGs."""


# -- the images


def found(source: Path) -> Iterator[bytes]:
    """The files that Pillow can open, in order."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}:
                yield path.read_bytes()
        return
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")):
                yield archive.read(name)


def saved(image: Image.Image, like: Image.Image | None) -> bytes:
    """A JPEG with the quantisation tables and the sampling of another, where there is one."""
    out = io.BytesIO()
    if like is not None and like.format == "JPEG" and like.mode == "RGB":
        image.save(out, "JPEG", qtables=like.quantization, subsampling=getattr(like, "_subsampling", 2))
    else:
        image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def variant(image: Image.Image, seed: int) -> Image.Image:
    """The same picture at the same size, mirrored or not, each side cut by up to a twentieth."""
    random = np.random.default_rng(seed)
    width, height = image.size
    left, right = random.uniform(0, width / 20, 2)
    top, bottom = random.uniform(0, height / 20, 2)
    box = (left, top, width - right, height - bottom)
    cut = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(cut) if random.random() < 0.5 else cut


def write(folder: Path, source: Path, count: int | None, megapixels: float | None) -> None:
    """Fills the folder with the images to measure with."""
    files = list(found(source))
    if not files:
        raise SystemExit(f"{source}: no images")

    def one(number: int) -> None:
        data = files[number % len(files)]
        like = Image.open(io.BytesIO(data))
        if number >= len(files) or megapixels is not None or like.format != "JPEG":
            image = like.convert("RGB")
            if number >= len(files):
                image = variant(image, number)
            if megapixels is not None:
                scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
                size = (round(image.width * scale), round(image.height * scale))
                image = image.resize(size, Image.Resampling.BICUBIC)
            data = saved(image, like if megapixels is None else None)
        (folder / f"{number:06}.jpg").write_bytes(data)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, range(count or len(files))))


# -- the ways, each run in a process of its own by `measure`


def tutorial(folder: Path, model: str, device: str, batch: int = 1) -> Callable[[], None]:
    """The loop over files that tutorials show. It adds the vectors to a FAISS index and never searches them."""
    import faiss
    import torch
    from torchvision import models, transforms

    network = models.alexnet(weights=None)
    network.classifier = network.classifier[:-1]
    network.eval()
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def run() -> None:
        index = faiss.IndexFlatL2(4096)
        paths = sorted(folder.iterdir())
        for start in range(0, len(paths), batch):
            pictures = [prepare(Image.open(path).convert("RGB")) for path in paths[start : start + batch]]
            with torch.no_grad():
                index.add(network(torch.stack(pictures)).numpy())
        if index.ntotal != len(paths):
            raise SystemExit("not all images are in the index")

    return run


def decoding(folder: Path, model: str, device: str) -> Callable[[], None]:
    from simsearch.common import machine
    from simsearch.images.sources.base import read_file
    from simsearch.indexing import load
    from simsearch.models import load as models_load

    recipe = models_load.load_model(model, device).recipe

    def run() -> None:
        with ThreadPoolExecutor(machine.available_cores()) as pool:
            done = pool.map(
                lambda path: load.load_image(lambda: read_file(str(path)), recipe), sorted(folder.iterdir())
            )
            if not all(result.pixels is not None for result in done):
                raise SystemExit("not all images could be decoded")

    return run


def inference(folder: Path, model: str, device: str) -> Callable[[], None]:
    from simsearch.models import load as models_load

    count = len(list(folder.iterdir()))
    loaded = models_load.load_model(model, device, images=count, threads=True, precision="auto")
    side = loaded.recipe.crop
    pixels = np.random.default_rng(0).integers(0, 256, (32, side, side, 3), np.uint8)
    loaded.features(pixels)

    def run() -> None:
        with ThreadPoolExecutor(getattr(loaded, "lanes", 1)) as pool:
            sizes = [min(32, count - start) for start in range(0, count, 32)]
            list(pool.map(lambda size: loaded.features(pixels[:size]), sizes))

    return run


def measure(way: str, folder: Path, model: str, device: str) -> None:
    """Runs one way and prints its wall-clock and CPU seconds and its peak memory in bytes, as JSON."""
    makers = {
        "tutorial": tutorial,
        "tutorial, batches": functools.partial(tutorial, batch=32),
        "decoding": decoding,
        "inference": inference,
    }
    run = makers[way](folder, model, device)
    used, start = time.process_time(), time.perf_counter()
    run()
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"wall": wall, "cpu": time.process_time() - used, "peak": peak}))


def prepare(folder: Path, source: Path, count: int | None, megapixels: float | None, model: str, device: str) -> None:
    """Writes the images and has the weights decoded, and prints what was made, as JSON.

    In a process of its own: the peak memory of a process counts from that of the one which started it.
    """
    from simsearch.models import load as models_load

    write(folder, source, count, megapixels)
    loaded = models_load.load_model(model, device, images=1, precision="auto")
    side = loaded.recipe.crop
    loaded.features(np.zeros((1, side, side, 3), np.uint8))
    sizes = sorted((Image.open(path).size for path in folder.iterdir()), key=lambda size: size[0] * size[1])
    middle = sizes[len(sizes) // 2]
    print(json.dumps({"count": len(sizes), "width": middle[0], "height": middle[1], "side": side}))


def once(way: str, folder: Path, index: Path, model: str, device: str, workers: int | None) -> dict[str, float]:
    """One measurement, in a new process."""
    if way != "simsearch":
        command = [sys.executable, __file__, str(folder), "--way", way, "--model", model, "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, float] = json.loads(done.stdout)
        return found
    shutil.rmtree(index, ignore_errors=True)
    command = [sys.executable, "-m", "simsearch", "build", str(folder), "-i", str(index), "--model", model]
    command += ["--device", device, "--format", "json", *(["--workers", str(workers)] if workers else [])]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        summary = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    count = len(list(folder.iterdir()))
    if process.returncode or summary["computed"] != count:
        raise SystemExit(f"the build ended with {process.returncode}: {summary}")
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024.0}


# -- the report


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def report(rounds: list[dict[str, dict[str, float]]], count: int) -> None:
    print(f"\n{'':20} {'images/s':>10} {'(rounds)':>22} {'CPU ms/image':>13} {'peak MiB':>9}")
    for way in rounds[0]:
        rates = [count / done[way]["wall"] for done in rounds]
        used = statistics.median(done[way]["cpu"] for done in rounds) / count * 1000
        peak = statistics.median(done[way]["peak"] for done in rounds) / 2**20
        spread = f"({min(rates):,.1f} to {max(rates):,.1f})"
        print(f"{way:20} {statistics.median(rates):10,.1f} {spread:>22} {used:13.2f} {peak:9,.0f}")
    print()
    for way in ("tutorial", "tutorial, batches"):
        if way in rounds[0]:
            ratios = [done[way]["wall"] / done["simsearch"]["wall"] for done in rounds]
            print(
                f"simsearch against {way}: {statistics.median(ratios):.2f} times its rate"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    allowed = [done["decoding"]["wall"] + done["inference"]["wall"] for done in rounds]
    shares = [wall / done["simsearch"]["wall"] for wall, done in zip(allowed, rounds, strict=True)]
    print(
        f"decoding and inference together allow {count / statistics.median(allowed):,.1f} images/s; simsearch reaches"
        f" {statistics.median(shares):.1%} of that ({min(shares):.1%} to {max(shares):.1%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--count", type=int, help="images; made of the source's where it has fewer")
    parser.add_argument("--enlarge", type=float, metavar="MP", help="enlarge to MP megapixels")
    parser.add_argument("--times", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--model", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="of the build; as many as it likes by default")
    parser.add_argument("--skip", action="append", default=[], choices=WAYS[:2], help="leave a tutorial out")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options.source, options.model, options.device)
        return
    if options.prepare:
        prepare(options.prepare, options.source, options.count, options.enlarge, options.model, options.device)
        return
    import simsearch
    from simsearch.common import machine
    from simsearch.models import registry

    model = options.model or registry.DEFAULT
    with tempfile.TemporaryDirectory(prefix="simsearch-ingest-") as temporary:
        folder, index = Path(temporary) / "images", Path(temporary) / "index"
        folder.mkdir()
        command = [sys.executable, __file__, str(options.source), "--prepare", str(folder), "--model", model]
        command += ["--device", options.device, *(["--count", str(options.count)] if options.count else [])]
        command += ["--enlarge", str(options.enlarge)] if options.enlarge else []
        made = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        count = made["count"]
        size = sum(path.stat().st_size for path in folder.iterdir()) / count / 1000
        print(
            f"{processor()}, {machine.available_cores()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()},"
            f" Python {platform.python_version()}, simsearch {simsearch.__version__}"
        )
        print(
            f"{options.source}: {count:,} JPEGs, the middle one {made['width']}x{made['height']}, {size:,.0f} kB on"
            f" average; model {model}, {made['side']} pixels; {options.times} rounds"
        )
        ways = [way for way in WAYS if way not in options.skip]
        rounds = []
        for number in range(options.times):
            order = ways if number % 2 == 0 else ways[::-1]
            done = {way: once(way, folder, index, model, options.device, options.workers) for way in order}
            rounds.append({way: done[way] for way in ways})
            shown = ", ".join(f"{way} {count / done[way]['wall']:,.1f}" for way in ways)
            print(f"  round {number + 1}, images/s: {shown}", flush=True)
        report(rounds, count)


if __name__ == "__main__":
    main()
