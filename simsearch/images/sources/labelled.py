"""Lists labelled images, for training and evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simsearch.errors import UsageError
from simsearch.images.sources import resolve
from simsearch.images.sources.base import folder_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from simsearch.images.sources.base import Source


@dataclass(frozen=True)
class LabelledImage:
    """A labelled image of a source. path, size, stamp: as in `Entry`."""

    source: Source
    path: str
    size: int
    stamp: int
    label: str


def list_labelled(
    names: Sequence[str | os.PathLike[str]],
    exclude: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> list[LabelledImage]:
    """Lists the labelled images of the named sources, in order.

    If a source has labels of its own, as a manifest does, they are used. Otherwise the label of an image is the name of
    its folder, and images at the top of the source have none. Images without a label are left out.
    exclude: patterns of images to leave out.
    note: called with a sentence about each pattern that matches nothing.
    Raises UsageError for a source in which no image has a label.
    """
    found: list[LabelledImage] = []
    unmatched = list(exclude)
    for name in names:
        source = resolve.resolve(os.fspath(name))
        listing = source.listing(exclude)
        unmatched = [pattern for pattern in unmatched if pattern not in listing.matched]
        entries = [entry for entry in listing.entries if entry.problem is None]
        labels = [entry.label for entry in entries] if source.labelled else folder_labels(entries)
        pairs = [(entry, label) for entry, label in zip(entries, labels, strict=True) if label]
        if not pairs:
            what = "no image has a label" if entries else "there are no images"
            raise UsageError(f"{name}: {what}", hint="use a folder for each class, or a manifest with a column `label`")
        found += [LabelledImage(source, entry.path, entry.size, entry.stamp, label) for entry, label in pairs]
    for pattern in unmatched:
        note(f"--exclude {pattern} matched nothing")
    return found
