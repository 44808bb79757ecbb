"""Manifests as sources: CSV and JSON Lines files that name images, with labels and metadata."""

from __future__ import annotations

import csv
import json
import math
import os
from typing import IO, TYPE_CHECKING, Any

from simsearch.common.numbers import stored_integer, written_number
from simsearch.common.outside_json import TOO_DEEP, check_depth, integer
from simsearch.errors import UsageError
from simsearch.images.sources.base import Entry, Listing, Source, file_size_and_stamp, file_stamp, open_file, read_file
from simsearch.images.sources.exclude import Exclusion
from simsearch.images.sources.recorded import is_inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

OUTSIDE = "outside the manifest's folder; `build --allow-outside` permits it"
"""`Entry.problem` of a path that leads out of the manifest's folder, if that is not permitted."""

REPEATED = "rows that name an image a second time; the first row counts"
"""The reason that `Listing.left_out` has for such rows."""


class ManifestSource(Source):
    """A .csv or .jsonl file as a source. Its column `path` names the images, relative to the file's folder.

    The column `label` has the labels; all other columns become metadata. In a CSV, values such as 7 and -1.5 become
    numbers; 007, 1.10, 12E4 and all other values stay text (see `written_number`).
    line: the text of a line that has just been added to a JSON Lines file. Only this line is listed; the file is not
    read. None to list the file.
    within: the path of the image that `line` names; empty without `line`.
    """

    kind = "manifest"
    labelled = True

    def __init__(self, root: str, within: str = "", line: str | None = None) -> None:
        super().__init__(root, within)
        self._line = line

    @property
    def folder(self) -> str:
        return os.path.dirname(self.root)

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found, leave_out = Listing(), Exclusion(exclude, os.path.dirname(self.root))
        found.matched = leave_out.matched
        seen: set[str] = set()
        for number, row in self._rows():
            path = row.pop("path", None)
            if not isinstance(path, str) or not path:
                raise UsageError(f"{self.root}, line {number}: 'path' is missing or not text")
            if path in seen:
                found.leave_out(REPEATED)
                continue
            if leave_out(self._relative(path)):
                continue
            seen.add(path)
            label = row.pop("label", None)
            metadata = {key: value for key, value in row.items() if value is not None}
            size, stamp, problem = 0, 0, None
            try:
                facts = os.stat(self.display(path))
                size, stamp = facts.st_size, file_stamp(facts)
                if not self.outside and not is_inside(self.display(path), self.folder):
                    problem = OUTSIDE
            except UnicodeEncodeError:
                raise UsageError(f"{self.root}, line {number}: the path {path!r} cannot name a file") from None
            except (OSError, ValueError) as error:
                problem = getattr(error, "strerror", None) or str(error)
            found.entries.append(Entry(path, size, stamp, label_text(label), metadata or None, problem))
        return found

    def _relative(self, path: str) -> str:
        """Returns the path that is compared with exclude patterns: `path` relative to the manifest's folder.

        If `path` is outside this folder, the result is the absolute path without its first slash.
        """
        folder = os.path.dirname(self.root).rstrip("/") + "/"
        return os.path.normpath(self.display(path)).removeprefix(folder).lstrip("/")

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._line is not None:
            yield from self._objects([self._line])
            return
        try:
            with open(self.root, encoding="utf-8-sig", newline="") as file:
                if self.root.lower().endswith(".csv"):
                    yield from self._csv_rows(file)
                    return
                yield from self._objects(file)
        except OSError as error:
            raise UsageError(f"{self.root} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.root} is not UTF-8 text", hint="save it as UTF-8") from error
        except csv.Error as error:
            raise UsageError(f"{self.root} cannot be read: {error}") from error

    def _csv_rows(self, file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        lines: list[str] = []
        last: list[str] = []

        def remembered() -> Iterator[str]:
            for line in file:
                lines.append(line)
                yield line

        reader = csv.DictReader(remembered())
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if "path" not in reader.fieldnames:
            raise UsageError(f"{self.root}: the first line has no column 'path'")
        lines.clear()
        for row in reader:
            last, lines[:] = [*lines], []
            row.pop(None, None)
            yield reader.line_num, {key: _typed(key, value) for key, value in row.items()}
        if _ends_in_quotes(last or lines):
            raise UsageError(f"{self.root}, line {reader.line_num}: a quotation mark is not closed")

    def _objects(self, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line, parse_float=_finite, parse_int=_integer, parse_constant=lambda name: None)
                check_depth(value)  # metadata are later read from the index with the same limit
            except RecursionError:
                raise UsageError(f"{self.root}, line {number}: {TOO_DEEP}") from None
            except ValueError as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise UsageError(f"{self.root}, line {number}: {reason}") from error
            if not isinstance(value, dict):
                raise UsageError(f"{self.root}, line {number}: not a JSON object")
            yield number, value

    def size_and_stamp(self, path: str) -> tuple[int, int] | None:
        return file_size_and_stamp(self.display(path))

    def read(self, path: str) -> bytes:
        return read_file(self.display(path))

    def stream(self, path: str) -> IO[bytes]:
        return open_file(self.display(path))


def _ends_in_quotes(row: Sequence[str]) -> bool:
    """Returns True if a row of a CSV file ends within quotation marks, so that the next line would belong to it.

    `csv.reader` does not report quotation marks left open in the last row of a file. row: the lines of the row.
    """
    return bool(row) and list(csv.reader([*row, "next"]))[-1] != ["next"]


def _typed(column: str, text: str | None) -> Any:
    if text is None or text == "":
        return None
    number = None if column in {"path", "label"} else written_number(text)
    if number is None:
        return text
    return stored_integer(number) if isinstance(number, int) else _finite(text)


def _integer(text: str) -> int | str:
    return stored_integer(integer(text))


def _finite(text: str) -> float | str:
    """Converts text to a float. Returns the text if the number is too large.

    Metadata are stored as JSON, which has no infinity.
    """
    number = float(text)
    return number if math.isfinite(number) else text


def label_text(value: Any) -> str | None:
    """Returns a label, or a list of labels, as text; None if the label is None, NaN or empty text."""
    if isinstance(value, list):
        return ", ".join(text for each in value if (text := label_text(each)) is not None) or None
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace") or None
    return json.dumps(value) if isinstance(value, dict) else _valid(str(value))


def _valid(text: str) -> str:
    """Replaces lone surrogates by question marks. JSON can contain lone surrogates, but SQLite cannot store them."""
    return text.encode("utf-8", "replace").decode("utf-8")
