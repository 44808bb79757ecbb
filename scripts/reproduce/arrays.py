#!/usr/bin/env python3
"""Makes the arrays that `alexnet.py` reads of what `pictures.py` has laid out.

    scripts/reproduce/arrays.py LAID-OUT SETS [--side 146]

A file of (N, side, side, 3) uint8 a source, `NAME.npy`, with the label of each picture in `NAME.labels.txt`; those held
out in `held-out.npy`; and `shares.tsv`, the share of each source in a batch. What is there already is kept.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import zipfile
from functools import cache
from multiprocessing import Pool
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from pictures import origins
from PIL import Image


@cache
def _archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def square(task: tuple[str, list[str], int]) -> np.ndarray:
    """(n, side, side, 3) uint8: the centres of some members of a shard."""
    shard, some, side = task
    found = []
    for member in some:
        picture = Image.open(io.BytesIO(_archive(shard).read(member))).convert("RGB")
        width, height = picture.size
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        picture = picture.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
        found.append(np.asarray(picture))
    return np.stack(found)


def unpack(laid_out: Path, sets: Path, side: int, processes: int) -> None:
    """The arrays that are trained on."""
    sets.mkdir(parents=True, exist_ok=True)
    with (laid_out / "manifest.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        name = row["source"].removesuffix(".zip").replace("/", "+")
        groups.setdefault("held-out" if row["role"] == "held-out" else name, []).append(row)
    shares = {origin.name.removesuffix(".zip").replace("/", "+"): origin.share for origin in origins()}
    with Pool(processes) as pool:
        for name, some in groups.items():
            path = sets / f"{name}.npy"
            if path.exists():
                continue
            tasks, start = [], 0
            while start < len(some):
                end = start + 1
                while end < len(some) and end - start < 64 and some[end]["shard"] == some[start]["shard"]:
                    end += 1
                tasks.append((str(laid_out / some[start]["shard"]), [row["member"] for row in some[start:end]], side))
                start = end
            partial, place = sets / f"{name}.partial", 0
            array = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(some), side, side, 3))
            for pixels in pool.imap(square, tasks):
                array[place : place + len(pixels)] = pixels
                place += len(pixels)
            array.flush()
            del array
            os.replace(partial, path)
            (sets / f"{name}.labels.txt").write_text("".join(f"{row['label']}\n" for row in some))
            print(f"{name}: {len(some):,}", flush=True)
    present = [name for name in shares if shares[name] and (sets / f"{name}.npy").exists()]
    (sets / "shares.tsv").write_text("".join(f"{name}\t{shares[name]:g}\n" for name in present))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("laid_out", type=Path)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--side", type=int, default=146)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    unpack(options.laid_out, options.sets, options.side, options.processes)


if __name__ == "__main__":
    main()
