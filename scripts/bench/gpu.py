#!/usr/bin/env python3
"""Where the time of a GPU goes: inference, decoding, whole builds and exact search, each beside what the card can do.

    scripts/bench/gpu.py FOLDER [--device cuda] [--model NAME|FILE] [--rows 1000000] [--seconds 2] [--copies 4]

FOLDER holds JPEGs. Inference is timed from pixels on the host to features on the host, in float32 and as `build` does
it, and is put beside the rate of a large matrix product in the same precision. Decoding is that of the build: files
to pixels, on the device where it decodes, beside the CPU's threads. The build is `simsearch build` in a process of
its own over `--copies` of the folder, each file with other bytes behind its end marker. Search is over random non-
negative float16 rows of 4096: one query and 512 at once, beside the card's memory bandwidth (a copy in the same run),
with every answer checked against a plain product, also where nine rows in ten may not be found. --device cpu tries
the script.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch

import simsearch
from simsearch.indexing import load
from simsearch.models import registry
from simsearch.models.networks import build
from simsearch.models.networks.alexnet import AlexNet, count
from simsearch.models.torch import runtime
from simsearch.search.gpu import GpuIndex

DIMENSION = 4096


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(run: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Returns the units a second that `run` says it did: the median of five times, after one that does not count."""
    rates = []
    for _ in range(6):
        done, start = 0, time.perf_counter()
        while not done or time.perf_counter() - start < seconds / 5:
            done += run()
        wait(device)
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def product(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Floating-point operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)

    def run() -> int:
        _ = a @ a
        wait(device)
        return 2 * side**3

    return rate(run, seconds, device)


def bandwidth(device: torch.device, seconds: float) -> float:
    """Bytes read and written a second by a copy."""
    a = torch.zeros((2 << 30 if device.type == "cuda" else 256 << 20) // 4, device=device)
    b = torch.empty_like(a)

    def run() -> int:
        b.copy_(a)
        wait(device)
        return 2 * a.numel() * 4

    return rate(run, seconds, device)


def inference(weights: registry.WeightsFile, device: torch.device, seconds: float) -> None:
    network = build.build_network(weights.card.architecture, weights.config)
    operations = 2 * count(network).connections if isinstance(network, AlexNet) else 0
    peaks = {
        name: product(device, dtype, seconds)
        for name, dtype in (("float32", torch.float32), ("float16", torch.float16))
    }
    print(f"\nmatrix product: {', '.join(f'{name} {peak / 1e12:.2f} TFLOP/s' for name, peak in peaks.items())}")
    print(f"{'engine':24} {'batch':>6} {'images/s':>10} {'of the product':>15}")
    for asked in ("float32", "auto"):
        os.environ["SIMSEARCH_PRECISION"] = asked
        model = runtime.TorchModel(weights, str(device))
        name = "float16" if model.engine.endswith("float16") else "float32"
        if asked == "auto" and name == "float32":
            print("float16: not used")
            continue
        for batch in (1, 16, 256, 1024):
            side = model.recipe.crop
            pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
            images = rate(lambda model=model, pixels=pixels: len(model.features(pixels)), seconds, device)
            print(f"{model.engine:24} {batch:6} {images:10.0f} {operations * images / peaks[name]:14.1%}")
    del os.environ["SIMSEARCH_PRECISION"]


def decoding(weights: registry.WeightsFile, folder: Path, device: torch.device, seconds: float) -> None:
    files = [path.read_bytes() for path in sorted(folder.rglob("*.jp*g"))[:1024]]
    recipe = weights.card.recipe
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:

        def here() -> int:
            return len(list(pool.map(lambda data: load.load_image(lambda: data, recipe), files)))

        print(f"\ndecoding: {rate(here, seconds, device):.0f} images/s by {workers} threads of the CPU")
    decoder = runtime.TorchRunner(recipe, str(device)).decoder()
    if decoder is None:
        print("decoding: the device does not decode JPEGs")
        return
    taken = [found for data in files if (found := decoder.accept(data)) is not None]

    def there() -> int:
        return sum(x is not None for n in range(0, len(taken), 256) for x in decoder.pixels(taken[n : n + 256]))

    print(
        f"decoding: {rate(there, seconds, device):.0f} images/s on the device, by {decoder.library};"
        f" it takes {len(taken)} of {len(files)}"
    )
    off = []
    for file, pixels in zip(taken[:64], decoder.pixels(taken[:64]), strict=True):
        plain = load.load_image(lambda file=file: file.data, recipe).pixels
        if pixels is not None and plain is not None:
            off.append(np.abs(pixels.astype(int) - plain).mean())
    print(f"decoding: pixels differ by {np.mean(off):.2f} levels in the mean, {np.max(off):.2f} in the worst picture")


def building(folder: Path, model: str, device: str, copies: int) -> None:
    with tempfile.TemporaryDirectory() as work:
        grown = Path(work) / "photos"
        for path in sorted(folder.rglob("*.jp*g")):
            data = path.read_bytes()
            for number in range(copies):
                target = grown / str(number) / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data[:-2] + b"\xff\xd9" + number.to_bytes(2, "big"))
        for name in ("cpu", device) if device != "cpu" else ("cpu",):
            took = []
            for files in (grown / "0", grown):  # what the second takes longer is without the start
                index = Path(work) / f"{name}-{len(took)}"
                command = [sys.executable, "-m", "simsearch", "build", str(files), "-i", str(index), "--model", model]
                start = time.perf_counter()
                subprocess.run([*command, "--device", name], check=True, capture_output=True)
                took.append(time.perf_counter() - start)
            with simsearch.open(index, device="cpu") as engine:
                made, count = engine.meta.engine, len(engine)
            more = f"; {count * (1 - 1 / copies) / (took[1] - took[0]):.0f} a second once begun" if copies > 1 else ""
            print(f"build --device {name}: {count:,} images in {took[1]:.1f} s by {made}{more}")


