"""From labelled sources to arrays that a training can draw batches from.

Pictures are decoded once, scaled and cut to the P x P square that the paper keeps (section 2), and kept as uint8 in the
cache, where the next training over the same files finds them.
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


class ArrayView:
    """Some rows of an array, read when they are asked for: a view of (N, ...) that may lie on disk."""

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
    """Decoded images: pixels (N, P, P, 3) uint8, labels (N,) int64, class names, teacher (N, T) or None.

    pixels and teacher may be `Rows`.
    """

    pixels: Any
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    teacher: Any = None

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise SimsearchError(f"{len(self.pixels)} images but {len(self.labels)} labels")
        if self.teacher is not None and len(self.teacher) != len(self.pixels):
            raise SimsearchError(f"{len(self.pixels)} images but {len(self.teacher)} teacher rows")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[np.int64]) -> TrainingSet:
        """The images of these rows."""
        teacher = None if self.teacher is None else ArrayView(self.teacher, rows)
        return replace(self, pixels=ArrayView(self.pixels, rows), labels=self.labels[rows], teacher=teacher)


def split(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows held out, ascending: `share` of each class is held out, but never all of it."""
    random = np.random.default_rng((2012, seed))
    held: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        held.append(rows[: min(round(share * len(rows)), len(rows) - 1)])
    out = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), out), out


def load(
    pictures: Sequence[LabelledImage],
    recipe: Preprocessing,
    classes: tuple[str, ...],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TrainingSet, list[tuple[str, str]]]:
    """Decodes what is not in the cache yet: the set, and (path, reason) of images that could not be decoded.

    Stored are squares of max(resize, crop) pixels. Images of classes not in `classes` must have been left out.
    """
    digest = hashlib.sha256(repr((recipe.resize, recipe.crop, recipe.interpolation)).encode())
    for p in pictures:
        facts = (p.source.kind, os.path.realpath(p.source.root), p.path, p.size, p.stamp)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
    folder = cache.cached_folder(
        f"pixels-{digest.hexdigest()[:32]}", lambda path: _decode(path, pictures, recipe, progress)
    )
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    failures: dict[str, str] = json.loads((folder / "failures.json").read_text())
    if pixels.nbytes < _memory() // 8 // int(os.environ.get("LOCAL_WORLD_SIZE", "1")):  # processes of torchrun
        pixels = np.array(pixels)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[picture.label] for picture in pictures], np.int64)
    whole = TrainingSet(pixels, labels, classes)
    if not failures:
        return whole, []
    bad = {int(row) for row in failures}
    kept = np.array([row for row in range(len(labels)) if row not in bad], np.int64)
    shown = [(pictures[int(row)].source.display(pictures[int(row)].path), why) for row, why in failures.items()]
    return whole.select(kept), shown


def _decode(folder: Path, pictures: Sequence[LabelledImage], recipe: Preprocessing, progress: Progress) -> None:
    side = max(recipe.resize, recipe.crop)
    shape = (len(pictures), side, side, 3)
    out = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)
    _reserve(folder / "pixels.npy")
    failures: dict[str, str] = {}

    def one(row: int) -> None:
        picture = pictures[row]
        try:
            image = decode.decode_image(picture.source.read(picture.path), recipe.resize).image
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
    (folder / "failures.json").write_text(json.dumps(failures))


def _reserve(path: Path) -> None:
    """Claims the disk space of a file. Raises OSError: of a mapped file, a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
                    return
                raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _memory() -> int:
    """Bytes of memory in this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 8 << 30
