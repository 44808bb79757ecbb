"""Parquet files as sources of images, including the files of Hugging Face's `datasets`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from typing import TYPE_CHECKING, Any

from simsearch.common.numbers import stored_integer
from simsearch.errors import ImageError, MissingExtraError, UsageError
from simsearch.images.sources.base import Entry, Listing, Source, file_identity, file_stamp, first_line, read_file
from simsearch.images.sources.exclude import Exclusion
from simsearch.images.sources.tables import label_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NO_IMAGE, OUTSIDE = "the row holds no image", "a file outside the table's folder; `build --allow-outside` permits it"
"""`Entry.problem` of rows that cannot be read."""


class ParquetSource(Source):
    """A .parquet file as a source. Raises UsageError if it has no images, MissingExtraError if pyarrow is missing.

    Images: bytes in a binary column, or in the field `bytes` of a struct, as Hugging Face writes it. Of several such
    columns, the source uses the one that Hugging Face's schema calls an image, else the column `image`, else the first.
    If there is no such column, it uses a column with lists of images, and adds `/0`, `/1` and so on to their paths.
    Files: if a struct has a `path` but no bytes, the image is the file at this path, relative to the table's folder.
    Labels: the column `label`, else `class`, else the first column of class labels. Numbers become names if the schema
    has names.
    Metadata: all other columns of text, numbers or booleans, or of lists of them.
    Paths: the values in the column `path` if all are unique texts or integers, else `row-<number>`.
    """

    kind = "parquet"
    labelled = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.outside = False
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
        fields = [field for field in schema if schema.names.count(field.name) == 1]  # pyarrow reads columns by name
        fitting = [field.name for field in fields if _holds_bytes(pyarrow, field.type)]
        fitting = [name for name in fitting if name not in {"label", "class", "path"}] or fitting  # text as bytes
        self._several = not fitting
        fitting = fitting or [field.name for field in fields if _holds_bytes(pyarrow, _value_type(pyarrow, field.type))]
        if not fitting:
            raise UsageError(f"{root}: no column holds image bytes", hint=f"columns: {', '.join(schema.names)}")
        features = _features(schema.metadata or {})
        preferred = [name for name in fitting if features.get(name, {}).get("_type") == "Image"]
        self._column = (preferred or [name for name in fitting if name == "image"] or fitting)[0]
        self._plain = [field.name for field in fields if field.name != self._column and _holds_plain(pyarrow, field)]
        self._names = {name: names for name in self._plain if (names := _class_names(features.get(name)))}
        self._label = next((name for name in ("label", "class", *self._names) if name in self._plain), None)
        self._rows: dict[str, int] = {}
        self._groups: dict[int, Any] = {}
        self._lock = threading.Lock()

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        leave_out = Exclusion(exclude, self.root)
        try:
            return self._listing(leave_out)
        except Exception as error:  # damaged pages make Arrow raise nearly anything
            raise UsageError(f"{self.root} is damaged: {first_line(error)}") from error

    def _listing(self, leave_out: Exclusion) -> Listing:
        found = Listing(matched=leave_out.matched)
        paths = self._paths()
        row = 0
        for batch in self._file.iter_batches(batch_size=1024, columns=[*self._plain, self._column]):
            columns = {name: batch.column(batch.schema.get_field_index(name)) for name in batch.schema.names}
            for i in range(batch.num_rows):
                path, row = paths[row], row + 1
                if leave_out(path):
                    continue
                values = {name: self._named(name, columns[name][i].as_py()) for name in self._plain}
                values.pop("path", None)
                label = None if self._label is None else values.pop(self._label)
                text = label_text(label)
                value = columns[self._column][i].as_py()
                images = enumerate(value or ()) if self._several else [(None, value)]
                for place, image in images:
                    found.entries.append(
                        self._entry(path if place is None else f"{path}/{place}", image, text, _metadata(values))
                    )
        return found

    def _entry(self, path: str, value: Any, label: str | None, metadata: dict[str, Any] | None) -> Entry:
        data, file = _content(value)
        if data is not None:
            stamp = int.from_bytes(hashlib.sha256(data).digest()[:7], "little")
            return Entry(path, len(data), stamp, label, metadata)
        if file is None:
            return Entry(path, 0, 0, label, metadata, NO_IMAGE)
        try:
            facts = os.stat(self._beside(file))
        except ImageError as error:
            return Entry(path, 0, 0, label, metadata, str(error))
        except (OSError, ValueError) as error:
            return Entry(path, 0, 0, label, metadata, getattr(error, "strerror", None) or str(error))
        return Entry(path, facts.st_size, file_stamp(facts), label, metadata)

    def _beside(self, file: str) -> str:
        """Returns the absolute path of a file that a row names.

        Raises ImageError if the file lies outside the table's folder and `self.outside` is False.
        """
        folder = os.path.realpath(os.path.dirname(self.root))
        full = os.path.realpath(os.path.join(folder, file))
        if not self.outside and not full.startswith(folder.rstrip("/") + "/"):
            raise ImageError(f"{file} is {OUTSIDE}")
        return full

    def _named(self, column: str, value: Any) -> Any:
        """Replaces the number of a class by its name, also in lists; replaces -1, which means no class, by None."""
        names = self._names.get(column)
        if names is None:
            return value
        if isinstance(value, list):
            return [self._named(column, each) for each in value]
        if isinstance(value, float) and value.is_integer():  # pandas turns integers into floats if some are missing
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        return names[value] if 0 <= value < len(names) else None if value == -1 else value

    def _paths(self) -> list[str]:
        count = self._file.metadata.num_rows
        if "path" in self._plain:
            values = self._file.read(columns=["path"]).column("path").to_pylist()
            texts = [str(value) for value in values if isinstance(value, str | int) and value != ""]
            if len(set(texts)) == count:
                return texts
        return [f"row-{number:08d}" for number in range(count)]

    def identity(self, path: str) -> tuple[Any, ...] | None:
        try:
            data, file = _content(self._value(path))
            if data is None and file is not None:
                return file_identity(self._beside(file))
        except Exception:  # `read` will report the error
            return None
        table = file_identity(self.root)
        return None if table is None else (*table, path)

    def is_link(self, path: str) -> bool:
        return os.path.realpath(self.root) != self.root

    def read(self, path: str) -> bytes:
        try:
            data, file = _content(self._value(path))
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"cannot be read from the table: {first_line(error)}") from error
        if data is not None:
            return data
        if file is None:
            raise ImageError(NO_IMAGE)
        return read_file(self._beside(file))

    def _value(self, path: str) -> Any:
        """Returns the value of an image in the images' column. Raises ImageError if there is no such row."""
        place = None
        if self._several:
            path, _, last = path.rpartition("/")
            place = int(last) if last.isdecimal() else -1
        with self._lock:
            if not self._rows:
                self._rows = {path: row for row, path in enumerate(self._paths())}
        if path not in self._rows:
            raise ImageError("no such row in the table")
        row = self._rows[path]
        for number in range(self._file.metadata.num_row_groups):
            count = self._file.metadata.row_group(number).num_rows
            if row < count:
                value = self._group(number)[row].as_py()
                if place is None:
                    return value
                if not 0 <= place < len(value or ()):
                    break
                return value[place]
            row -= count
        raise ImageError("no such row in the table")

    def _group(self, number: int) -> Any:
        """Returns the images' column of the row group `number`.

        Two row groups are cached, because other threads may still read from the previous one.
        """
        with self._lock:
            if (found := self._groups.pop(number, None)) is None:
                while len(self._groups) > 1:
                    del self._groups[next(iter(self._groups))]
                found = self._file.read_row_group(number, [self._column]).column(0)
            self._groups[number] = found
            return found

    def close(self) -> None:
        self._file.close()