def search(device: torch.device, rows: int, seconds: float) -> None:
    generator = torch.Generator().manual_seed(0)
    pool = torch.rand(65_536, DIMENSION, generator=generator).sub_(0.7).clamp_(0).half().numpy()

    def read(numbers: np.ndarray) -> np.ndarray:
        """Rows of the pool, each lap of it scaled otherwise."""
        scale = (1 + numbers // len(pool) / 64).astype(np.float32)
        return (pool[numbers % len(pool)].astype(np.float32) * scale[:, None]).astype(np.float16)

    start = time.perf_counter()
    held = GpuIndex(read, rows, [str(device)])
    wait(device)
    bytes_ = rows * 2 * DIMENSION
    print(f"\nsearch: {rows:,} rows, {bytes_ / 1e9:.1f} GB, on the device after {time.perf_counter() - start:.1f} s")
    copied = bandwidth(device, seconds)
    random = np.random.default_rng(1)
    asked = np.sort(random.choice(rows, 512, replace=rows < 512))
    queries = np.maximum(read(asked) + random.normal(0, 0.05, (512, DIMENSION)), 0).astype(np.float32)
    some = np.sort(random.choice(rows, max(20, rows // 10), replace=False))
    for name, permitted in (("all rows", None), ("a tenth of them permitted", some)):
        for nq in (1, 512):
            took = nq / rate(
                lambda nq=nq, permitted=permitted: len(held.scan(queries[:nq], 16, permitted)[0]), seconds, device
            )
            floor = bytes_ / copied
            print(
                f"search: {nq} at once, {name}: {1000 * took:.2f} ms, {nq / took:.0f}/s, {bytes_ / took / 1e9:.0f} GB/s"
            )
            print(f"  reading the rows once takes {1000 * floor:.2f} ms at {copied / 1e9:.0f} GB/s: {floor / took:.0%}")
        _, found, _ = held.scan(queries[:32], 16, permitted)
        wrong = check(queries[:32], found, permitted, rows, read)
        print(f"search: {name}: {wrong} of 320 answers are not among the true nearest ten")


def check(queries: np.ndarray, found: np.ndarray, permitted: np.ndarray | None, rows: int, read: Callable) -> int:
    """How many of the ten nearest of each query, by float64, are not among the candidates."""
    best = np.full((len(queries), 10), np.inf)
    names = np.full((len(queries), 10), -1)
    chosen = np.arange(rows) if permitted is None else permitted
    lengths = np.einsum("nd,nd->n", queries, queries, dtype=np.float64)[:, None]
    for start in range(0, len(chosen), 8192):
        numbers = chosen[start : start + 8192]
        x = read(numbers).astype(np.float64)
        squared = lengths - 2 * queries.astype(np.float64) @ x.T + np.einsum("nd,nd->n", x, x)
        both, of = np.concatenate([best, squared], 1), np.concatenate([names, np.tile(numbers, (len(queries), 1))], 1)
        order = np.argsort(both, 1, kind="stable")[:, :10]
        best, names = np.take_along_axis(both, order, 1), np.take_along_axis(of, order, 1)
    return sum(len(set(a) - set(b)) for a, b in zip(names.tolist(), found.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default=registry.DEFAULT)
    parser.add_argument("--rows", type=int, default=1_000_000, help="to search; 0 leaves the search out")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--copies", type=int, default=4, help="of the folder, to build from; 0 leaves the build out")
    options = parser.parse_args()
    device, weights = torch.device(options.device), registry.find_weights(options.model)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, {os.cpu_count()} cores; torch {torch.__version__}, simsearch {simsearch.__version__}")
    inference(weights, device, options.seconds)
    decoding(weights, options.folder, device, options.seconds)
    if options.copies:
        building(options.folder, options.model, options.device, options.copies)
    if options.rows:
        search(device, options.rows, options.seconds)


if __name__ == "__main__":
    main()
