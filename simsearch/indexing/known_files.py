"""Which files' contents an index has features of: asked one by one, so that adding one image to millions is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simsearch.storage.database import Database

Place = tuple[int, int, int]
"""The row of a file's features, and the image's width and height."""


class KnownFiles:
    """By the SHA-256 of a file, where its features are, for the holder of the writer lock. Safe for many threads.

    What was found once stays known: a row outlives the item that owned it until the index is compacted.
    """

    def __init__(self, store: Database) -> None:
        self._store = store
        self._known: dict[bytes, Place] = {}

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and self._get(digest) is not None

    def __getitem__(self, digest: bytes) -> Place:
        found = self._get(digest)
        if found is None:
            raise KeyError(digest)
        return found

    def add(self, digest: bytes, place: Place) -> None:
        """Notes features that are about to be committed, unless there are some of the same content."""
        self._known.setdefault(digest, place)

    def _get(self, digest: bytes) -> Place | None:
        found = self._known.get(digest)
        if found is None and (found := self._store.content(digest)) is not None:
            found = self._known.setdefault(digest, found)
        return found
