#!/usr/bin/env python3
"""Damaged pictures of every format: none may stop a build, crash the process or take more memory than is estimated.

    scripts/bench/fuzz.py pictures [--count 10000] [--seed 0] [--only FORMAT] [--keep FOLDER]

Draws a picture, saves it in every format that can be written here (30 and more, each in several variants), damages the
files by a seeded generator (bytes, fields, pieces, ends, parts of other files), and decodes each in a child process.
A stop is any exception but ImageError, or more than `SECONDS`; a crash is the end of the child. Memory is the growth of
the peak of resident memory, compared with what `decode_memory` estimates from the header. Prints a line for each format
and each fault, and exits with 1 if there is any. `--keep` writes the files that failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images import decode
from simsearch.images.samples import generate

SECONDS = 20.0
"""A picture that takes longer counts as a stop."""

SLACK = 192 << 20
"""Bytes above the estimate that are allowed: buffers, the scaled copy, and the allocator's own."""

SIDE = 64
"""Pixels of the shorter side that are asked for, as a build does."""

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


# -- whole files


def samples() -> dict[str, list[bytes]]:
    """Returns files of each format that can be written here."""
    picture = generate.draw(next(iter(generate.KINDS)), 1).resize((96, 64))
    other = generate.draw(next(iter(generate.KINDS)), 2).resize((96, 64))
    layers, grey = picture.convert("RGBA"), picture.convert("L")
    layers.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    more: dict[str, Any] = {"save_all": True, "append_images": [other]}
    wanted: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("JPEG", "JPEG", picture, {"exif": exif}),
        ("JPEG", "JPEG", picture, {"progressive": True}),
        ("JPEG", "JPEG", picture, {"restart_marker_rows": 1}),
        ("JPEG", "JPEG", grey, {}),
        ("JPEG", "JPEG", picture.convert("CMYK"), {}),
        ("MPO", "MPO", picture, more),
        ("PNG", "PNG", picture, {"exif": exif}),
        ("PNG", "PNG", picture.quantize(16), {"transparency": 3}),
        ("PNG", "PNG", layers, {}),
        ("PNG", "PNG", deep, {}),
        ("APNG", "PNG", picture, more | {"default_image": True}),
        ("APNG", "PNG", picture, more),
        ("GIF", "GIF", picture, {}),
        ("GIF", "GIF", picture, more),
        ("WEBP", "WEBP", picture, {"exif": exif}),
        ("WEBP", "WEBP", layers, {"lossless": True}),
        ("WEBP animation", "WEBP", layers, more),
        ("AVIF", "AVIF", picture, {"exif": exif}),
        ("AVIF", "AVIF", layers, more),
        ("TIFF", "TIFF", picture, {"exif": exif}),
        ("TIFF", "TIFF", deep, {}),
        ("TIFF", "TIFF", Image.fromarray(np.asarray(grey).astype(np.float32)), {}),
        ("TIFF", "TIFF", picture.quantize(16), more),
        ("TIFF deflate", "TIFF", picture, {"compression": "tiff_adobe_deflate"}),
        ("TIFF LZW", "TIFF", layers, {"compression": "tiff_lzw"}),
        ("TIFF JPEG", "TIFF", picture, {"compression": "jpeg"}),
        ("TIFF fax", "TIFF", picture.convert("1"), {"compression": "group4"}),
        ("BigTIFF", "TIFF", picture, {"big_tiff": True}),
        ("BMP", "BMP", picture, {}),
        ("BMP", "BMP", picture.quantize(16), {}),
        ("BMP", "BMP", layers, {}),
        ("DIB", "DIB", picture, {}),
        ("TGA", "TGA", layers, {"compression": "tga_rle"}),
        ("TGA", "TGA", picture, {}),
        ("PCX", "PCX", picture, {}),
        ("SGI", "SGI", layers, {}),
        ("DDS", "DDS", layers, {}),
        ("ICO", "ICO", layers, {"bitmap_format": "bmp", "sizes": [(32, 32), (64, 64)]}),
        ("ICO", "ICO", layers, {}),
        ("ICNS", "ICNS", layers, {}),
        ("JPEG 2000", "JPEG2000", picture, {}),
        ("JPEG 2000", "JPEG2000", layers, {"no_jp2": True}),
        ("PPM", "PPM", picture, {}),
        ("PGM", "PPM", deep.convert("I"), {}),
        ("PBM", "PPM", picture.convert("1"), {}),
        ("PFM", "PPM", grey.convert("F"), {}),
        ("QOI", "QOI", layers, {}),
        ("XBM", "XBM", picture.convert("1"), {}),
        ("IM", "IM", picture, {}),
        ("MSP", "MSP", picture.convert("1"), {}),
        ("SPIDER", "SPIDER", grey.convert("F"), {}),
        ("BLP", "BLP", picture.quantize(16), {}),
        ("HEIC", "HEIF", picture, {}),
        ("JPEG XL", "JXL", picture, {}),
    ]
    found: dict[str, list[bytes]] = {}
    _register_extras()
    for name, kind, image, options in wanted:
        buffer = io.BytesIO()
        with contextlib.suppress(Exception):  # an extra that is not installed
            image.save(buffer, kind, **options)
            found.setdefault(name, []).append(buffer.getvalue())
    found["PSD"] = [_photoshop(picture)]
    found["PNG by hand"] = [_hidden_default(picture, other)]
    found["DNG"] = [_raw_tiff(np.asarray(deep))]
    return found


