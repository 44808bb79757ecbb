#!/usr/bin/env python3
"""Lays out the photographs that the shipped weights are trained on.

    scripts/reproduce/pictures.py DATA SNAPSHOTS OUT [--hashes FILE] [--processes N]

DATA holds tiny-imagenet/, imagenette160/ and what judges the weights: val.zip, corel/, clothing/. SNAPSHOTS holds a
clone of every repository of `pictures.tsv` beside this script, as OWNER+NAME, OWNER+NAME/repo or a bare one of either:

    git clone --depth 1 --bare https://github.com/OWNER/NAME SNAPSHOTS/OWNER+NAME

FILE has more 64-bit difference hashes, a line each in hexadecimal, of pictures that must not be trained on.

A photograph is left out if its content was seen, if it is tiny, flat, long or broken, if its difference hash is within
3 bits of one that was kept and its colours are the same, or if the hash is within 4 bits of a picture that judges: of a
validation or test set, of Corel or clothing, of FILE, or of the repositories with the role `choice`. Out come shards of
at most 40 MB, `shard-000.zip`, of JPEGs with a short side of 160 pixels or less, `manifest.tsv` (a row a photograph),
and `counts.tsv`. Each source is skipped if the manifest has it, so an interrupted run goes on. Nothing of this is
redistributed or needed to use simsearch.
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

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

from hashes import Alike, Near, difference_hash, mean_colours
from PIL import Image, ImageStat

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SHORT, LONG = 160, 320
SMALLEST, LONGEST, FLATTEST = 120, 3.0, 6.0
SHARD = 39_000_000
JUDGES = ("tiny-imagenet/val.zip", "imagenette160/val.zip", "cifar10/test.zip", "corel", "clothing")
COLUMNS = ("shard", "member", "source", "role", "path", "content", "hash", "colours", "width", "height", "label")
Image.MAX_IMAGE_PIXELS = 80_000_000


@dataclass(frozen=True)
class Photo:
    """The outcome for a picture: why it is left out, or the hash of its bytes, its difference hash, mean colours, width
    and height, and a file with it."""

    path: str
    reason: str = ""
    content: str = ""
    hash: int = 0
    colours: bytes = b""
    size: tuple[int, int] = (0, 0)
    encoded: bytes = b""


@dataclass(frozen=True)
class Origin:
    """A row of pictures.tsv: where pictures come from, what for, and how large a share of a batch they are.

    most: how many pictures are taken at most; 0 for all. smallest: shorter sides below this are left out.
    """

    name: str
    role: str
    share: float
    include: str
    most: int
    smallest: int

    @property
    def packed(self) -> bool:
        """True for an archive of the data folder; False for a repository."""
        return self.name.endswith(".zip")


def origins() -> list[Origin]:
    """Those whose pictures judge first, then the large pictures, then the small ones."""
    with Path(__file__).with_name("pictures.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = [
        Origin(
            row["repository"],
            row["role"],
            float(row["share"]),
            row["include"],
            int(row["most"] or 0),
            int(row["smallest"] or SMALLEST),
        )
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
        for entry in (
            subprocess.run(command, capture_output=True, check=True).stdout.decode("utf8", "replace").split("\0")
        ):
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
    return subprocess.Popen(
        ["git", f"--git-dir={folder}", "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


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


def process(task: tuple[str, int, list[tuple[str, str]]]) -> list[Photo]:
    """Some pictures of an archive or a git directory, each by its address and path."""
    place, smallest, some = task
    found = []
    for address, path in some:
        content = read(place, address)
        picture = prepare(content, smallest)
        if isinstance(picture, str):
            found.append(Photo(path, picture))
            continue
        buffer = io.BytesIO()
        if min(picture.size) < SHORT and picture.size == Image.open(io.BytesIO(content)).size:
            buffer.write(content)  # it is small as it is
        else:
            picture.save(buffer, "JPEG", quality=88)
        digest = hashlib.sha256(content).hexdigest()[:24]
        hash_, colours = difference_hash(picture), mean_colours(picture)
        found.append(Photo(path, "", digest, hash_, colours, picture.size, buffer.getvalue()))
    return found


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
    """Returns True if a picture of the labelled sets is kept for choices: about one in 36, by its name."""
    digest = hashlib.sha256(f"{origin.name}/{path}".encode()).digest()
    return origin.packed and int.from_bytes(digest[:4], "big") % 36 == 0


def lay_out(data: Path, snapshots: Path, out: Path, hashes: Path | None, processes: int, most: int) -> None:
    """Every source into shards, or `most` pictures of each, evenly spaced."""
    out.mkdir(parents=True, exist_ok=True)
    shards, judges, kept = Shards(out), judging(data, hashes), Alike(3, 16)
    contents: set[str] = set()
    for row in shards.past:
        contents.add(row["content"])
        if row["role"] == "train":
            kept.add(int(row["hash"], 16), bytes.fromhex(row["colours"]))
        else:
            judges.add(int(row["hash"], 16))
    done = {row["source"] for row in shards.past}
    with Pool(processes) as pool:
        for origin in origins():
            if origin.name in done:
                continue
            began, counts = time.monotonic(), Counter[str]()
            found = members(origin, data, snapshots)
            if most and len(found) > most:
                found = [found[n * len(found) // most] for n in range(most)]
            place = str(data / origin.name if origin.packed else git_folder(snapshots, origin.name))
            tasks = [(place, origin.smallest, found[n : n + 50]) for n in range(0, len(found), 50)]
            for some in pool.imap(process, tasks):
                for photo in some:
                    counts[keep(photo, origin, shards, judges, kept, contents)] += 1
            shards.end()
            told = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
            line = f"{origin.name}\t{len(found)}\t{told}\t{len(found) / (time.monotonic() - began):.0f}/s"
            with (out / "counts.tsv").open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)


def keep(photo: Photo, origin: Origin, shards: Shards, judges: Near, kept: Alike, contents: set[str]) -> str:
    """Puts a photograph into the shards unless there is a reason not to; the reason, or what it is kept for."""
    if photo.reason:
        return photo.reason
    role = "held-out" if held_out(origin, photo.path) else origin.role
    if photo.content in contents:
        return "seen"
    if role == "train" and photo.hash in judges:
        return "judges"
    if kept.has(photo.hash, photo.colours):
        return "alike"
    contents.add(photo.content)
    if role == "train":
        kept.add(photo.hash, photo.colours)
    else:
        judges.add(photo.hash)
    suffix = "jpg" if photo.encoded[:2] == b"\xff\xd8" else "webp" if photo.encoded[8:12] == b"WEBP" else "png"
    facts = (
        origin.name,
        role,
        photo.path,
        photo.content,
        f"{photo.hash:016x}",
        photo.colours.hex(),
        *photo.size,
        Path(photo.path).parent.name,
    )
    shards.add(f"{photo.content}.{suffix}", photo.encoded, facts)
    return role


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("snapshots", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hashes", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--most", type=int, default=0, help="largest number of pictures of each source, for a trial")
    options = parser.parse_args()
    lay_out(options.data, options.snapshots, options.out, options.hashes, options.processes, options.most)


if __name__ == "__main__":
    main()
