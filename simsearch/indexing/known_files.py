"""Finds the features that an index already has for the content of a file.

The content of a file is looked up in the database only when the file is read, so that adding one image to an index of
millions is quick. In an empty index, no look-up is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simsearch.storage.database import Database

Place = tuple[int, int, int]
"""The row of a file's features, and the image's width and height in pixels."""


class KnownFiles:
    """Maps the SHA-256 digest of a file to its `Place`: the row of its features, and the image's width and height.

    Thread-safe; the caller must hold the writer lock. A digest stays in the mapping when its item is removed, since the
    features stay on disk until the index is compacted.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[bytes, Place] = {}
        with database.reading() as reader:
            self._complete = not reader.count()  # the writer lock keeps others from adding items

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and self._get(digest) is not None

    def __getitem__(self, digest: bytes) -> Place:
        found = self._get(digest)
        if found is None:
            raise KeyError(digest)
        return found

    def add(self, digest: bytes, place: Place) -> None:
        """Adds the place of features that are about to be committed, unless the digest is in the mapping already."""
        self._known.setdefault(digest, place)

    def _get(self, digest: bytes) -> Place | None:
        found = self._known.get(digest)
        if found is None and not self._complete and (found := self._database.find_content(digest)) is not None:
            found = self._known.setdefault(digest, found)
        return found
