#!/usr/bin/env python3
"""Which fuzzer finds a known fault of the decoder sooner: `fuzz.py pictures`, hypothesis or atheris?

    scripts/bench/fuzzers.py COMMIT [--runs 5] [--seconds 300] [--only FORMAT] [--tools NAME ...]
    scripts/bench/fuzzers.py HEAD --tools atheris --runs 1 --seconds 1800        searches for unknown faults

COMMIT is one before the fault was mended; it is checked out into a temporary folder (a worktree of git), which shares
this environment. Each fuzzer begins with the same pictures, those of `fuzz_pictures.py`, and decodes until there is an
exception other than ImageError or its time is over, once for each seed, one after the other:

- own: `fuzz_pictures.py`'s damage, which prefers headers and extreme numbers;
- hypothesis: one to three edits of a picture; where and what is drawn by its strategies;
- atheris: libFuzzer's changes, guided by which lines of the decoder and of Pillow's Python code are reached.

Printed are the seconds and decoded files of each run, and the exception that was found. It needs hypothesis (in
'.[dev]') and atheris (pip install atheris).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

ROOT = Path(__file__).resolve().parent.parent.parent
SIDE = 64
TOOLS = ("own", "hypothesis", "atheris")


class Target:
    """Decodes files and counts them. Ends the process with a line about the first fault, or when time is over."""

    def __init__(self, seconds: float) -> None:
        from simsearch.errors import ImageError
        from simsearch.images import decode

        self.decode, self.expected = decode.decode_image, ImageError
        self.seconds, self.started, self.count = seconds, time.monotonic(), 0

    def __call__(self, data: bytes) -> None:
        self.count += 1
        try:
            self.decode(data, SIDE)
        except self.expected:
            pass
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.end(f"{type(error).__name__}: {str(error)[:60]} ({Path(place.filename).name}, {place.name})")
        if time.monotonic() - self.started > self.seconds:
            self.end("")

    def end(self, found: str) -> NoReturn:
        print(f"RESULT\t{time.monotonic() - self.started:.2f}\t{self.count}\t{found}", flush=True)
        os._exit(0)


def own(target: Target, files: dict[str, list[bytes]], seed: int, only: str | None) -> None:
    from fuzz_pictures import damaged

    number = 0
    while True:
        target(damaged(files, number, seed, only)[1])
        number += 1


def by_hypothesis(target: Target, files: dict[str, list[bytes]], seed: int, only: str | None) -> None:
    import hypothesis
    from hypothesis import strategies as st

    def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for place, length, new in edits:
            data = data[:place] + new + data[place + length :]
        return data

    pictures = [data for name, some in sorted(files.items()) for data in some if only in (None, name)]
    edit = st.tuples(st.integers(0, 500), st.integers(0, 16), st.binary(max_size=16))
    damage = st.builds(edited, st.sampled_from(pictures), st.lists(edit, min_size=1, max_size=3))
    settings = hypothesis.settings(
        max_examples=5_000,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    while True:  # one run keeps all that it has generated
        hypothesis.seed(seed)(settings(hypothesis.given(damage)(target.__call__)))()
        seed += 1_000


def by_atheris(target: Target, files: dict[str, list[bytes]], seed: int, only: str | None) -> None:
    import atheris

    with tempfile.TemporaryDirectory() as corpus:
        for name, some in files.items():
            for number, data in enumerate(some):
                if only in (None, name):
                    (Path(corpus) / f"{name.replace(' ', '-')}-{number}").write_bytes(data)
        arguments = [sys.argv[0], corpus, f"-seed={seed + 1}", "-rss_limit_mb=0", "-timeout=60", "-max_len=65536"]
        atheris.Setup(arguments, target)
        atheris.Fuzz()


RUNS: dict[str, Callable[[Target, dict[str, list[bytes]], int, str | None], None]] = {
    "own": own,
    "hypothesis": by_hypothesis,
    "atheris": by_atheris,
}


def child(tool: str, seed: int, seconds: float, only: str | None) -> None:
    """Runs one fuzzer in this process, which ends with a line of its result."""
    warnings.simplefilter("ignore")
    instrumenting: Any = contextlib.nullcontext()
    if tool == "atheris":
        import atheris

        instrumenting = atheris.instrument_imports(include=["simsearch.images", "PIL"])
    with instrumenting:
        importlib.import_module("simsearch.images.decode")
        from PIL import Image

        Image.init()  # the formats' modules
    from fuzz_pictures import samples

    files = samples()
    RUNS[tool](Target(seconds), files, seed, only)


def run(tool: str, seed: int, checkout: Path, options: argparse.Namespace) -> tuple[float, int, str]:
    """Returns seconds, decoded files and what was found, nothing if the time was over."""
    command = [
        sys.executable,
        __file__,
        "here",
        "--child",
        tool,
        "--seed",
        str(seed),
        "--seconds",
        str(options.seconds),
    ]
    command += ["--only", options.only] if options.only else []
    inherited = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), *([inherited] if inherited else [])])}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, cwd=checkout)
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("RESULT\t")]
    if not rows:
        return 0.0, 0, f"no result, exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    return float(rows[0][1]), int(rows[0][2]), rows[0][3]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300.0, help="The most for one run.")
    parser.add_argument("--only", metavar="FORMAT", help="One format of `fuzz.py pictures`, such as BigTIFF.")
    parser.add_argument("--seed", type=int, default=0, help="Of the first run.")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--child", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.seed, options.seconds, options.only)
        return 0
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(checkout), options.commit], check=True)
        try:
            for tool in options.tools:
                times = []
                for seed in range(options.seed, options.seed + options.runs):
                    seconds, count, found = run(tool, seed, checkout, options)
                    times.append(seconds if found else float("inf"))
                    print(f"  {tool}, seed {seed}: {seconds:.1f} s, {count:,} files: {found or 'nothing'}", flush=True)
                print(f"{tool}: median {statistics.median(times):.1f} s", flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
