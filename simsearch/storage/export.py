"""Exports features and items: as NumPy and JSON-lines files, or as a Parquet file for data frames and databases."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.atomic_files import delete_abandoned, replacing
from simsearch.errors import MissingExtraError, UsageError
from simsearch.storage.filters import replace_surrogates

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from simsearch.storage.protocols import OpenIndex
    from simsearch.storage.reader import Item

_ROWS = 2048


@dataclass(frozen=True)
class MapColumns:
    """The n items on a map (see `simsearch.curation.map`), as columns to export.

    ids: (n,) ids of the items, ascending. positions: (n, 2) float32.
    clusters: (n,) the cluster of each item, as an index into `names`. names: the names of the clusters.
    neighbours: (n, k) the nearest other items of each item, as indices into `ids`; -1 if there are fewer than k.
    distances: (n, k) the distances to these neighbours.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.float32]
    clusters: NDArray[np.int32]
    names: Sequence[str]
    neighbours: NDArray[np.int64]
    distances: NDArray[np.float64]


def export_npy(index: OpenIndex, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Writes `features.npy`, (N, D) float32, and `items.jsonl`, one line per item; returns N, the number of items.

    D is the dimension of the features. Both files are sorted by id. A file appears under its name only when it is
    complete. The float32 values equal the stored float16 values.
    progress: called with the number of items written and their total.
    Raises UsageError if the folder cannot be written.
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
    index: OpenIndex,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    drawn: MapColumns | None = None,
) -> int:
    """Writes `items.parquet`, one row per item, sorted by id; returns the number of items.

    The columns are id, path, label, metadata (JSON) and features (D float16 values, as stored; D is the dimension).
    drawn: a map, which adds the columns x, y, cluster (a number), cluster_name and neighbours. They are null for items
    that are not on the map. `neighbours` is a struct of two lists: `ids` and `distances`. The `ids` are row numbers in
    the file, counted from 0.
    progress: called with the number of items written and their total.
    The file appears under its name only when it is complete.
    Raises MissingExtraError without pyarrow, UsageError if an item of the map was removed or the folder cannot be
    written.
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
    with (
        _writing_to(folder),
        index.reading() as reader,
        replacing(folder / "items.parquet") as file,
    ):
        ids = reader.ids_and_rows()[0]
        added = [] if drawn is None else _map_columns(pyarrow, drawn, ids)
        fields = columns + [(name, array.type) for name, array in added]
        schema = pyarrow.schema(fields, metadata=facts)
        total, opened, done = len(ids), index.sources(reader), 0
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
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
                arrays.extend(array.slice(done, len(items)) for _, array in added)
                writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
                done += len(items)
                progress(done, total)
    return int(total)


def _map_columns(pyarrow: Any, drawn: MapColumns, ids: NDArray[np.int64]) -> list[tuple[str, Any]]:
    """Returns (name, values) of each column that describes a map, with a value for each item of the exported file.

    ids: (N,) ids of the items in the file, ascending. Items that were added after the map was made have null values.
    Raises UsageError if an item of the map was removed: the column `neighbours` of other items may have to refer to it,
    but it has no row in the file.
    """
    row = np.searchsorted(ids, drawn.ids)
    if len(ids) == 0 or not np.array_equal(ids[np.minimum(row, len(ids) - 1)], drawn.ids):
        raise UsageError("items were removed while the map was drawn", hint="export again")
    place = np.full(len(ids), -1)
    place[row] = np.arange(len(row))
    missing = place < 0

    def spread(values: NDArray[Any], kind: Any) -> Any:
        return pyarrow.array(values[place], kind, mask=missing)

    names = np.array([replace_surrogates(name) for name in drawn.names], object)
    known = drawn.neighbours[place] >= 0
    known[missing] = False
    offsets = np.concatenate([[0], known.sum(1).cumsum()]).astype(np.int32)
    near = row[drawn.neighbours[place][known]]
    lists = [
        pyarrow.ListArray.from_arrays(offsets, pyarrow.array(near, pyarrow.int64())),
        pyarrow.ListArray.from_arrays(offsets, pyarrow.array(drawn.distances[place][known], pyarrow.float32())),
    ]
    struct = pyarrow.StructArray.from_arrays(lists, ["ids", "distances"], mask=pyarrow.array(missing))
    return [
        ("x", spread(drawn.positions[:, 0], pyarrow.float32())),
        ("y", spread(drawn.positions[:, 1], pyarrow.float32())),
        ("cluster", spread(drawn.clusters, pyarrow.int32())),
        ("cluster_name", spread(names[drawn.clusters], pyarrow.string())),
        ("neighbours", struct),
    ]


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Creates the folder if it is missing. Raises UsageError if an OSError occurs in the block."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"cannot export to {folder}: it is not a folder")
        folder.mkdir(parents=True, exist_ok=True)
        delete_abandoned(folder)
        yield
    except OSError as error:
        raise UsageError(f"cannot export to {folder}: {error.strerror or error}") from error


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(itertools.islice(items, _ROWS)):
        yield chunk