def _register_extras() -> None:
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401


def _photoshop(image: Image.Image) -> bytes:
    """A Photoshop file of one layer, not compressed."""
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, image.height, image.width, 8, 3) + bytes(12)
    return head + b"\0\0" + np.asarray(image).transpose(2, 0, 1).tobytes()


def _hidden_default(image: Image.Image, default: Image.Image) -> bytes:
    """An animated PNG whose default image is no frame."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    first, second = (
        zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(part))) for part in (default, image)
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0))
        + chunk(b"acTL", struct.pack(">II", 1, 0))
        + chunk(b"IDAT", first)
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, *image.size, 0, 0, 1, 1, 0, 0))
        + chunk(b"fdAT", struct.pack(">I", 1) + second)
        + chunk(b"IEND", b"")
    )


def _raw_tiff(values: np.ndarray) -> bytes:
    """The raw file of a camera's sensor, (H, W) uint16, in the DNG format."""
    height, width = values.shape
    matrix = struct.pack("<18i", 1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)
    fields = [
        (256, 4, 1, struct.pack("<I", width)),
        (257, 4, 1, struct.pack("<I", height)),
        (258, 3, 1, struct.pack("<H", 16)),
        (259, 3, 1, struct.pack("<H", 1)),
        (262, 3, 1, struct.pack("<H", 32803)),
        (271, 2, 5, b"Test\0"),
        (272, 2, 5, b"Test\0"),
        (273, 4, 1, b""),
        (277, 3, 1, struct.pack("<H", 1)),
        (278, 4, 1, struct.pack("<I", height)),
        (279, 4, 1, struct.pack("<I", values.nbytes)),
        (33421, 3, 2, struct.pack("<HH", 2, 2)),
        (33422, 1, 4, b"\0\1\1\2"),
        (50706, 1, 4, b"\1\4\0\0"),
        (50708, 2, 5, b"Test\0"),
        (50721, 10, 9, matrix),
    ]
    end = 8 + 2 + 12 * len(fields) + 4
    place = end + sum(len(data) for *_, data in fields if len(data) > 4)
    entries = beyond = b""
    for tag, kind, count, data in fields:
        value = struct.pack("<I", place) if tag == 273 else data
        if len(value) > 4:
            value, beyond = struct.pack("<I", end + len(beyond)), beyond + value
        entries += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + beyond + values.tobytes()


# -- damage


def damaged(files: dict[str, list[bytes]], number: int, seed: int, only: str | None = None) -> tuple[str, bytes]:
    """Returns the name of a format and a damaged file of it; the same for the same number and seed."""
    random = np.random.default_rng((seed, number))
    names = sorted(files) if only is None else [only]
    name = names[number % len(names)]
    data = bytearray(files[name][int(random.integers(len(files[name])))])
    for _ in range(int(random.integers(1, 4))):
        _damage(data, random, files)
    return name, bytes(data)


