"""Moves a duplicate, puts it into the trash, or replaces it by a hard link.

1. The action is written to the journal.
2. The duplicate is renamed to its new path. For a hard link, or a move to another file system, it is renamed to a
temporary path (`Entry.aside`) instead; for such a move, it is first copied to the other file system. Renaming loses no
data, even if another process has just changed the file.
3. The duplicate and the picture to keep are checked again. If one of them has changed or is gone, the duplicate is
renamed back. There are two possible causes. Another process may have changed the files. Or both paths lead to the same
file, for example through two mounts that show different inodes, so that step 2 has renamed the picture to keep.
4. A duplicate at a temporary path is deleted. By then, the same content has been read from the copy or from the picture
to keep.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from simsearch.curation.cleanup import trash
from simsearch.curation.cleanup.files import (
    Original,
    State,
    UnusableError,
    copy_new,
    link_new,
    make_folders,
    read_state,
    rename_new,
    sync_folders,
)
from simsearch.curation.cleanup.journal import Entry, Journal

OTHER_BYTES = "its bytes differ from those of the picture to keep"
"""The reason that is reported for a duplicate that cannot be replaced by a hard link."""


@dataclass(frozen=True)
class Task:
    """A duplicate to move, trash or link.

    path: absolute path of the duplicate. digest: SHA-256 of its content when it was indexed.
    original: the picture that is kept.
    into: for a move, the folder that files are moved to.
    target: for a move, the new path of the file, in `into` or in a subfolder. The subfolder need not exist yet.
    """

    path: str
    digest: bytes
    original: Original
    target: str = ""
    into: str = ""


def act(task: Task, do: str, journal: Journal) -> int:
    """Carries out one action on a file and returns the size of the file in bytes.

    do: the action, one of `journal.ACTIONS`.
    Raises UnusableError or OSError if the action failed. The file is then at its old path, or `restore` can put it
    back there later. Raises JournalError if the journal cannot be written; the caller must then act on no further file.
    """
    task.original.check()
    digest, facts = read_state(task.path)
    if digest != task.digest:
        raise UnusableError("it has changed since it was indexed")
    state, kept = State.of(facts), task.original.state
    if kept is not None and (kept.device, kept.inode) == (state.device, state.inode) and state.inode:
        raise UnusableError("it is the same file as the picture to keep")
    if do == "hardlink":
        _check_linkable(task, facts)
    for place, info, into in _places(task, do, facts):
        entry = Entry(
            n=journal.next_number(),
            do=do,
            path=task.path,
            to=place,
            kept=task.original.path,
            sha256=digest.hex(),
            token=secrets.token_hex(16),
            mode=stat.S_IMODE(facts.st_mode),
            stamp=facts.st_mtime_ns,
            info=info,
            into=into,
        )
        journal.begin(entry)
        try:
            make_folders(os.path.dirname(place))
            _do(entry, state, task.original)
        except BaseException as error:
            if State.at(task.path) == state:
                journal.failed(entry, str(error))
                if isinstance(error, FileExistsError) and do != "hardlink":  # another process has just taken the name
                    continue
            raise
        journal.done(entry)
        break
    return state.size


def _places(task: Task, do: str, facts: os.stat_result) -> Iterator[tuple[str, str, str]]:
    """Yields (path, record, folder) for each possible new path of the file, the preferred path first.

    path: for a move, `task.target` or a similar free path; for the trash, a free path in it; else the file's own path.
    record: in the trash, the path of the small file that records the old path (see `trash`); "" for other actions.
    folder: for a move, `task.into`; "" for other actions.
    do: the action. facts: the `os.stat` result of the file.
    """
    if do == "hardlink":
        yield task.path, "", ""
    elif do == "trash":
        for place, info, _ in trash.places(task.path, facts.st_dev):
            yield place, info, ""
    else:
        stem, suffix = os.path.splitext(task.target)
        for number in itertools.count(1):
            place = f"{stem}-{number}{suffix}" if number > 1 else task.target
            if not os.path.lexists(place):
                yield place, "", task.into


def _check_linkable(task: Task, facts: os.stat_result) -> None:
    original = task.original
    if original.state is None:
        raise UnusableError("the picture to keep is in an archive or a table")
    if original.digest != task.digest:
        raise UnusableError(OTHER_BYTES)
    other = os.lstat(original.path)
    if other.st_dev != facts.st_dev:
        raise UnusableError("the picture to keep is on another file system")
    if (other.st_uid, other.st_gid, other.st_mode) != (facts.st_uid, facts.st_gid, facts.st_mode):
        raise UnusableError("its owner or permissions differ from those of the picture to keep")


def _do(entry: Entry, state: State, original: Original) -> None:
    if entry.do == "hardlink":
        _link(entry, state, original)
    elif entry.do == "trash":
        trash.write_info(entry.info, entry.path, os.path.dirname(os.path.dirname(entry.to)))
        try:
            _move(entry, state, original)
        except BaseException:
            os.unlink(entry.info)
            raise
    else:
        _move(entry, state, original)


def _move(entry: Entry, state: State, original: Original) -> None:
    try:
        rename_new(entry.path, entry.to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(entry, state, original)
        return
    try:
        sync_folders(entry.to, entry.path)
        _check(entry.to, state, original)
    except BaseException:
        rename_new(entry.to, entry.path)
        raise


def _move_across(entry: Entry, state: State, original: Original) -> None:
    """Moves a file to another file system.

    The copy is written, flushed to disk, read back and given its new name before the old file is deleted.
    entry: the action as announced in the journal. state, original: as in `_check`.
    """
    named = False
    with _deleting_on_error(entry.partial):
        copy_new(entry.path, entry.partial, bytes.fromhex(entry.sha256))
        rename_new(entry.path, entry.aside)
        try:
            rename_new(entry.partial, entry.to)
            named = True
            sync_folders(entry.to, entry.aside)
            _check(entry.aside, state, original)
        except BaseException:
            rename_new(entry.aside, entry.path)
            if named:
                os.unlink(entry.to)
            raise
    os.unlink(entry.aside)
    sync_folders(entry.path)


def _link(entry: Entry, state: State, original: Original) -> None:
    """Replaces a file by a hard link to the picture to keep, which has the same content.

    entry: the action as announced in the journal. state, original: as in `_check`.
    """
    named = False
    with _deleting_on_error(entry.partial):
        link_new(original.path, entry.partial)
        if State.at(entry.partial) != original.state:
            raise UnusableError("the picture to keep is being changed")
        rename_new(entry.path, entry.aside)
        try:
            rename_new(entry.partial, entry.path)
            named = True
            sync_folders(entry.path)
            _check(entry.aside, state, original)
        except BaseException:
            if named and State.at(entry.path) == original.state:
                os.unlink(entry.path)
            rename_new(entry.aside, entry.path)
            raise
    os.unlink(entry.aside)
    sync_folders(entry.path)


def _check(place: str, state: State, original: Original) -> None:
    """Raises UnusableError if the renamed file, now at `place`, has changed, or if the picture to keep is gone.

    state: the state of the file when its content was read. original: the picture to keep.
    """
    if State.at(place) != state:
        raise UnusableError("it is being changed")
    if not original.is_there():
        raise UnusableError("the picture to keep has vanished")


@contextlib.contextmanager
def _deleting_on_error(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
