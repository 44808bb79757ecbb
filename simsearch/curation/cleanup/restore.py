"""Undoes the actions in a journal, even if the clean-up or an earlier `restore` was killed.

For each action, the journal tells the paths at which the content of the file may be: the old path, the new path, a
temporary path and, for a hard link, the path of the picture that was kept. A file is put back from one of these paths,
if the recorded content is found there. A copy is deleted only after the same content was read at the file's old path.
Calling `restore` again has no further effect.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.cleanup.files import (
    State,
    UnusableError,
    copy_new,
    make_folders,
    read_state,
    rename_new,
    sync_folders,
)
from simsearch.curation.cleanup.journal import Entry, Record, note_returning, read_journal


@dataclass
class Restored:
    """The outcome of `restore`.

    files: number of files put back. untouched: number of files that were at their old path already.
    problems: (path, reason) of each file that could not be put back.
    """

    files: int = 0
    untouched: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


def restore(journal: str | os.PathLike[str], progress: Progress = no_progress) -> Restored:
    """Puts every file in a journal back at its old path, the last action first.

    A file that cannot be put back does not stop the others. progress: called with the number of actions handled so far
    and the number of all actions. Raises UsageError if the journal cannot be read.
    """
    path = Path(journal)
    records = read_journal(path)
    result = Restored()
    for number, record in enumerate(reversed(records), 1):
        entry = record.entry
        if not record.failed:
            try:
                put_back = _unlink_again if entry.do == "hardlink" else _move_back
                if put_back(record, path):
                    result.files += 1
                else:
                    result.untouched += 1
                _tidy(entry)
            except (UnusableError, OSError) as error:
                result.problems.append((entry.path, getattr(error, "strerror", None) or str(error)))
        progress(number, len(records))
    return result


def _move_back(record: Record, journal: Path) -> bool:
    """Moves a file back to its old path, and deletes the copies of it that an interrupted move has left.

    Returns False if the file was at its old path already and there was no copy to delete.
    """
    entry = record.entry
    aside = _has(entry.aside, entry)
    if os.path.lexists(entry.path):
        if not _has(entry.path, entry):
            where = next((place for place in (entry.aside, entry.to) if _has(place, entry)), None)
            raise UnusableError("another file is at its place" + (f"; the picture is {where}" if where else ""))
        twin = State.at(entry.to) == State.at(entry.path)  # two names of one file: a rename was interrupted
        mine = twin or ((record.done or record.returning or aside) and _has(entry.to, entry))
        deleted = [_unlink_copy(place, entry.path) for place in [entry.to] * mine + [entry.aside] * aside]
        return any(deleted)
    make_folders(os.path.dirname(entry.path))
    if aside:
        # two names of one file: a rename was interrupted, and the file at `to` is complete
        whole = not os.path.lexists(entry.partial) or State.at(entry.partial) == State.at(entry.to)
        copied = whole and _has(entry.to, entry)
        if copied:  # if killed after the next line, the next `restore` still knows that it may delete the copy
            note_returning(journal, entry)
        rename_new(entry.aside, entry.path)
        sync_folders(entry.path)
        if copied:
            _unlink_copy(entry.to, entry.path)
        return True
    if not _has(entry.to, entry):
        raise UnusableError(f"{entry.to} is gone" if not os.path.lexists(entry.to) else f"{entry.to} has changed")
    try:
        rename_new(entry.to, entry.path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        note_returning(journal, entry)
        _discard(entry.returning)
        copy_new(entry.to, entry.returning, bytes.fromhex(entry.sha256))
        rename_new(entry.returning, entry.path)
        sync_folders(entry.path)
        os.unlink(entry.to)
    sync_folders(entry.path, entry.to)
    return True


def _unlink_again(record: Record, journal: Path) -> bool:
    """Replaces a hard link by a separate file; returns False if it is a separate file already."""
    entry = record.entry
    if _has(entry.aside, entry):
        if not os.path.lexists(entry.path):
            rename_new(entry.aside, entry.path)
        elif State.at(entry.aside) == State.at(entry.path):  # two names of one file: a rename was interrupted
            _unlink_copy(entry.aside, entry.path)
        elif _has(entry.path, entry):
            os.replace(entry.aside, entry.path)
        else:
            raise UnusableError(f"the hard link was changed later; the old content of the file is in {entry.aside}")
        sync_folders(entry.path)
        return True
    if os.path.lexists(entry.path):
        if not _has(entry.path, entry):
            raise UnusableError("the hard link was changed later")
        facts = os.lstat(entry.path)
        linked = record.done and facts.st_nlink > 1
        if not (linked or State.at(entry.path) == State.at(entry.kept)):
            return False
        origin = entry.path
    else:
        if not _has(entry.kept, entry):
            raise UnusableError(f"it is gone, and {entry.kept} is gone or has changed")
        make_folders(os.path.dirname(entry.path))
        origin = entry.kept
    _discard(entry.returning)
    copy_new(origin, entry.returning, bytes.fromhex(entry.sha256))
    os.chmod(entry.returning, entry.mode)
    os.utime(entry.returning, ns=(entry.stamp, entry.stamp))
    os.replace(entry.returning, entry.path)
    sync_folders(entry.path)
    return True


def _has(path: str, entry: Entry) -> bool:
    """Returns True if there is a regular file at `path` with the content recorded in the entry."""
    if not os.path.lexists(path):
        return False
    try:
        return read_state(path)[0].hex() == entry.sha256
    except UnusableError:
        return False


def _unlink_copy(copy: str, path: str) -> bool:
    """Deletes `copy`, a copy of the file at `path`, and returns True.

    If both paths lead to one file that has no second name, for example through two mounts, deleting `copy` would delete
    the file. Then nothing is deleted, and the result is False.
    """
    one, other = os.lstat(copy), os.lstat(path)
    if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) and one.st_nlink < 2:
        return False
    os.unlink(copy)
    return True


def _discard(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _tidy(entry: Entry) -> None:
    """Deletes what an action has left: temporary files, the record in the trash, and empty folders.

    Only folders below the folder that files were moved to (`entry.into`) are deleted.
    """
    _discard(entry.partial)
    _discard(entry.returning)
    if entry.info and not os.path.lexists(entry.to):
        _discard(entry.info)
    folder = os.path.dirname(entry.to)
    while entry.into and folder.startswith(entry.into.rstrip("/") + "/"):
        try:
            os.rmdir(folder)
        except OSError:
            break
        folder = os.path.dirname(folder)
