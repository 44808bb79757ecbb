"""Decodes labelled images into arrays for training.

Each image is decoded once, scaled, cut to a square of P x P pixels as in Krizhevsky et al. 2012, section 2, and cached
as uint8. The next training on the same files does not decode them again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import cache
from simsearch.errors import ImageError, SimsearchError
from simsearch.images import decode
from simsearch.images.preprocessing import FILTERS, centre_crop, shorter_side

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
from simsearch.common.progress import Progress
from simsearch.images.sources.labelled import LabelledImage
from simsearch.models.training_record import LENGTH, digest_of

CACHE = 2
"""Version of the format of cached files."""


class ArrayView:
    """Some rows of an (N, ...) array, which may be memory-mapped; no row is read before it is accessed."""

    def __init__(self, array: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self.array, self.rows = array, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[Any]:
        found: NDArray[Any] = self.array[self.rows[key]]
        return found


@dataclass(frozen=True)
class TrainingSet:
    """Decoded images with their labels.

    pixels: (N, P, P, 3) uint8. labels: (N,) int64, indices into `classes`.
    teacher: (N, T) float, features of a teacher network to imitate, or None.
    digests: (N, LENGTH) uint8, the first bytes of the SHA-256 of each image file (see `training_record`), or None.
    pixels and teacher may be memory-mapped or an `ArrayView`. Raises SimsearchError if pixels, labels and teacher have
    different lengths.
    """

    pixels: Any
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    teacher: Any = None
    digests: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise SimsearchError(f"there are {len(self.pixels)} images, but {len(self.labels)} labels")
        if self.teacher is not None and len(self.teacher) != len(self.pixels):
            raise SimsearchError(f"there are {len(self.pixels)} images, but teacher features for {len(self.teacher)}")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[np.int64]) -> TrainingSet:
        """Returns the images in these rows, without copying their pixels."""
        teacher = None if self.teacher is None else ArrayView(self.teacher, rows)
        digests = None if self.digests is None else self.digests[rows]
        pixels = ArrayView(self.pixels, rows)
        return replace(self, pixels=pixels, labels=self.labels[rows], teacher=teacher, digests=digests)

    def file_digests(self) -> list[bytes]:
        """Returns a list with the digest of each image as `bytes`; an empty list if `digests` is None."""
        return [] if self.digests is None else [row.tobytes() for row in self.digests]


def split(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divides a training set: returns the rows to train on and the rows held out for validation, both ascending.

    `fraction` of each class is held out, but never all images of a class.
    """
    random = np.random.default_rng((2012, seed))
    held: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        held.append(rows[: min(round(fraction * len(rows)), len(rows) - 1)])
    out = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), out), out


def load(
    pictures: Sequence[LabelledImage],
    recipe: Preprocessing,
    classes: tuple[str, ...],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TrainingSet, list[tuple[str, str]]]:
    """Decodes images to squares, or reads them from the cache if the same files were decoded before.

    pictures: images whose labels are all in `classes`.
    recipe: the preprocessing; the side of the squares is max(recipe.resize, recipe.crop) pixels.
    progress: called with the number of images decoded so far and the number of all images.
    Returns the decoded images, and (path, reason) for each image that could not be decoded.
    """
    digest = hashlib.sha256(repr((CACHE, recipe.resize, recipe.crop, recipe.interpolation)).encode())
    for p in pictures:
        facts = (p.source.kind, os.path.realpath(p.source.root), p.path, p.size, p.stamp)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
    folder = cache.cached_folder(
        f"pixels-{digest.hexdigest()[:32]}", lambda path: _decode(path, pictures, recipe, progress)
    )
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    failures: dict[str, str] = json.loads((folder / "failures.json").read_text())
    if pixels.nbytes < _memory() // 8 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")):  # processes share it
        pixels = np.array(pixels)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[picture.label] for picture in pictures], np.int64)
    whole = TrainingSet(pixels, labels, classes, digests=np.load(folder / "digests.npy"))
    if not failures:
        return whole, []
    bad = {int(row) for row in failures}
    kept = np.array([row for row in range(len(labels)) if row not in bad], np.int64)
    shown = [(pictures[int(row)].source.display(pictures[int(row)].path), why) for row, why in failures.items()]
    return whole.select(kept), shown


def _decode(folder: Path, pictures: Sequence[LabelledImage], recipe: Preprocessing, progress: Progress) -> None:
    """Writes decoded images into a folder: pixels.npy, digests.npy, failures.json (a dict from row to error)."""
    side = max(recipe.resize, recipe.crop)
    shape = (len(pictures), side, side, 3)
    out = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)
    _reserve(folder / "pixels.npy")
    failures: dict[str, str] = {}
    digests = np.zeros((len(pictures), LENGTH), np.uint8)

    def one(row: int) -> None:
        picture = pictures[row]
        try:
            data = picture.source.read(picture.path)
            digests[row] = np.frombuffer(digest_of(data), np.uint8)
            image = decode.decode_image(data, recipe.resize).image
            out[row] = centre_crop(shorter_side(image, recipe.resize, FILTERS[recipe.interpolation]), side)
        except ImageError as error:
            failures[str(row)] = str(error)

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        try:
            for done, _ in enumerate(pool.map(one, range(len(pictures))), 1):
                progress(done, len(pictures))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    out.flush()
    np.save(folder / "digests.npy", digests)
    (folder / "failures.json").write_text(json.dumps(failures))


def _reserve(path: Path) -> None:
    """Allocates the disk space of a file. Raises OSError if the disk is full.

    Without this, the process would be killed later, when it writes to the memory-mapped file on the full disk.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system cannot allocate in advance
                    return
                raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _memory() -> int:
    """Returns the bytes of memory of this machine, or 8 GiB if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 8 << 30
