#!/usr/bin/env python3
"""An earlier commit beside the working tree: commands, a build, searches and the service, measured in turn.

    scripts/bench/versions.py COMMIT [--work FOLDER] [--only PART...] [--rounds 5] [--photos FOLDER] [--weights FILE]

COMMIT is checked out into a temporary folder (a worktree of git), which shares this environment. Both versions use the
same weights file, by default the one shipped with COMMIT, so that they compute the same network. Each round runs the
earlier version and the present one, in changing order; printed are the medians of both and the median of the rounds'
ratios, new / old: below 1 the present version is faster, but for throughput, where it is above 1. Of processes also
the CPU seconds of all cores, which depend less on other work on the machine.

- help: `simsearch --help`, a process;
- query: `simsearch query` by a picture that the index does not have, a process;
- build: `simsearch build` of --count photographs, a process: those of --photos, or drawn ones of 500 x 375 pixels;
- search: single searches by vectors in an index of --items small pictures, in a process, exact and tuned to a recall
  of 0.95: each version builds and tunes its own;
- serve: searches a second of the service, under the load of `serve.py`;
- old: the earlier version's index opened, verified and searched by the present one, which must answer the same.

--work keeps the checkout, the pictures and the indexes for the next call. Exit code 1 if `old` finds a difference.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import serve
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("help", "query", "build", "search", "serve", "old")
SIZE, SMALL = (500, 375), (96, 96)

SEARCH = """
import json, sys, time
import numpy as np
import simsearch
index, vectors, times = sys.argv[1:]
with simsearch.open(index, device="cpu") as engine:
    queries = np.load(vectors)
    found = {"exact": [], "tuned": []}
    for way in found:
        for number, query in enumerate(queries[np.arange(-5, int(times)) % len(queries)]):
            start = time.perf_counter()
            engine.search_by_vector(query, 6, exact=way == "exact")
            if number >= 5:
                found[way].append(time.perf_counter() - start)
print(json.dumps({way: float(np.median(seconds)) for way, seconds in found.items()}))
"""

ANSWERS = """
import json, sys
import numpy as np
import simsearch
with simsearch.open(sys.argv[1], device="cpu") as engine:
    found = engine.search_by_vectors(np.load(sys.argv[2]), 10, exact=True)
print(json.dumps([[(match.id, match.path, match.distance) for match in matches] for matches in found]))
"""

FEATURES = """
import sys
import numpy as np
import simsearch
with simsearch.open(sys.argv[1], device="cpu") as engine:
    np.save(sys.argv[2], engine.features([open(path, "rb").read() for path in sys.argv[3:]]))
"""


class Version:
    """One of the two versions: a checkout, and a folder with its indexes and its cache."""

    def __init__(self, name: str, tree: Path, work: Path, weights: Path) -> None:
        self.name, self.tree, self.folder, self.weights = name, tree, work / name, weights
        self.folder.mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(tree),
            "PYTHONDONTWRITEBYTECODE": "",
            "SIMSEARCH_CACHE": str(self.folder / "cache"),
        }

    def python(self, *arguments: str | Path) -> str:
        """Runs Python on this version; returns its output, or ends the program with its errors."""
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder, env=self.environment, check=False
        )
        if done.returncode:
            sys.exit(f"{self.name}: {' '.join(command)[:300]}\n{done.stderr[-3000:]}")
        return done.stdout

    def run(self, name: str, *arguments: str | Path) -> dict[str, float]:
        """Runs a simsearch command; returns the seconds that its process took, by the clock and on all cores."""
        start, used = time.perf_counter(), children_seconds()
        self.python("-m", "simsearch", *arguments)
        return {name: time.perf_counter() - start, f"{name}, CPU": children_seconds() - used}

    def built(self, pictures: Path) -> Path:
        """Returns this version's index of a folder; builds it unless it is there."""
        index = self.folder / f"index-{pictures.name}"
        if not (index / "meta.json").exists():
            self.build("", pictures, index)
        return index

    def build(self, name: str, pictures: Path, index: Path) -> dict[str, float]:
        shutil.rmtree(index, ignore_errors=True)
        return self.run(name, "build", pictures, "-i", index, "--model", self.weights)


def children_seconds() -> float:
    """Returns the CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Fills a folder with `count` JPEGs of random smooth colours with some grain, unless it has them already."""
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for number in range(count):
            chance = np.random.default_rng(number)
            blocks = chance.integers(0, 256, (chance.integers(3, 12), chance.integers(3, 12), 3), np.uint8)
            smooth = np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC), np.int16)
            pixels = np.clip(smooth + chance.integers(-12, 13, smooth.shape[:2])[..., None], 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(partial / f"{number:05}.jpg", quality=90)
        partial.rename(folder)
    return folder


def in_turn(
    versions: Sequence[Version], rounds: int, measure: Callable[[Version], dict[str, float]]
) -> dict[str, list[list[float]]]:
    """Measures both versions in each round, after a round that does not count: for each figure, both versions' values.

    The version that goes first changes from round to round.
    """
    found: dict[str, list[list[float]]] = {}
    for number in range(rounds + 1):
        order = versions if number % 2 else versions[::-1]
        values = {version.name: measure(version) for version in order}
        for name in values[versions[0].name] if number else ():
            pair = found.setdefault(name, [[], []])
            for version, seconds in zip(versions, pair, strict=True):
                seconds.append(values[version.name][name])
    return found


def print_ratios(found: dict[str, list[list[float]]], unit: str, scale: float = 1) -> None:
    for name, (old, new) in found.items():
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        before, after = (scale * statistics.median(values) for values in (old, new))
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"{name:34} {before:8.3f} {after:8.3f} {unit:10} new / old {statistics.median(ratios):.3f} ({spread})",
            flush=True,
        )


