"""Follows the sources of an index until `stop` is set (see `follow`): indexes changed files a moment after the change.

The operating system reports changes (this needs the extra `[watch]`). Then the ordinary `sync` compares the whole
sources with the index, so that nothing depends on the order or the completeness of the reports. A file that is still
being written is indexed as it is, and again when it has changed. If a folder vanishes, its items stay in the index;
when it is back, it is compared with the index again.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simsearch.errors import IndexReplacedError, MissingExtraError, SimsearchError, UsageError
from simsearch.images.sources.remote import addresses
from simsearch.indexing.options import Summary

if TYPE_CHECKING:
    from simsearch.storage.index import Index

TICK = 1000
"""Milliseconds between two checks for folders that vanished or came back, and for changed archives and tables."""

QUIET, LONGEST = 200, 3000
"""Changes are indexed after QUIET milliseconds without a further change, at the latest after LONGEST milliseconds."""

Identity = tuple[int, ...]


@dataclass(frozen=True)
class _Places:
    """The sources of an index, as they are on disk at one moment.

    folders: maps the path of each existing folder to its device and inode number.
    files: maps the path of each existing archive or table to its device, inode number, size and mtime.
    gone: the paths of sources that do not exist.
    remote: the addresses of sources on other machines, which are not followed.
    """

    folders: Mapping[str, Identity]
    files: Mapping[str, Identity]
    gone: frozenset[str]
    remote: frozenset[str]

    @classmethod
    def of(cls, index: Index) -> _Places:
        folders: dict[str, Identity] = {}
        files: dict[str, Identity] = {}
        gone = set()
        with index.reading() as reader:
            rows = [(row.kind, index.root_of(row)) for row in reader.sources() if row.kind != "dataset"]
        remote = frozenset(root for kind, root in rows if addresses.is_kind(kind))
        for kind, root in rows:
            if root in remote:
                continue
            try:
                facts = os.stat(root)
            except OSError:
                gone.add(root)
                continue
            if kind == "folder":
                folders[os.path.realpath(root)] = facts.st_dev, facts.st_ino
            else:
                files[root] = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
        return cls(folders, files, frozenset(gone), remote)


def follow(
    index: Index, update: Callable[[], Summary], say: Callable[[Summary | str], None], stop: threading.Event
) -> None:
    """Updates an index whenever its sources change, until `stop` is set. Begins with an update.

    update: compares the sources with the index and applies the differences, with `BuildOptions.keep_gone`.
    say: called with the summary of each update that changed anything, and with a sentence for each new problem.
    Raises MissingExtraError without watchfiles, UsageError if there is nothing to follow or the system cannot watch the
    folders, and IndexReplacedError if the index was replaced at its path.
    """
    watch = check_available()
    problem = ""

    def try_update() -> bool:
        """Updates the index; returns False if the update failed and must be repeated."""
        nonlocal problem
        try:
            summary = update()
        except IndexReplacedError:
            raise
        except SimsearchError as error:
            if str(error) != problem:
                problem = str(error)
                say(problem)
            return False
        problem = ""
        if summary.added or summary.updated or summary.moved or summary.removed or summary.failed:
            say(summary)
        return True

    gone: frozenset[str] = frozenset()
    remote: frozenset[str] = frozenset()
    while not stop.is_set():
        places = _Places.of(index)
        for root in sorted(places.remote - remote):
            say(f"{root} is on another machine and is not followed; another `build` reads what has changed there")
        remote = places.remote
        if remote and not (places.folders or places.files or places.gone):
            raise UsageError(
                "no source is on this machine, so there is nothing to follow", hint="run `build` without --watch"
            )
        for root in sorted(places.gone - gone):
            say(f"{root} is gone; its items stay in the index")
        gone = places.gone
        due = True  # files may have changed before the watch began
        for changed in _reports(watch, index, places, stop):
            if changed or due:
                due = not try_update()
            if _Places.of(index) != places:
                break


def check_available() -> Callable[..., Any]:
    """Returns the function `watchfiles.watch`. Raises MissingExtraError without watchfiles."""
    try:
        found: Callable[..., Any] = importlib.import_module("watchfiles").watch
    except ImportError as error:
        raise MissingExtraError("--watch", "watch") from error
    return found


def _reports(watch: Callable[..., Any], index: Index, places: _Places, stop: threading.Event) -> Any:
    """Yields True after changes in the folders, and False after each `TICK` milliseconds without changes.

    Ends if a folder vanishes or `stop` is set. Changes of hidden files and of the index itself do not count.

    watch: the function `watchfiles.watch`. places: the sources; only their folders are watched.
    Raises UsageError if the system cannot watch the folders.
    """
    if not places.folders:
        while not stop.wait(TICK / 1000):
            yield False
        return
    own = os.path.realpath(index.path)

    def matters(change: object, path: str) -> bool:
        if path == own or path.startswith(own + os.sep):
            return False
        folder = max((f for f in places.folders if path.startswith(f.rstrip(os.sep) + os.sep)), key=len, default="")
        return not any(part.startswith(".") for part in os.path.relpath(path, folder or os.sep).split(os.sep))

    try:
        for changes in watch(
            *places.folders,
            watch_filter=matters,
            debounce=LONGEST,
            step=QUIET,
            rust_timeout=TICK,
            yield_on_timeout=True,
            stop_event=stop,
            raise_interrupt=True,
            ignore_permission_denied=True,
        ):
            yield bool(changes)
    except FileNotFoundError:  # a folder has vanished
        stop.wait(TICK / 1000)
    except (OSError, RuntimeError) as error:  # watchfiles itself raises RuntimeError
        raise UsageError(
            f"the folders cannot be watched: {getattr(error, 'strerror', None) or error}",
            hint="on Linux, raise fs.inotify.max_user_watches",
        ) from error
