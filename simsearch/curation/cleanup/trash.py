"""Names and records of files in the desktop's trash, as specified by freedesktop.org (version 1.0).

The record of a trashed file is a small file with its old path and the date.
The library send2trash is not used: it does not tell the new path of a file. The journal must have this path before the
file is moved, so that a killed clean-up can be undone.
"""

from __future__ import annotations

import datetime
import itertools
import os
import stat
import sys
import urllib.parse
from collections.abc import Iterator

from simsearch.errors import UsageError


def check_available() -> None:
    """Raises UsageError on macOS and Windows, whose trash does not follow the specification of freedesktop.org."""
    if sys.platform in ("darwin", "win32"):
        raise UsageError(
            "this system's trash does not follow the specification of freedesktop.org",
            hint='the action "move" works everywhere',
            shell_hint="--move-to DIR works everywhere",
        )


def places(path: str, device: int) -> Iterator[tuple[str, str, str]]:
    """Yields three paths for each free name in the trash: of the file, of its record, and of the trash folder.

    device: the `st_dev` of the file at `path`; the trash is on the same file system. Missing folders are created.
    Raises OSError.
    """
    folder = _trash_of(path, device)
    for part in ("files", "info"):
        os.makedirs(os.path.join(folder, part), mode=0o700, exist_ok=True)
    stem, suffix = os.path.splitext(os.path.basename(path))
    for number in itertools.count(1):
        name = f"{stem} {number}{suffix}" if number > 1 else stem + suffix
        place, info = os.path.join(folder, "files", name), os.path.join(folder, "info", name + ".trashinfo")
        if not os.path.lexists(place) and not os.path.lexists(info):
            yield place, info, folder


def write_info(info: str, path: str, folder: str) -> None:
    """Writes the record of a file in the trash. Raises OSError, and FileExistsError if the record exists.

    info: path of the record. path: old path of the file. folder: the trash folder.
    """
    shown = path if folder == _home_trash() else os.path.relpath(path, os.path.dirname(_above_trash(folder)))
    quoted = urllib.parse.quote(os.fsencode(shown), safe="/")
    date = datetime.datetime.now().strftime("%Y-%m-%dT%H:%M:%S")
    with open(info, "x", encoding="ascii") as file:
        try:
            file.write(f"[Trash Info]\nPath={quoted}\nDeletionDate={date}\n")
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(info)
            raise


def _home_trash() -> str:
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(os.path.abspath(base), "Trash")


def _above_trash(folder: str) -> str:
    """Returns the folder of a file system's trash that is directly in the mount point: `.Trash` or `.Trash-UID`.

    folder: the trash. If it is `.Trash/UID`, the result is its parent, `.Trash`. If it is `.Trash-UID`, the result is
    `folder` itself.
    """
    return os.path.dirname(folder) if os.path.basename(os.path.dirname(folder)) == ".Trash" else folder


def _trash_of(path: str, device: int) -> str:
    home = _home_trash()
    nearest = home
    while not os.path.exists(nearest):
        nearest = os.path.dirname(nearest)
    if os.stat(nearest).st_dev == device:
        os.makedirs(home, mode=0o700, exist_ok=True)
        return home
    top = os.path.realpath(os.path.dirname(path))
    while not os.path.ismount(top):
        top = os.path.dirname(top)
    shared, user = os.path.join(top, ".Trash"), os.getuid()
    try:
        facts = os.lstat(shared)
        safe = stat.S_ISDIR(facts.st_mode) and bool(facts.st_mode & stat.S_ISVTX)
    except OSError:
        safe = False
    folder = os.path.join(shared, str(user)) if safe else os.path.join(top, f".Trash-{user}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    facts = os.lstat(folder)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != user:
        raise PermissionError(1, "the trash of this file system belongs to another user", folder)
    return folder
