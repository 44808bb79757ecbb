"""Images, archives and listings for tests of sources."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from simsearch.images.sources import resolve
from simsearch.images.sources.base import Listing


def png(seed: int = 0) -> bytes:
    """A small picture; another seed gives another one."""
    out = io.BytesIO()
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(colours.repeat(8, 0).repeat(8, 1)).save(out, "PNG")
    return out.getvalue()


def put(root: Path, *names: str) -> Path:
    """Writes a different picture to each path below a folder."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return root


def listed(place: Path, exclude: Sequence[str] = ()) -> Listing:
    source = resolve.resolve(str(place))
    try:
        return source.listing(exclude)
    finally:
        source.close()


def paths(listing: Listing) -> list[str]:
    return [entry.path for entry in listing.entries]


# -- archives


def write_zip(place: Path, *names: str, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(place, "w", compression) as archive:
        for seed, name in enumerate(names):
            archive.writestr(name, png(seed))
    return place


def write_tar(place: Path, *names: str) -> Path:
    compression = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "xz": "xz"}.get(place.suffix[1:], "")
    with tarfile.open(str(place), f"w:{compression}") as archive:  # type: ignore[call-overload]
        for seed, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(png(seed)), 1_000_000
            archive.addfile(member, io.BytesIO(png(seed)))
    return place
