#!/usr/bin/env python3
"""Lays out the photographs that the shipped weights are trained on.

    scripts/reproduce/pictures.py DATA SNAPSHOTS OUT [--hashes FILE] [--processes N]

DATA holds tiny-imagenet/, imagenette160/ and what judges the weights: val.zip, corel/, clothing/. SNAPSHOTS holds a
clone of every repository of `pictures.tsv` beside this script, as OWNER+NAME, OWNER+NAME/repo or a bare one of either:

    git clone --depth 1 --bare https://github.com/OWNER/NAME SNAPSHOTS/OWNER+NAME

FILE has more 64-bit difference hashes, a line each in hexadecimal, of pictures that must not be trained on.

A photograph is left out if its content was seen, if it is tiny, flat, long or broken, if its difference hash is within
3 bits of one that was kept, or within 4 of a picture that judges: of a validation or test set, of Corel or clothing, of
FILE, or of the repositories with the role `choice`. Out come shards of at most 40 MB, `shard-000.zip`, of JPEGs with a
short side of 160 pixels or less, `manifest.tsv` (a row a photograph), and `counts.tsv`. Each source is skipped if the
manifest has it, so an interrupted run goes on. Nothing of this is redistributed or needed to use simsearch.

    scripts/reproduce/pictures.py --unpack OUT SETS [--side 146]

makes the arrays that `alexnet.py` reads: a file of (N, side, side, 3) uint8 a source, those held out and for choices
in files of their own, and `shares.tsv`, the share of each source in a batch.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageStat

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SHORT, LONG = 160, 320
SMALLEST, LONGEST, FLATTEST = 120, 3.0, 6.0
SHARD = 39_000_000
HELD_OUT = 2048
JUDGES = ("tiny-imagenet/val.zip", "imagenette160/val.zip", "cifar10/test.zip", "corel", "clothing")
COLUMNS = ("shard", "member", "source", "role", "path", "content", "hash", "width", "height", "label")
Image.MAX_IMAGE_PIXELS = 80_000_000


@dataclass(frozen=True)
class Origin:
    """A row of pictures.tsv: where pictures come from, what for, and how large a share of a batch they are."""

    name: str
    role: str
    share: float
    include: str
    most: int

    @property
    def packed(self) -> bool:
        """Whether it is an archive of the data folder and not a repository: small pictures are welcome there."""
        return self.name.endswith(".zip")


def origins() -> list[Origin]:
    """Those whose pictures judge first, then the large pictures, then the small ones."""
    with Path(__file__).with_name("pictures.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = [
        Origin(row["repository"], row["role"], float(row["share"]), row["include"], int(row["most"] or 0))
        for row in rows
    ]
    return sorted(found, key=lambda origin: (origin.role != "choice", "tiny" in origin.name))


def git_folder(snapshots: Path, name: str) -> Path:
    """The git directory of a repository's snapshot. Exits where there is none."""
    base = snapshots / name.replace("/", "+")
    for folder in (base / "repo" / ".git", base / "repo", base / ".git", base):
        if (folder / "HEAD").is_file():
            return folder
    sys.exit(f"no snapshot of {name}: git clone --depth 1 --bare https://github.com/{name} {base}")


