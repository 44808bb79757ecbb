"""Export of features and items: NumPy and JSON lines, or Parquet for data frames and databases."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.atomic_files import delete_abandoned, replacing
from simsearch.errors import MissingExtraError, UsageError
from simsearch.storage.filters import replace_surrogates

if TYPE_CHECKING:
    from collections.abc import Callable

    from simsearch.storage.protocols import OpenIndex
    from simsearch.storage.reader import Item

_ROWS = 2048


def export_npy(index: OpenIndex, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Writes `features.npy`, (N, D) float32, and `items.jsonl`, one line per row; returns N.

    Rows are sorted by id. Files appear under their names only when they are complete. The float32 values equal the
    stored float16 values. Raises UsageError if the folder cannot be written.
    """
    with (
        _writing_to(folder),
        index.reading() as reader,
        replacing(folder / "items.jsonl") as lines,
        replacing(folder / "features.npy") as file,
    ):
        _, rows = reader.ids_and_rows()
        opened = index.sources(reader)
        shape = (len(rows), index.meta.dimension)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), _ROWS):
            file.write(reader.shards.read(rows[start : start + _ROWS]).astype("<f4").tobytes())
            progress(min(start + _ROWS, len(rows)), len(rows))
        for item in reader.items():
            path = opened[item.source].display(item.path)
            facts = {"id": item.id, "path": path, "label": item.label, "metadata": item.metadata}
            lines.write(json.dumps(facts).encode() + b"\n")
    return len(rows)


def export_parquet(
    index: OpenIndex, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Writes `items.parquet`, one row per item, sorted by id; returns the number of items.

    Columns: id, path, label, metadata (JSON), features (a list of D float16 values, as stored).
    Raises MissingExtraError without pyarrow. The file appears under its name only when it is complete.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("writing Parquet", "parquet") from None
    dimension = index.meta.dimension
    columns = [
        ("id", pyarrow.int64()),
        ("path", pyarrow.string()),
        ("label", pyarrow.string()),
        ("metadata", pyarrow.string()),
        ("features", pyarrow.list_(pyarrow.float16(), dimension)),
    ]
    facts = {"simsearch": json.dumps({"model": index.meta.model, "weights_sha256": index.meta.weights_sha256})}
    schema = pyarrow.schema(columns, metadata=facts)
    with (
        _writing_to(folder),
        index.reading() as reader,
        replacing(folder / "items.parquet") as file,
        pyarrow.parquet.ParquetWriter(file, schema) as writer,
    ):
        total, opened, done = reader.count(), index.sources(reader), 0
        for items in _chunks(reader.items()):
            features = reader.shards.read(np.array([item.row for item in items], np.int64))
            values = pyarrow.array(features.reshape(-1), pyarrow.float16())
            paths = [replace_surrogates(opened[item.source].display(item.path)) for item in items]
            cells = [
                [item.id for item in items],
                paths,
                [item.label for item in items],
                [json.dumps(item.metadata) for item in items],
            ]
            arrays = [pyarrow.array(cell, kind) for cell, (_, kind) in zip(cells, columns[:-1], strict=True)]
            arrays.append(pyarrow.FixedSizeListArray.from_arrays(values, dimension))
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
            done += len(items)
            progress(done, total)
    return int(total)


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Makes the folder if it is missing. Raises UsageError for an OSError within the block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        delete_abandoned(folder)
        yield
    except OSError as error:
        raise UsageError(f"cannot export to {folder}: {error.strerror or error}") from error


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(itertools.islice(items, _ROWS)):
        yield chunk
