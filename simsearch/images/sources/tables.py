"""Tables as sources: CSV and JSON lines name images, Parquet holds them; all with labels and metadata."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import threading
from typing import IO, TYPE_CHECKING, Any

from simsearch.common.outside_json import check_depth
from simsearch.errors import ImageError, MissingExtraError, UsageError
from simsearch.images.sources.base import Entry, Listing, Source, excluded, file_stamp, first_line, open_file, read_file
from simsearch.images.sources.recorded import is_inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

OUTSIDE = "outside the manifest's folder; `build --allow-outside` permits it"
"""The problem of a path of a manifest that leads out of its folder, if that is not permitted."""

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


class ManifestSource(Source):
    """A .csv or .jsonl file with the `path` of each image, relative to the file's folder.

    `label` becomes the label; all other columns become metadata. Numbers in a CSV become numbers.
    line: the only line of a JSON-lines file to list, when it has just been appended. within: its path.
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
        found = Listing()
        seen: set[str] = set()
        for number, row in self._rows():
            path = row.pop("path", None)
            if not isinstance(path, str) or not path:
                raise UsageError(f"{self.root}, line {number}: 'path' is missing or not text")
            if path in seen or excluded(path, exclude):
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
            text = None if label is None or label == "" else _valid(str(label))
            found.entries.append(Entry(path, size, stamp, text, metadata or None, problem))
        return found

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._line is not None:
            yield from self._objects([self._line])
            return
        try:
            with open(self.root, encoding="utf-8-sig", newline="") as file:
                if self.root.lower().endswith(".csv"):
                    reader = csv.DictReader(file)
                    if "path" not in (reader.fieldnames or ()):
                        raise UsageError(f"{self.root}: the first line has no column 'path'")
                    for row in reader:
                        row.pop(None, None)
                        yield reader.line_num, {key: _typed(key, value) for key, value in row.items()}
                    return
                yield from self._objects(file)
        except OSError as error:
            raise UsageError(f"{self.root} cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{self.root} cannot be read: {error}") from error

    def _objects(self, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line, parse_float=_number, parse_constant=lambda name: None)
                check_depth(value)  # metadata are read again with this limit
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise UsageError(f"{self.root}, line {number}: {reason}") from error
            if not isinstance(value, dict):
                raise UsageError(f"{self.root}, line {number}: not a JSON object")
            yield number, value

    def read(self, path: str) -> bytes:
        return read_file(self.display(path))

    def stream(self, path: str) -> IO[bytes]:
        return open_file(self.display(path))


def _typed(column: str, text: str | None) -> Any:
    if text is None or text == "":
        return None
    if column in {"path", "label"} or not _NUMBER.fullmatch(text):
        return text
    return _number(text)


def _number(text: str) -> Any:
    """Converts text to a number, unless it is too large: metadata are kept as JSON, which has no infinity."""
    try:
        number = float(text) if any(mark in text for mark in ".eE") else int(text)
    except ValueError:  # Python's limit on the digits of an integer
        return text
    return number if math.isfinite(number) else text


def _valid(text: str) -> str:
    """Replaces lone surrogates, which JSON can write but SQLite cannot store."""
    return text.encode("utf-8", "replace").decode("utf-8")


class ParquetSource(Source):
    """A .parquet file with image bytes: a binary column, or a struct with a field `bytes` as Hugging Face writes it.

    The images' column is `image`, else the first of a fitting type. `label` (or `class`) becomes the label; other
    columns of plain values become metadata. An image's path is its value in `path` if those are unique, else
    `row-<number>`.
    """

    kind = "parquet"
    labelled = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("reading Parquet", "parquet") from None
        try:
            # Not memory-mapped: if another program truncated the file, reading the map would end the process.
            self._file = pyarrow.parquet.ParquetFile(root, buffer_size=1 << 20)
            schema = self._file.schema_arrow
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UsageError(f"{root} cannot be read as Parquet: {first_line(error)}") from error
        fitting = [field.name for field in schema if self._holds_bytes(pyarrow, field.type)]
        if not fitting:
            raise UsageError(f"{root}: no column holds image bytes", hint=f"columns: {', '.join(schema.names)}")
        self._column = "image" if "image" in fitting else fitting[0]
        self._plain = [
            field.name for field in schema if field.name != self._column and self._holds_plain(pyarrow, field.type)
        ]
        self._rows: dict[str, int] = {}
        self._groups: dict[int, Any] = {}
        self._lock = threading.Lock()

    @staticmethod
    def _holds_bytes(pyarrow: Any, kind: Any) -> bool:
        types = pyarrow.types
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    @staticmethod
    def _holds_plain(pyarrow: Any, kind: Any) -> bool:
        types = pyarrow.types
        kind = kind.value_type if types.is_dictionary(kind) else kind
        tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
        return any(test(kind) for test in tests)

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        try:
            return self._listing(exclude)
        except Exception as error:  # damaged pages make Arrow raise nearly anything
            raise UsageError(f"{self.root} is damaged: {first_line(error)}") from error

    def _listing(self, exclude: Sequence[str]) -> Listing:
        found = Listing()
        paths = self._paths()
        row = 0
        path: str
        for batch in self._file.iter_batches(batch_size=1024, columns=[*self._plain, self._column]):
            columns = {name: batch.column(batch.schema.get_field_index(name)) for name in batch.schema.names}
            for i in range(batch.num_rows):
                values = {name: columns[name][i].as_py() for name in self._plain}
                data = self._bytes(columns[self._column][i].as_py())
                path, row = paths[row], row + 1
                values.pop("path", None)
                label = values.pop("label", values.pop("class", None))
                if excluded(path, exclude):
                    continue
                known = {key: value for key, value in values.items() if value is not None}
                metadata = {k: v for k, v in known.items() if isinstance(v, str) or math.isfinite(v)}
                stamp = int.from_bytes(hashlib.sha256(data).digest()[:7], "little")
                text = None if label is None else str(label)
                found.entries.append(Entry(path, len(data), stamp, text, metadata or None))
        return found

    def _paths(self) -> list[str]:
        count = self._file.metadata.num_rows
        if "path" in self._plain:
            values = [str(v) for v in self._file.read(columns=["path"]).column("path").to_pylist()]
            if len(set(values)) == count:
                return values
        return [f"row-{number:08d}" for number in range(count)]

    @staticmethod
    def _bytes(value: Any) -> bytes:
        data = value.get("bytes") if isinstance(value, dict) else value
        return data if isinstance(data, bytes) else b""

    def read(self, path: str) -> bytes:
        try:
            return self._read(path)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"cannot be read from the table: {first_line(error)}") from error

    def _read(self, path: str) -> bytes:
        with self._lock:
            if not self._rows:
                self._rows = {path: row for row, path in enumerate(self._paths())}
        if path not in self._rows:
            raise ImageError("no such row in the table")
        row = self._rows[path]
        for number in range(self._file.metadata.num_row_groups):
            count = self._file.metadata.row_group(number).num_rows
            if row < count:
                return self._bytes(self._group(number)[row].as_py())
            row -= count
        raise ImageError("no such row in the table")

    def _group(self, number: int) -> Any:
        """Reads the images of a row group. Two are cached: threads may still read the previous one."""
        with self._lock:
            if (found := self._groups.pop(number, None)) is None:
                while len(self._groups) > 1:
                    del self._groups[next(iter(self._groups))]
                found = self._file.read_row_group(number, [self._column]).column(0)
            self._groups[number] = found
            return found

    def close(self) -> None:
        self._file.close()
