"""The journal of a clean-up: a file of JSON lines that tell `restore` how to undo the actions.

The first line describes the run. `{"n": 1, "do": "move", …}` announces an action, with all data that `restore` needs.
It is on disk before the action begins. `{"n": 1, "done": true}` follows when the action is complete, or `{"n": 1,
"failed": "why"}` if it failed and was undone.
If a file was moved to another file system, `restore` puts it back and then deletes the copy there. Before these two
steps, `restore` adds the line `{"n": 1, "returning": true}`. If `restore` is killed between the two steps, this line
tells the next `restore` that it may delete the copy.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simsearch.common import outside_json
from simsearch.common.atomic_files import sync_folder
from simsearch.common.regular_files import open_regular
from simsearch.errors import UsageError
from simsearch.installation import __version__

FORMAT = 1
"""Version of the journal's format, which its first line records."""

ACTIONS = ("move", "trash", "hardlink")
"""The actions that a clean-up can do with a duplicate."""

LONGEST = 1 << 20
"""Largest number of characters of a line; a longer line is an error."""

_TOKEN = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """The announcement of one action on a duplicate.

    n: number of the action, from 1. do: one of ACTIONS.
    path: the path of the duplicate. to: its new path. A hard link keeps the path, so `to` is equal to `path`.
    kept: path of the picture that is kept.
    sha256: SHA-256 of the duplicate's content, in hexadecimal; for a hard link, `kept` has the same content.
    token: a random part of the names of temporary files.
    mode, stamp: permissions and modification time (ns) of the duplicate.
    info: path of the duplicate's record in the trash; "" for other actions.
    into: for a move, the folder that files are moved to; else "". `restore` deletes its subfolders that become empty.
    """

    n: int
    do: str
    path: str
    to: str
    kept: str
    sha256: str
    token: str
    mode: int
    stamp: int
    info: str = ""
    into: str = ""

    @property
    def aside(self) -> str:
        """The temporary path of a duplicate that will be deleted, after a copy or a hard link has taken its place."""
        return os.path.join(os.path.dirname(self.path), f".{self.token}.aside")

    @property
    def partial(self) -> str:
        """The temporary path of a copy or hard link that is not complete yet."""
        return os.path.join(os.path.dirname(self.to), f".{self.token}.partial")

    @property
    def returning(self) -> str:
        """The temporary path of a copy that `restore` makes and that is not complete yet."""
        return os.path.join(os.path.dirname(self.path), f".{self.token}.partial")


@dataclass
class Record:
    """An action of a journal, and what the journal tells about its outcome.

    done: the action is complete. failed: the action failed and was undone. returning: `restore` began to put the file
    back.
    """

    entry: Entry
    done: bool = False
    failed: bool = False
    returning: bool = False


_ANOTHER_PATH = {"hint": "give another path as journal", "shell_hint": "give another path with --journal"}


class JournalError(UsageError):
    """The journal cannot be written, so no further action may begin."""


class Journal:
    """Creates a journal and writes its lines. A method that writes a line returns only after the line is on disk.

    path: the path of the journal to create. action: one of ACTIONS. index: the name of the index.
    Raises UsageError if the file exists or cannot be created; the methods raise JournalError if a line cannot be
    written.
    """

    def __init__(self, path: Path, action: str, index: str) -> None:
        self.path, self._last = path, 0
        try:
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        except FileExistsError:
            raise UsageError(f"the journal {path} exists already", **_ANOTHER_PATH) from None
        except OSError as error:
            raise UsageError(f"the journal {path} cannot be written: {error.strerror}", **_ANOTHER_PATH) from error
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            self._write({"cleanup": FORMAT, "simsearch": __version__, "action": action, "index": index, "at": at})
            sync_folder(path.absolute().parent)
        except BaseException:
            self._file.close()
            path.unlink()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def next_number(self) -> int:
        """Returns the number of the next action, counted from 1."""
        self._last += 1
        return self._last

    def begin(self, entry: Entry) -> None:
        """Writes the announcement of an action."""
        self._write(asdict(entry))

    def done(self, entry: Entry) -> None:
        """Records that an action is complete."""
        self._write({"n": entry.n, "done": True})

    def failed(self, entry: Entry, reason: str) -> None:
        """Records that an action failed and was undone."""
        self._write({"n": entry.n, "failed": reason})

    def _write(self, values: dict[str, Any]) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            _write_line(self._file, values)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise JournalError(f"the journal {self.path} cannot be written: {error.strerror}") from error