def members(origin: Origin, data: Path, snapshots: Path) -> list[tuple[str, str]]:
    """(address, path) of every picture of a source: a git object's name, or a member's."""
    if origin.packed:
        with zipfile.ZipFile(data / origin.name) as archive:
            found = [(name, name) for name in sorted(archive.namelist()) if name.lower().endswith(SUFFIXES)]
    else:
        command = ["git", f"--git-dir={git_folder(snapshots, origin.name)}", "ls-tree", "-r", "-l", "-z", "HEAD"]
        found = []
        for entry in subprocess.run(command, capture_output=True, check=True).stdout.decode("utf8", "replace").split("\0"):
            facts, _, path = entry.partition("\t")
            parts = facts.split()
            wanted = path.lower().endswith(SUFFIXES) and re.search(origin.include, path)
            if wanted and parts[1] == "blob" and parts[3].isdigit() and int(parts[3]) > 1500:
                found.append((parts[2], path))
    if origin.most and len(found) > origin.most:
        found = [found[n * len(found) // origin.most] for n in range(origin.most)]
    return found


@cache
def _git(folder: str) -> subprocess.Popen:
    return subprocess.Popen(["git", f"--git-dir={folder}", "cat-file", "--batch"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)  # fmt: skip


@cache
def _archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def read(place: str, address: str) -> bytes:
    """The bytes of a picture in an archive or a git directory."""
    if place.endswith(".zip"):
        return _archive(place).read(address)
    process = _git(place)
    process.stdin.write(address.encode() + b"\n")
    process.stdin.flush()
    parts = process.stdout.readline().split()
    if len(parts) < 3:
        return b""
    content = process.stdout.read(int(parts[2]))
    process.stdout.read(1)
    return content


def difference_hash(picture: Image.Image) -> int:
    """64 bits: 8 rows of 9 grey means, whether each is darker than the next."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")


def prepare(content: bytes, smallest: int) -> Image.Image | str:
    """The picture, RGB, its short side SHORT or less, its long side cut to LONG; or why it is left out."""
    try:
        picture = Image.open(io.BytesIO(content))
        width, height = picture.size
        if min(width, height) < smallest:
            return "tiny"
        if max(width, height) > LONGEST * min(width, height):
            return "long"
        scale = SHORT / min(width, height)
        picture.draft("RGB", (int(width * scale * 1.5), int(height * scale * 1.5)))
        if picture.mode in ("RGBA", "LA", "P", "PA"):
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
        if scale < 1:
            size = max(SHORT, round(width * scale)), max(SHORT, round(height * scale))
            picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        width, height = picture.size
        across, down = min(width, LONG), min(height, LONG)
        left, top = (width - across) // 2, (height - down) // 2
        picture = picture.crop((left, top, left + across, top + down))
        if max(ImageStat.Stat(picture.resize((32, 32), Image.Resampling.BOX)).stddev) < FLATTEST:
            return "flat"
    except Exception:  # Pillow raises many kinds for files that are none
        return "broken"
    return picture


def process(task: tuple[str, int, list[tuple[str, str]]]) -> list[tuple]:
    """(address, path, content's hash, difference hash, size, JPEG) or (address, path, reason) for some pictures."""
    place, smallest, some = task
    found: list[tuple] = []
    for address, path in some:
        content = read(place, address)
        picture = prepare(content, smallest)
        if isinstance(picture, str):
            found.append((address, path, picture))
            continue
        buffer = io.BytesIO()
        if min(picture.size) < SHORT and picture.size == Image.open(io.BytesIO(content)).size:
            buffer.write(content)  # it is small as it is
        else:
            picture.save(buffer, "JPEG", quality=88)
        digest = hashlib.sha256(content).hexdigest()[:24]
        found.append((address, path, digest, difference_hash(picture), picture.size, buffer.getvalue()))
    return found


class Near:
    """Hashes, and whether another is within so many bits of one of them: two that differ by fewer bits than there are
    bands agree in one of the bands."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        edges = [64 * n // (bits + 1) for n in range(bits + 2)]
        self.bands = [(low, (1 << high - low) - 1) for low, high in zip(edges, edges[1:], strict=False)]
        self.tables: list[dict[int, list[int]]] = [{} for _ in self.bands]

    def add(self, value: int) -> None:
        for (shift, mask), table in zip(self.bands, self.tables, strict=True):
            table.setdefault(value >> shift & mask, []).append(value)

    def __contains__(self, value: int) -> bool:
        return any(
            (other ^ value).bit_count() <= self.bits
            for (shift, mask), table in zip(self.bands, self.tables, strict=True)
            for other in table.get(value >> shift & mask, ())
        )


def judging(data: Path, hashes: Path | None) -> Near:
    """The difference hashes of everything that judges."""
    near = Near(4)
    values = {int(line, 16) for line in hashes.read_text().split()} if hashes else set()
    for name in JUDGES:
        path = data / name
        if not path.exists():
            print(f"{path} is absent: what is like its pictures stays", flush=True)
            continue
        if path.is_dir():
            contents: Iterator[bytes] = (file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())
        else:
            contents = (read(str(path), member) for member in _archive(str(path)).namelist())
        for content in contents:
            try:
                values.add(difference_hash(Image.open(io.BytesIO(content)).convert("RGB")))
            except OSError:
                continue
    for value in values:
        near.add(value)
    print(f"{len(values):,} hashes of pictures that judge", flush=True)
    return near


class Shards:
    """Where pictures go: archives of at most SHARD bytes, and the manifest."""

    def __init__(self, out: Path) -> None:
        self.out, self.number, self.size = out, 0, 0
        self.archive: zipfile.ZipFile | None = None
        self.rows: list[tuple] = []
        self.manifest = out / "manifest.tsv"
        if not self.manifest.exists():
            self.manifest.write_text("\t".join(COLUMNS) + "\n")
        with self.manifest.open(newline="") as file:
            self.past = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        self.number = max((int(row["shard"][6:9]) + 1 for row in self.past), default=0)

    def add(self, member: str, content: bytes, facts: tuple) -> None:
        if self.archive is not None and self.size + len(content) > SHARD:
            self._next()
        if self.archive is None:
            self.archive = zipfile.ZipFile(self.out / "partial.zip", "w", zipfile.ZIP_STORED)
            self.names: list[int] = []
        self.archive.writestr(member, content)
        self.size += len(content) + 2 * len(member) + 100
        self.rows.append((f"shard-{self.number:03d}.zip", member, *facts))

    def _next(self) -> None:
        if self.archive is not None:
            self.archive.close()
            os.replace(self.out / "partial.zip", self.out / f"shard-{self.number:03d}.zip")
            self.archive, self.number, self.size = None, self.number + 1, 0

    def end(self) -> None:
        """After a source: the shard is closed, and only then does the manifest name what it holds."""
        self._next()
        with self.manifest.open("a") as file:
            file.writelines("\t".join(map(str, row)).replace("\n", " ") + "\n" for row in self.rows)
        self.rows = []


def held_out(origin: Origin, path: str) -> bool:
    """Whether a picture of the labelled sets is kept for choices: about one in 36, by its name."""
    digest = hashlib.sha256(f"{origin.name}/{path}".encode()).digest()
    return origin.packed and int.from_bytes(digest[:4], "big") % 36 == 0


def lay_out(data: Path, snapshots: Path, out: Path, hashes: Path | None, processes: int, most: int) -> None:
    """Every source into shards, or `most` pictures of each, evenly spaced."""
    out.mkdir(parents=True, exist_ok=True)
    shards, judges, kept, contents = Shards(out), judging(data, hashes), Near(3), set()
    for row in shards.past:
        contents.add(row["content"])
        (judges if row["role"] == "choice" else kept).add(int(row["hash"], 16))
    done = {row["source"] for row in shards.past}
    with Pool(processes) as pool:
        for origin in origins():
            if origin.name in done:
                continue
            began, counts = time.monotonic(), Counter()
            found = members(origin, data, snapshots)
            if most and len(found) > most:
                found = [found[n * len(found) // most] for n in range(most)]
            place = str(data / origin.name if origin.packed else git_folder(snapshots, origin.name))
            smallest = 48 if origin.packed else SMALLEST
            tasks = [(place, smallest, found[n : n + 50]) for n in range(0, len(found), 50)]
            for some in pool.imap(process, tasks):
                for address, path, *rest in some:
                    if len(rest) == 1:
                        counts[rest[0]] += 1
                        continue
                    content, value, (width, height), encoded = rest
                    if content in contents:
                        counts["seen"] += 1
                        continue
                    role = "held-out" if held_out(origin, path) else origin.role
                    if role == "train" and value in judges:
                        counts["judges"] += 1
                        continue
                    if value in kept:
                        counts["alike"] += 1
                        continue
                    contents.add(content)
                    (kept if role == "train" else judges).add(value)
                    counts[role] += 1
                    suffix = "jpg" if encoded[:2] == b"\xff\xd8" else "webp" if encoded[8:12] == b"WEBP" else "png"
                    label = Path(path).parent.name
                    shards.add(f"{content}.{suffix}", encoded, (origin.name, role, path, content, f"{value:016x}",
                                                                width, height, label))  # fmt: skip
            shards.end()
            seconds = time.monotonic() - began
            told = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
            line = f"{origin.name}\t{len(found)}\t{told}\t{len(found) / seconds:.0f}/s"
            with (out / "counts.tsv").open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)


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


def unpack(out: Path, sets: Path, side: int, processes: int) -> None:
    """The arrays that are trained on."""
    sets.mkdir(parents=True, exist_ok=True)
    with (out / "manifest.tsv").open(newline="") as file:
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
                tasks.append((str(out / some[start]["shard"]), [row["member"] for row in some[start:end]], side))
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
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--hashes", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--most", type=int, default=0, help="at most so many pictures of each source, for a trial")
    parser.add_argument("--side", type=int, default=146)
    parser.add_argument("--unpack", action="store_true")
    options = parser.parse_args()
    if len(options.folders) != (2 if options.unpack else 3):
        parser.error("--unpack OUT SETS" if options.unpack else "DATA SNAPSHOTS OUT")
    if options.unpack:
        unpack(*options.folders, options.side, options.processes)
    else:
        lay_out(*options.folders, options.hashes, options.processes, options.most)


if __name__ == "__main__":
    main()
