"""Measures how far apart near-identical pictures are, by making changed copies of an index's own pictures.

Distances are those of the features. A measurement takes seconds, since it decodes dozens of pictures in full size and
computes the features of their copies. The last result of each index is therefore cached. It is reused until the
pictures that are measured, or the model, change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from PIL import Image

from simsearch.common import outside_json
from simsearch.common.atomic_files import atomic_write
from simsearch.common.cache import cache_dir
from simsearch.common.progress import Progress, no_progress
from simsearch.errors import ImageError, ImageTooLargeError, SimsearchError, UsageError
from simsearch.images import decode, likeness
from simsearch.images.perturb import COPIES
from simsearch.images.sources import recorded
from simsearch.search import similarity
from simsearch.search.searcher import NEAR_IDENTICAL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.model import IndexModel
    from simsearch.storage.protocols import OpenIndex
    from simsearch.storage.reader import Item

ORIGINALS = 32
"""Number of pictures that are copied for a measurement."""

FARTHEST = 0.35
"""Upper limit of the measured distance, in units of the median distance of random pairs of items.

See also `searcher.NEAR_IDENTICAL`.
"""

BEYOND = 0.1
"""Pixels are also compared for distances that exceed the measured distance by at most this; unit as for `FARTHEST`."""

FAITHFUL = ("JPEG 50", "scaled to 75 %", "cropped by 5 %", "brighter by 10 %")
"""The distance is measured on copies with these changes. The share of found copies is reported for all changes."""

_METHOD = 2
"""Version of the measurement; increased when it changes, so that cached results of other versions are not used."""


@dataclass(frozen=True)
class Threshold:
    """The limits up to which two pictures count as near-identical.

    reach: the largest distance at which the pixels of two pictures are compared. The pictures are near-identical if
    their pixels agree. If the reach is 0, no pixels are compared.
    distance: the largest distance of near-identical pictures if their pixels are not compared. Pixels are not compared
    if the reach is 0 or if one of the pictures cannot be read.
    copies: for the name of each change (see `perturb.COPIES`), the fraction of copies with this change that are found.
    """

    distance: float
    copies: dict[str, float] = field(default_factory=dict)
    reach: float = 0.0

    @property
    def farthest(self) -> float:
        """The largest distance that a near-identical pair can have: the larger of `distance` and `reach`."""
        return max(self.distance, self.reach)


def copy_threshold(
    index: OpenIndex,
    model: IndexModel,
    seed: int = 0,
    progress: Progress = no_progress,
    *,
    largest: int | None = None,
) -> Threshold:
    """Measures how far slightly changed copies of an index's own pictures are from their originals.

    Returns a threshold. Its `distance` is the 0.9 quantile of the distances of copies from their originals, for the
    changes in FAITHFUL, but at most FARTHEST * m, where m is the median distance of random pairs. Its `reach` is
    `distance` + BEYOND * m. If no picture can be read or the model's weights are missing, `distance` is
    NEAR_IDENTICAL * m, as in the search option `dedup`, and `reach` is 0.
    seed: chooses the pictures.
    progress: called with the number of pictures done and the number of all pictures; not called for a cached result.
    largest: the largest number of pixels of a picture to copy; None for no limit. One picture is in memory at a time.
    """
    median = similarity.median(index.meta.distances)
    with index.reading() as reader:
        ids, _ = reader.ids_and_rows()
        drawn = [reader.item(int(n)) for n in np.random.default_rng(seed).permutation(ids)[: 2 * ORIGINALS]]
    kept, key = _kept_file(index, largest), _key(index, model, median, drawn, largest)
    if (known := _read(kept, key)) is not None:
        return known
    rows: list[NDArray[np.float64]] = []
    agree: list[NDArray[np.bool_]] = []
    try:
        model.load(expected=ORIGINALS * (1 + len(COPIES)))
        for image in _originals(index, drawn, largest):
            views: list[NDArray[np.uint8]] = []
            features = model.features(_with_copies(image, views)).astype(np.float64)  # (1 + changes, D)
            agree.append(likeness.are_copies(np.stack(views[:1] * len(COPIES)), np.stack(views[1:])))
            rows.append(np.linalg.norm(features[1:] - features[0], axis=1))
            progress(len(rows), ORIGINALS)
    except SimsearchError:  # for example, the model's weights are missing
        rows = []
    if not rows:
        return Threshold(NEAR_IDENTICAL * median)
    progress(ORIGINALS, ORIGINALS)
    found = dict(zip(COPIES, np.stack(rows, 1), strict=True))
    distance = float(np.quantile(np.concatenate([found[name] for name in FAITHFUL]), 0.9))
    if median:
        distance = min(distance, FARTHEST * median)
    reach = distance + BEYOND * median
    seen = dict(zip(COPIES, np.stack(agree, 1), strict=True))
    shares = {name: float((seen[name] & (d <= reach)).mean()) for name, d in found.items()}
    threshold = Threshold(distance, shares, reach)
    if len(rows) == min(ORIGINALS, len(drawn)):  # else some files are missing, which may come back
        _write(kept, key, threshold)
    return threshold


def _originals(index: OpenIndex, drawn: Sequence[Item], largest: int | None) -> Iterator[Image.Image]:
    """Yields up to ORIGINALS pictures of the drawn items, in full size; skips pictures that cannot be read."""
    count = 0
    for item in drawn:
        try:
            image = _picture(index, item, largest)
        except ImageError:
            continue
        yield image
        count += 1
        if count == ORIGINALS:
            return


def _with_copies(image: Image.Image, views: list[NDArray[np.uint8]]) -> Iterator[Image.Image]:
    """Yields an image and its changed copies; appends a small version of each, for comparing pixels, to `views`."""
    views.append(likeness.view(image))
    yield image
    for change in COPIES.values():
        copy = change(image)
        views.append(likeness.view(copy))
        yield copy


def _picture(index: OpenIndex, item: Item, largest: int | None) -> Image.Image:
    """Returns the picture of an item in full size.

    Raises ImageError if the picture cannot be read, or if it has more than `largest` pixels.
    """
    if largest is not None and item.width * item.height > largest:
        raise ImageTooLargeError(f"the picture has more than {largest:,} pixels")
    with index.reading() as reader:
        source = index.sources(reader)[item.source]
    with recorded.open_recorded(source, item.path, item.digest, decodes=False) as file:
        return decode.decode_image(file).image


def _kept_file(index: OpenIndex, largest: int | None) -> Path:
    """Returns the path of an index's cache file. The path stays the same when the content of the index changes."""
    name = hashlib.sha256(json.dumps([str(index.path), largest]).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_dir() / "copies" / f"{name[:32]}.json"


def _key(index: OpenIndex, model: IndexModel, median: float, drawn: Sequence[Item], largest: int | None) -> str:
    """Returns a digest of everything that a result depends on."""
    meta = index.meta
    parts = [
        *(_METHOD, PIL.__version__, list(COPIES), largest, median),
        *(meta.weights_sha256, meta.recipe, meta.features, meta.descriptor, model.precision),
        [item.digest.hex() for item in drawn],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path, key: str) -> Threshold | None:
    """Reads the cached result; None if there is none, or if it does not match `key`."""
    try:
        content = outside_json.parse(path.read_bytes())
        if content["key"] != key:
            return None
        copies = {str(name): float(share) for name, share in content["copies"].items()}
        return Threshold(float(content["distance"]), copies, float(content["reach"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(path: Path, key: str, threshold: Threshold) -> None:
    """Writes a result to the cache; does nothing if the cache folder is not writable."""
    with contextlib.suppress(OSError, UsageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"key": key, **asdict(threshold)}).encode(), follow_links=False)
