"""Finds the items that an index has for a file, or the reason why there are none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simsearch.common.regular_files import open_nonblocking
from simsearch.errors import UsageError
from simsearch.images.decode import EXTENSIONS, left_out, looks_like_image
from simsearch.images.sources import resolve
from simsearch.images.sources.base import SEPARATOR, FolderSource
from simsearch.images.sources.exclude import Exclusion
from simsearch.images.sources.remote import addresses
from simsearch.storage.lookup import matcher

if TYPE_CHECKING:
    from simsearch.storage.protocols import OpenIndex
    from simsearch.storage.reader import SourceRow

GONE = "there is no such file"
HIDDEN = "names that begin with a dot are left out"
NEW = "it came after the last build, or was removed from the index; `simsearch build` adds it"
NOT_LISTED = "its source does not list it as an image"
NOT_AN_IMAGE = "it is not an image"
NOTHING = "nothing in it is indexed"
SINGLE = "only single files of its folder were added; `simsearch add` adds it"


@dataclass(frozen=True)
class Presence:
    """The items that an index has for a file, a folder or an archive, or the reason why there are none.

    path: the file, folder or archive, as the caller wrote it. items: the ids of the items.
    failures: (path, reason) of each image in it that could not be indexed.
    reason: why there are neither items nor failures; None if there are items or failures.
    """

    path: str
    items: tuple[int, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    reason: str | None = None

    @property
    def complete(self) -> bool:
        """True if there are items and no failures."""
        return bool(self.items) and not self.failures


def find_presence(index: OpenIndex, names: Sequence[str]) -> list[Presence]:
    """Returns for each name the items that the index has for it, or the reason why there are none.

    names: files, folders, archives, images in archives (`photos.zip!/cat.jpg`), or globs.
    Raises UsageError for an empty name, and for a Milvus collection, which does not record failures.
    """
    full = [os.path.abspath(os.path.expanduser(name)) if name else name for name in names]
    # an existing file is matched by its full path only: a file in some source may have the same relative path
    tests = [matcher(path if os.path.lexists(path) else name) for path, name in zip(full, names, strict=True)]
    items: list[list[int]] = [[] for _ in names]
    with index.reading() as reader:
        sources = index.sources(reader)
        failed = [(sources[source].display(path), path, reason) for source, path, reason in reader.failures()]
        for item in reader.items():
            shown = sources[item.source].display(item.path)
            for number, test in enumerate(tests):
                if test(shown, item.path):
                    items[number].append(item.id)
        rows = [(row, index.root_of(row)) for row in reader.sources()]
    found = []
    for name, path, test, ids in zip(names, full, tests, items, strict=True):
        failures = tuple((shown, reason) for shown, stored, reason in failed if test(shown, stored))
        reason = None if ids or failures else _absence(path, rows)
        found.append(Presence(name, tuple(ids), failures, reason))
    return found


def _absence(full: str, rows: Sequence[tuple[SourceRow, str]]) -> str:
    """Returns the reason why nothing at the absolute path `full` is in the index.

    rows: (record, current location) of each source.
    """
    for row, root in rows:
        if row.kind == FolderSource.kind and full.startswith(root.rstrip(os.sep) + os.sep):
            return _absence_in_folder(full, os.path.relpath(full, root), row, root)
        if row.kind != "dataset" and not addresses.is_kind(row.kind) and (reason := _absence_in(full, row, root)):
            return reason
    if not os.path.lexists(full) and SEPARATOR not in full:
        return GONE
    known = ", ".join(root for _, root in rows[:3]) + ", …" * (len(rows) > 3)
    return f"it is in no source of the index ({known}); `simsearch add` adds it"


def _absence_in_folder(full: str, path: str, row: SourceRow, root: str) -> str:
    """Returns the reason why a file or folder that lies in a folder source is not in the index.

    full: its absolute path. path: its path relative to the source. row, root: the source's record and current location.
    """
    if not os.path.lexists(full):
        return GONE
    if any(part.startswith(".") for part in path.split(os.sep)):
        return HIDDEN
    leave_out = Exclusion(row.options.get("exclude", ()), root)
    if leave_out(path, os.path.isdir(full)):
        return f"--exclude {' '.join(sorted(leave_out.matched))} leaves it out"
    if os.path.isdir(full):
        return NOTHING
    try:
        with open(full, "rb", opener=open_nonblocking) as file:
            head = file.read(32)
    except OSError as error:
        return error.strerror or str(error)
    if os.path.splitext(full)[1].lower() not in EXTENSIONS and not looks_like_image(head):
        kind = left_out(full, head)
        return f"{kind}s are not read" if kind else NOT_AN_IMAGE
    return SINGLE if row.options.get("partial") else NEW


def _absence_in(full: str, row: SourceRow, root: str) -> str | None:
    """Returns the reason why an image is not in the index, if its path belongs to an archive or table; otherwise None.

    The path belongs to the archive or table if it is inside (`photos.zip!/cat.jpg`) or listed there.
    full: the absolute path of the image. row, root: the record and the current location of the archive or table.
    """
    inside = full.startswith(root + SEPARATOR)
    if not os.path.exists(root):
        return f"there is no {root} now" if inside else None
    try:
        source = resolve.reopen(row.kind, root)
    except UsageError as error:
        return str(error) if inside else None
    try:
        entries = source.listing(row.options.get("exclude", ())).entries
        entry = next((entry for entry in entries if source.display(entry.path) == full), None)
    finally:
        source.close()
    if entry is not None:
        return entry.problem or NEW
    return NOT_LISTED if inside else None
