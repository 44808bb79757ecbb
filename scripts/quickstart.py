"""The second half of scripts/quickstart: holds out a few pictures, indexes the others, and looks for the held-out ones.

    scripts/quickstart [SOURCE]

Without SOURCE it takes torchvision's Imagenette (160 px, a download of 94 MB), and where that cannot be reached, a
sample set that simsearch draws itself.
"""

from __future__ import annotations

import glob
import random
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from in_venv import reexecute

    reexecute()

from simsearch.errors import SimsearchError
from simsearch.images.sources import base, resolve

INDEXES = Path(__file__).parent.parent / "indexes"
ROWS = 5


def main() -> int:
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return 0 if len(sys.argv) == 2 else 2
    try:
        name = sys.argv[1] if len(sys.argv) == 2 else own_source()
        source = resolve.resolve(name)
        entries = [entry for entry in source.listing().entries if not entry.problem]
    except SimsearchError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    if len(entries) < 2:
        print(f"error: {name} holds {len(entries)} images; a search needs at least two", file=sys.stderr)
        return 2
    held = hold_out(entries)
    index = INDEXES / "quickstart"
    if (index / "meta.json").exists():
        shutil.rmtree(index)  # what an earlier quickstart left
    excluded = [part for entry in held for part in ("--exclude", glob.escape(entry.path))]
    run("build", name, "-i", str(index), *excluded)
    pictures = [source.display(entry.path) for entry in held]
    montage, page = INDEXES / "quickstart.png", INDEXES / "quickstart.html"
    run("query", *pictures, "-i", str(index), "--montage", str(montage), "--html", str(page))
    run("info", "-i", str(index))
    print(f"\nLook at {montage}: held-out pictures on the left, the six indexed ones most like each beside it.")
    print(f"The same to click: {page}")
    print(f"Now yours: .venv/bin/simsearch query PICTURE -i {index}")
    return 0


def own_source() -> str:
    socket.setdefaulttimeout(20)
    try:
        print("fetching torchvision's Imagenette (94 MB)", file=sys.stderr)
        resolve.resolve("torchvision/Imagenette").listing()
        return "torchvision/Imagenette"
    except SimsearchError as error:
        print(f"note: Imagenette cannot be had ({error}); drawing a sample set instead", file=sys.stderr)
    folder = INDEXES / "sample"
    if not folder.exists():
        partial = INDEXES / ".sample"
        shutil.rmtree(partial, ignore_errors=True)  # of a drawing that was interrupted
        run("sample", str(partial))
        partial.rename(folder)
    return str(folder)


def hold_out(entries: list[base.Entry]) -> list[base.Entry]:
    """A few pictures from different folders or labels, always the same ones."""
    chosen: dict[str, base.Entry] = {}
    for entry in random.Random(2012).sample(entries, len(entries)):
        chosen.setdefault(entry.label or entry.path.rpartition("/")[0] or entry.path, entry)
    return list(chosen.values())[: min(ROWS, len(entries) - 1)]


def run(*arguments: str) -> None:
    """Runs a simsearch command, shown first as one would type it."""
    print("$ simsearch", shlex.join(arguments), flush=True)
    done = subprocess.run([sys.executable, "-m", "simsearch", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