def searches_a_second(version: Version, index: Path, pictures: list[bytes], options: argparse.Namespace) -> float:
    """Starts the service, loads it, and stops it."""
    command = [sys.executable, "-m", "simsearch", "serve", "-i", str(index), "--port", "0"]
    with (
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=version.folder, env=version.environment
        ) as server,
    ):
        assert server.stderr is not None
        line = server.stderr.readline()
        url = re.search(r"http://\S+", line)
        if url is None:
            sys.exit(f"{version.name}: {line}")
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        print(f"  {version.name}:", flush=True)
        rate, _ = asyncio.run(serve.load(urlsplit(url[0]).port or 80, pictures, options, server.pid))
        server.wait(60)
        drain.kill()
        drain.wait()
    return rate


def same_answers(old: Version, new: Version, index: Path, vectors: Path) -> bool:
    """Searches a copy of the earlier version's index by both versions, and has the present one verify it."""
    copy = new.folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(index, copy)
    print(
        f"old: `verify` of the earlier version's index: {new.python('-m', 'simsearch', 'verify', '-i', copy).strip()}"
    )
    answers = [json.loads(version.python("-c", ANSWERS, copy, vectors)) for version in (old, new)]
    same = sum(
        [match[:2] for match in before] == [match[:2] for match in after]
        for before, after in zip(*answers, strict=True)
    )
    distances = [
        abs(b[2] - a[2]) / b[2] for pair in zip(*answers, strict=True) for b, a in zip(*pair, strict=True) if b[2]
    ]
    print(
        f"old: {same} of {len(answers[0])} queries have the same 10 items in the same order,"
        f" distances within {max(distances):.1e}"
    )
    return same == len(answers[0])


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, help="photographs to build from, in place of drawn ones")
    parser.add_argument("--weights", type=Path, help="weights file of both versions, in place of COMMIT's")
    parser.add_argument("--count", type=int, default=2500)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--searches", type=int, default=200, help="single searches in a round")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10, help="load on the service, each time")
    parser.set_defaults(k=6)
    return parser.parse_args()


def checkout(commit: str, tree: Path) -> None:
    if not tree.exists():
        subprocess.run(["git", "worktree", "add", "--detach", "-f", tree, commit], cwd=ROOT, check=True)


def main() -> int:
    options = read_options()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        tree = work / "checkout"
        checkout(options.commit, tree)
        try:
            return measure(options, work, tree)
        finally:
            if options.work is None:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=False)


def measure(options: argparse.Namespace, work: Path, tree: Path) -> int:
    """Runs the parts asked for, and returns the exit code."""
    weights = (options.weights or min((tree / "simsearch").rglob("*.safetensors"))).absolute()
    old, new = versions = [Version("old", tree, work, weights), Version("new", ROOT, work, weights)]
    shown = [
        subprocess.check_output(["git", "log", "-1", "--format=%h %cs", "HEAD"], cwd=version.tree, text=True).strip()
        for version in versions
    ]
    print(
        f"old {shown[0]}, new {shown[1]}; weights {weights.name}; Python {platform.python_version()},"
        f" {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.rounds} rounds after one",
        flush=True,
    )
    photos = options.photos.absolute() if options.photos else draw(work / "photos", options.count, SIZE)
    queries = sorted(draw(work / "queries", 50, (480, 360)).iterdir())
    if "help" in options.only:
        print_ratios(in_turn(versions, 3 * options.rounds, lambda v: v.run("--help", "--help")), "s")
    if "query" in options.only:
        indexes = {version.name: version.built(photos) for version in versions}
        found = in_turn(
            versions, 3 * options.rounds, lambda v: v.run("query", "query", queries[0], "-i", indexes[v.name])
        )
        print_ratios(found, "s")
    if "build" in options.only:
        name = f"build of {sum(path.is_file() for path in photos.rglob('*')):,} photographs"
        print_ratios(in_turn(versions, options.rounds, lambda v: v.build(name, photos, v.folder / "built")), "s")
    vectors = work / "vectors.npy"
    if not vectors.exists() and {"search", "old"} & {*options.only}:
        new.python("-c", FEATURES, new.built(photos), vectors, *queries)
    if "search" in options.only:
        search(versions, draw(work / "items", options.items, SMALL), vectors, options)
    if "serve" in options.only:
        pictures = [path.read_bytes() for path in random.Random(1).sample(queries, 20)]
        found = in_turn(
            versions,
            options.rounds,
            lambda v: {"service, searches a second": searches_a_second(v, v.built(photos), pictures, options)},
        )
        print_ratios(found, "searches/s")
    return int("old" in options.only and not same_answers(old, new, old.built(photos), vectors))


def search(versions: Sequence[Version], items: Path, vectors: Path, options: argparse.Namespace) -> None:
    """Times single searches, exact and tuned, in an index that each version has built and tuned."""
    for version in versions:
        tuned = version.folder / "tuned.json"
        if not tuned.exists():
            text = version.python("-m", "simsearch", "tune", "--recall", "0.95", "-i", version.built(items))
            tuned.write_text(text)
        print(f"  {version.name}: {tuned.read_text().strip().partition(': ')[2]}", flush=True)

    def timed(version: Version) -> dict[str, float]:
        found = json.loads(version.python("-c", SEARCH, version.built(items), vectors, str(options.searches)))
        return {f"{way} search of {options.items:,} items": seconds for way, seconds in found.items()}

    print_ratios(in_turn(versions, options.rounds, timed), "ms", 1000)


if __name__ == "__main__":
    sys.exit(main())