def _damage(data: bytearray, random: np.random.Generator, files: dict[str, list[bytes]]) -> None:
    place = int(random.integers(max(1, len(data))))
    if random.random() < 0.5:  # headers say most
        place = int(random.integers(max(1, min(len(data), 200))))
    kind = int(random.integers(8))
    if kind == 0:
        data[place : place + 1] = bytes([int(random.integers(256))])
    elif kind == 1 and place < len(data):
        data[place] ^= 1 << int(random.integers(8))
    elif kind == 2:
        width = int(random.choice((1, 2, 4)))
        value = int(random.choice(EXTREMES)) & ((1 << 8 * width) - 1)
        data[place : place + width] = value.to_bytes(width, str(random.choice(("little", "big"))))  # type: ignore[arg-type]
    elif kind == 3:
        del data[place if random.random() < 0.5 else len(data) - int(random.integers(1, 30)) :]
    elif kind == 4:
        del data[place : place + int(random.integers(1, 40))]
    elif kind == 5:
        data[place:place] = random.bytes(int(random.integers(1, 40)))
    elif kind == 6:
        start, size = int(random.integers(max(1, len(data)))), int(random.integers(1, 200))
        data[place : place + size] = data[start : start + size]
    else:
        name = str(random.choice(sorted(files)))
        other, size = files[name][0], int(random.integers(1, 200))
        start = int(random.integers(len(other)))
        data[place : place + size] = other[start : start + size]


# -- the child


def child(start: int, stop: int, seed: int, only: str | None) -> None:
    """Decodes the damaged files of some numbers; prints each number before, and a line of JSON after."""
    warnings.simplefilter("ignore")
    files = samples()
    for number in range(start, stop):
        name, data = damaged(files, number, seed, only)
        print(number, flush=True)
        estimate = decode.decode_memory(data, SIDE)
        before = _memory(reset=True)
        outcome, started = "decoded", time.monotonic()
        try:
            image = decode.decode_image(data, SIDE).image
            if image.mode != "RGB":
                outcome = f"stop: mode {image.mode}"
            del image
        except ImageError as error:
            outcome = "refused: " + str(error)
        except Exception as error:
            outcome = f"stop: {type(error).__name__}: {error}"
        seconds, grown = time.monotonic() - started, _memory() - before
        if seconds > SECONDS:
            outcome = f"stop: {seconds:.0f} s"
        elif grown > estimate + SLACK:
            outcome = f"memory: {grown >> 20:,} MB, estimated {estimate >> 20:,} MB ({outcome})"
        print(json.dumps([name, outcome, seconds, grown]), flush=True)


def _memory(reset: bool = False) -> int:
    """Returns the peak of resident memory since the last reset, in bytes; what is resident now if it is reset."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    return 0


# -- the parent


def outcomes(count: int, seed: int, only: str | None) -> Iterator[tuple[int, str, str, float, int]]:
    """Yields number, format, outcome, seconds and memory of each file; starts another child after a crash."""
    files, at = samples(), 0
    while at < count:
        command = [sys.executable, __file__, "--child", str(at), str(count), "--seed", str(seed)]
        command += ["--only", only] if only else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            begun = False
            for line in process.stdout:
                if line.startswith("["):
                    name, outcome, seconds, grown = json.loads(line)
                    yield at, name, outcome, seconds, grown
                    at, begun = at + 1, False
                else:
                    begun = True
        if at < count:
            if not begun:
                raise SystemExit(f"error: the child ended with {process.returncode} before number {at}")
            yield at, damaged(files, at, seed, only)[0], f"crash: exit code {process.returncode}", 0.0, 0
            at += 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="One format.")
    parser.add_argument("--keep", type=Path, help="A folder for the files that failed.")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(*options.child, options.seed, options.only)
        return 0
    started, files = time.monotonic(), samples()
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults: list[str] = []
    slowest, most = 0.0, 0
    for number, name, outcome, seconds, grown in outcomes(options.count, options.seed, options.only):
        kind = outcome.partition(":")[0]
        table[name][kind] += 1
        slowest, most = max(slowest, seconds), max(most, grown)
        if kind in {"stop", "crash", "memory"}:
            faults.append(f"{kind} at number {number}, {name}: {outcome}")
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{number}").write_bytes(damaged(files, number, options.seed, options.only)[1])
    print(f"{'format':<16} {'decoded':>8} {'refused':>8} {'stops':>6} {'crashes':>8} {'memory':>7}")
    for name, counts in sorted(table.items()):
        print(
            f"{name:<16} {counts['decoded']:8,} {counts['refused']:8,} {counts['stop']:6,} {counts['crash']:8,}"
            f" {counts['memory']:7,}"
        )
    print(*faults, sep="\n", end="\n" if faults else "")
    total: collections.Counter[str] = sum(table.values(), collections.Counter())
    print(
        f"{options.count:,} pictures of {len(table)} formats, seed {options.seed}: {total['decoded']:,} decoded,"
        f" {total['refused']:,} refused, {total['stop']} stops, {total['crash']} crashes,"
        f" {total['memory']} above the estimated memory; slowest {slowest:.1f} s, most memory {most >> 20:,} MB;"
        f" {time.monotonic() - started:.0f} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