def _write_line(file: io.FileIO, values: dict[str, Any]) -> None:
    line = memoryview(json.dumps(values).encode() + b"\n")
    while line:
        line = line[file.write(line) :]
    os.fsync(file.fileno())


def note_returning(path: Path, entry: Entry) -> None:
    """Records that `restore` is about to put a file back and then delete the copy of the file. Raises JournalError."""
    try:
        with open(path, "r+b", buffering=0) as file:
            text = file.readall()
            if not text.endswith(b"\n"):  # a killed process left the last line incomplete
                file.truncate(text.rfind(b"\n") + 1)
                file.seek(0, os.SEEK_END)
            _write_line(file, {"n": entry.n, "returning": True})
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be written: {error.strerror}") from error


def read_head(path: Path) -> dict[str, str]:
    """Returns `action`, `index` and `at` (the time at which the journal was created) from a journal's first line.

    Raises UsageError if the file cannot be read or is not a journal.
    """
    try:
        with open_regular(path) as file:
            line = file.readline(LONGEST).decode("ascii", "replace")
        values = outside_json.parse(line, LONGEST)
        head = {name: values[name] for name in ("action", "index", "at")}
        if values.get("cleanup") != FORMAT or not all(isinstance(text, str) for text in head.values()):
            raise ValueError("it does not begin like a journal")
    except OSError as error:
        raise UsageError(f"the journal {path} cannot be read: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a journal of `duplicates`: {error}") from error
    return head


def read_journal(path: Path) -> list[Record]:
    """Returns the actions of a journal in their order. An incomplete last line, left by a killed process, is ignored.

    Raises UsageError if the file cannot be read or is not a journal.
    """
    try:
        with open_regular(path) as file:
            text = file.read().decode("ascii", "replace")
    except OSError as error:
        raise UsageError(f"the journal {path} cannot be read: {error.strerror}") from error
    records: dict[int, Record] = {}
    try:
        for number, values in enumerate(_complete_lines(text)):
            if not isinstance(values, dict) or (not number and values.get("cleanup") != FORMAT):
                raise ValueError("it does not begin like a journal")
            if not number:
                continue
            if "do" in values:
                entry = _entry(values)
                if entry.n in records:
                    raise ValueError(f"action {entry.n} is announced twice")
                records[entry.n] = Record(entry)
                continue
            record = records[values["n"]]
            record.done |= values.get("done") is True
            record.failed |= isinstance(values.get("failed"), str)
            record.returning |= values.get("returning") is True
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a journal of `duplicates`: {error}") from error
    return list(records.values())


def _complete_lines(text: str) -> Iterator[Any]:
    lines = text.split("\n")[:-1]
    if not lines:
        raise ValueError("it is empty")
    for line in lines:
        yield outside_json.parse(line, LONGEST)


def _entry(values: dict[str, Any]) -> Entry:
    """Returns the announcement in a line of a journal. Raises ValueError or TypeError if a value is invalid."""
    entry = Entry(**values)
    texts = entry.path, entry.to, entry.kept, entry.info, entry.into
    if not all(type(text) is str and "\0" not in text for text in texts):
        raise ValueError(f"a path of action {entry.n} is not a string, or contains a NUL character")
    if not all(type(number) is int for number in (entry.n, entry.mode, entry.stamp)) or entry.do not in ACTIONS:
        raise ValueError(f"`n`, `do`, `mode` or `stamp` of action {entry.n!r} is invalid")
    if not _TOKEN.fullmatch(entry.token) or not _DIGEST.fullmatch(entry.sha256):
        raise ValueError(f"the token or the checksum of action {entry.n} is invalid")
    if not (os.path.isabs(entry.path) and os.path.isabs(entry.to)):
        raise ValueError(f"a path of action {entry.n} is not absolute")
    return entry