def _is_any(types: Any, kind: Any, *names: str) -> bool:
    """Returns True if the Arrow type `kind` has one of the names, such as "list" or "string_view".

    types: the module `pyarrow.types`. Names that an older pyarrow does not know are ignored.
    """
    return any(test(kind) for name in names if (test := getattr(types, f"is_{name}", None)) is not None)


def _holds_bytes(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return _is_any(types, kind, "binary", "large_binary", "binary_view", "fixed_size_binary")


def _value_type(pyarrow: Any, kind: Any) -> Any:
    """Returns the type of the values if the Arrow type `kind` is a list type; returns any other type unchanged."""
    lists = "list", "large_list", "fixed_size_list", "list_view", "large_list_view"
    return kind.value_type if _is_any(pyarrow.types, kind, *lists) else kind


def _holds_plain(pyarrow: Any, field: Any) -> bool:
    """Returns True for a column of text, numbers, booleans or lists of them, and for a binary `label` or `class`."""
    types = pyarrow.types
    kind = _value_type(pyarrow, field.type)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = "string", "large_string", "string_view"
    if _is_any(types, kind, *texts, "integer", "floating", "boolean"):
        return True
    return field.name in {"label", "class"} and _is_any(types, kind, "binary", "large_binary")


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Returns a dict from column name to Hugging Face's description of the column; empty if the file has none."""
    try:
        found = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {str(name): each for name, each in found.items() if isinstance(each, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _class_names(feature: Mapping[str, Any] | None) -> list[str]:
    """Returns the names of the classes in a column of class labels, or of lists of labels; empty for other columns."""
    while feature and isinstance(inner := feature.get("feature"), dict):
        feature = inner
    names = feature.get("names") if feature and feature.get("_type") == "ClassLabel" else None
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _content(value: Any) -> tuple[bytes | None, str | None]:
    """Returns the bytes of a row's image and the path of its file; None for the one (or both) that the row lacks."""
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, dict):
        return None, None
    data, path = value.get("bytes"), value.get("path")
    file = path if isinstance(path, str) and path else None
    return (data if isinstance(data, bytes) and (data or not file) else None), file


def _metadata(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the values that JSON and SQLite can store; None if there are none."""
    found = {name: _storable(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None} or None


def _storable(value: Any) -> Any:
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return stored_integer(value) if isinstance(value, int) and not isinstance(value, bool) else value
