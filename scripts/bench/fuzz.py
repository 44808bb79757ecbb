#!/usr/bin/env python3
"""Schemathesis over the whole OpenAPI document of the service, on this machine only: no answer may be a server error.

    scripts/bench/fuzz.py [--examples 500] [--seed 0]
    scripts/bench/fuzz.py pictures …                    damaged pictures instead; see fuzz_pictures.py
    scripts/bench/fuzz.py index|weights|tables|archives …       damaged files instead; see fuzz_files.py

Draws sixty pictures, builds an index of them, serves it with --writable, --allow-cleanup and a key, and sends
thousands of requests made from the document, valid and invalid ones. Checked of each answer are all checks of
schemathesis but one: its status is below 500 and in the document, its media type, headers and body are those of the
document, what the document forbids is refused, what was deleted stays so, no key means 401. Exit code 1 if anything is
found.
It needs schemathesis: pip install '.[dev]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()


KEY = "key-of-the-fuzz"
HOOKS = """
import io

import schemathesis
from hypothesis import strategies
from PIL import Image


def picture(width, height, grey, form):
    buffer = io.BytesIO()
    Image.new("L", (width, height), grey).save(buffer, form)
    return buffer.getvalue()


sides, greys = strategies.integers(1, 300), strategies.integers(0, 255)
pictures = strategies.builds(picture, sides, sides, greys, strategies.sampled_from(["PNG", "JPEG"]))
damaged = strategies.builds(lambda data, at: data[:at] + b"x" + data[at + 1 :], pictures, strategies.integers(0, 600))
schemathesis.openapi.format("binary", strategies.one_of(pictures, damaged, strategies.binary(max_size=999)))
"""
"""What is sent as a file: pictures, damaged ones, and any bytes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500, help="Of each operation.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if importlib.util.find_spec("schemathesis") is None:
        sys.exit("error: schemathesis is not installed\nhint: pip install '.[dev]'")
    with tempfile.TemporaryDirectory() as folder:
        simsearch = [sys.executable, "-m", "simsearch"]
        index = str(Path(folder) / "index")
        subprocess.run([*simsearch, "sample", f"{folder}/drawn", "-n", "60"], check=True, stderr=subprocess.DEVNULL)
        subprocess.run([*simsearch, "build", f"{folder}/drawn", "-i", index], check=True, stderr=subprocess.DEVNULL)
        command = [*simsearch, "serve", "-i", index, "--port", "0", "--writable"]
        command += ["--allow-cleanup", "--move-to", f"{folder}/moved"]
        environment = {**os.environ, "SIMSEARCH_API_KEY": KEY}
        (Path(folder) / "pictures.py").write_text(HOOKS)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
            assert server.stderr is not None
            url = re.search(r"http://\S+", server.stderr.readline())[0]  # type: ignore[index]
            log: list[str] = []
            reader = threading.Thread(target=log.extend, args=(server.stderr,))
            reader.start()
            try:
                found = subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "schemathesis.cli",
                        "run",
                        f"{url}openapi.json",
                        "--header",
                        f"Authorization: Bearer {KEY}",
                        "--max-examples",
                        str(options.examples),
                        "--seed",
                        str(options.seed),
                        "--exclude-checks",
                        "positive_data_acceptance",  # a schema cannot say that a crop lies within the picture sent
                        "--suppress-health-check",
                        "all",
                        "--generation-database",
                        "none",
                        "--workers",
                        "1",  # two threads that parse Python at once fail in CPython 3.11 (gh-106905)
                    ],
                    cwd=folder,
                    env={**os.environ, "SCHEMATHESIS_HOOKS": "pictures", "PYTHONPATH": folder},
                )
            finally:
                server.terminate()
            code = server.wait(60)
            reader.join()
        crashes = [line for line in log if "traceback" in line]
        statuses = sorted(re.findall(r'"status": (\d+)', "".join(log)))
        counts = ", ".join(f"{statuses.count(status):,} x {status}" for status in dict.fromkeys(statuses))
        print(f"{len(statuses):,} requests reached the service: {counts}; {len(crashes)} tracebacks; exit code {code}")
        print("".join(crashes[:3]), end="")
        return 1 if found.returncode or crashes or code else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["pictures"]:
        import fuzz_pictures

        sys.exit(fuzz_pictures.main(sys.argv[2:]))
    if sys.argv[1:2] and sys.argv[1] in {"index", "weights", "tables", "archives"}:
        import fuzz_files

        sys.exit(fuzz_files.main(sys.argv[1:]))
    sys.exit(main())
