#!/usr/bin/env python3
"""How long a command takes from a cold shell: whole processes, one after the other, medians of several.

    scripts/bench/cold.py IMAGE -i INDEX [--times 10]

Also says which heavy packages each command imported, how long the default model takes to load in a fresh process
once its decoded weights are in the cache, how a query compares with `python -c 'import torch'` (in turns), and where a
query's time goes: a process that takes the same steps, one by one, with a clock between them. IMAGE should not be one
that the index holds, else there is nothing to compute.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()


WATCHED = ("torch", "torchvision", "onnxruntime", "faiss", "numpy", "PIL", "rich")
PROBE = (
    "import sys, json\n"
    "from simsearch.cli.main import main\n"
    "try:\n    main(sys.argv[1:])\n"
    "except SystemExit as exit:\n    code = exit.code\n"
    f"print(' '.join(name for name in {WATCHED} if name in sys.modules), file=sys.stderr)\n"
    "sys.exit(code)\n"
)

LOAD = (
    "import time; start = time.perf_counter()\n"
    "from simsearch.models import load; model = load.load_model(device='cpu', images=1, precision='auto')\n"
    "print(time.perf_counter() - start, f'{model.name} ({model.engine})')"
)

PHASES = """
import time; clock = time.time
marks = [("start", float(__import__("sys").argv[1])), ("Python starts", clock())]
def mark(name): marks.append((name, clock()))
import sys
image, index = sys.argv[2:]
import simsearch.cli.main; mark("import of the command line (click)")
import numpy; mark("import of numpy")
import PIL.Image, PIL.ImageOps; mark("import of Pillow")
import simsearch.engine, simsearch.reports.text, simsearch.cli.query_args; mark("import of the rest of simsearch")
engine = simsearch.engine.Engine(index); mark("index opened")
from simsearch import images, opening
data, name = opening.read_picture(image)
picture = images.decode(data, engine.recipe.resize); pixels = engine.recipe.pixels(picture.image)[None]
mark("image decoded and scaled")
model = engine.load_model(expected=1); mark("weights found and hashed")
import onnxruntime; mark("import of ONNX Runtime")
vector = model.features(pixels)[0]; mark("session made, weights mapped; first inference")
model.features(pixels); again = clock(); marks.append(("(of which an inference, done again)", again))
import faiss; mark("import of faiss")
matches = engine.search_by_vector(vector, 6); mark("search")
answer = simsearch.search.results.QueryResult(image, engine.meta.model, True, 0.0, matches)
simsearch.reports.text.render([answer], "table", "\\n"); mark("output")
import json
import simsearch.__main__ as program
program.main = lambda: print(json.dumps(marks))
program.run()
"""


def phases(image: str, index: str, times: int) -> None:
    """Prints the median duration of each step of a query, and how long the process took to end."""
    found: dict[str, list[float]] = {}
    for number in range(times + 1):
        begun = time.time()
        command = [sys.executable, "-c", PHASES, repr(begun), image, index]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        ended = time.time()
        if done.returncode:
            sys.exit(done.stderr)
        marks = [*json.loads(done.stdout), ["Python ends", ended]]
        for (_, before), (name, after) in itertools.pairwise(marks):
            if number:
                found.setdefault(name, []).append(after - before)
    print("\na query step by step, milliseconds, medians:")
    for name, seconds in found.items():
        print(f"  {1000 * statistics.median(seconds):7.1f}  {name}")
    print(f"  {1000 * sum(map(statistics.median, found.values())):7.1f}  together")


def against_torch(query: list[str], times: int) -> None:
    """Runs a query and a bare import of torch in turns."""
    commands = [[sys.executable, "-m", "simsearch", *query], [sys.executable, "-c", "import torch"]]
    taken: list[list[float]] = [[], []]
    for _ in range(times + 1):
        for command, seconds in zip(commands, taken, strict=True):
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            seconds.append(time.perf_counter() - start)
    ours, theirs = (statistics.median(seconds[1:]) for seconds in taken)
    ratio = statistics.median(mine / other for mine, other in zip(taken[0][1:], taken[1][1:], strict=True))
    print(
        f"\nin turns: simsearch query {ours:.3f} s, python -c 'import torch' {theirs:.3f} s;"
        f" median of the ratios {ratio:.2f}"
    )


def load(times: int) -> None:
    """Prints how long the default model takes to load, the import of simsearch included."""
    found = []
    for _ in range(times + 1):
        done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
        seconds, name = done.stdout.strip().split(" ", 1)
        found.append(float(seconds))
    spread = f"{min(found[1:]):.3f} to {max(found[1:]):.3f}"
    print(f"{statistics.median(found[1:]):6.3f} s ({spread})  load {name}, its weights decoded before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("-i", "--index", default="indexes/default")
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {busy:.1f}, {options.times} runs after one"
    )
    query = ["query", options.image, "-i", options.index]
    for arguments in (["--help"], query, [*query, "--format", "json"], ["info", "-i", options.index]):
        times = []
        for _ in range(options.times + 1):
            start = time.perf_counter()
            command = [sys.executable, "-m", "simsearch", *arguments]
            done = subprocess.run(command, capture_output=True, check=False)
            times.append(time.perf_counter() - start)
            if done.returncode not in {0, 1}:
                sys.exit(done.stderr.decode())
        probe = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
        imported = probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else "none"
        spread = f"{min(times[1:]):.3f} to {max(times[1:]):.3f}"
        print(
            f"{statistics.median(times[1:]):6.3f} s ({spread})  simsearch {' '.join(arguments)}  [imports: {imported}]"
        )
    load(options.times)
    phases(options.image, options.index, options.times)
    against_torch(query, options.times)


if __name__ == "__main__":
    main()
