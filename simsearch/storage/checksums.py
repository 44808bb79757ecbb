"""Checksums of the rows in `items.sqlite`: SQLite itself does not detect a flipped bit in a label or path.

Each row has a hash of 64 bits. The checksum of a table is the sum of the hashes of its rows, so it does not depend on
the order of the rows. A transaction only subtracts the old hashes of the rows that it changes, and adds the new ones.

The table `state` contains two checksums, `items_sum` (of items and failures) and `sources_sum`, and the number
`sums_of`. A failure is an image that could not be indexed. `sums_of` is the generation that the checksums belong to;
the generation is a number that grows when the index changes. An older version of simsearch, which has no checksums,
increases the generation but does not change `sums_of`. The next transaction of a newer version sees that the two
numbers differ, and computes the checksums from all rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from simsearch.errors import IndexDamagedError

T = TypeVar("T")

_MODULUS = 1 << 63  # the sums must fit into SQLite's signed 64-bit integers

_SELECTED = {
    "items": "id, source, size, stamp, width, height, row, path, digest, label, metadata",
    "failures": "source, path, reason",
    "sources": "id, kind, root, relative, options",
}

_AT_ONCE = 400
"""Maximum number of rows that one SQL statement selects."""


class Sums:
    """Updates the checksum of items and failures (images that could not be indexed) during one transaction.

    The caller passes the rows that the transaction changes to `before` and, once they are changed, to `after`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        states = _states(connection)
        self._total = states.get("items_sum")
        if states.get("sums_of") != states.get("generation"):
            self._total = None

    def recount(self) -> None:
        """Makes `store` compute the checksum from all rows; used by transactions that change many rows."""
        self._total = None

    def before(self, items: Iterable[int] = (), failures: Iterable[tuple[int, bytes]] = ()) -> None:
        """Subtracts the hashes of rows that are about to be changed.

        items: ids of items. failures: (source number, path) of images that could not be indexed.
        """
        self._add(-1, items, failures)

    def after(self, items: Iterable[int] = (), failures: Iterable[tuple[int, bytes]] = ()) -> None:
        """Adds the hashes of rows that have been changed; rows that were deleted are skipped.

        items: ids of items. failures: (source number, path) of images that could not be indexed.
        """
        self._add(1, items, failures)

    def inserted_after(self, number: int) -> None:
        """Adds the hashes of all items whose id is larger than `number`."""
        if self._total is not None:
            self._total += _sum_where(self._connection, "items", "WHERE id > ?", (number,))

    def _add(self, sign: int, items: Iterable[int], failures: Iterable[tuple[int, bytes]]) -> None:
        if self._total is None:
            return
        for some in _batched(items, _AT_ONCE):
            marks = ",".join("?" * len(some))
            self._total += sign * _sum_where(self._connection, "items", f"WHERE id IN ({marks})", some)
        if self._connection.execute("SELECT 1 FROM failures LIMIT 1").fetchone() is None:
            return
        for pairs in _batched(failures, _AT_ONCE):
            marks = ",".join(["(?,?)"] * len(pairs))
            clause = f"WHERE (source, path) IN (VALUES {marks})"
            self._total += sign * _sum_where(self._connection, "failures", clause, itertools.chain(*pairs))

    def store(self) -> None:
        """Writes the checksums to the table `state`; must be called last in a transaction."""
        total = items_sum(self._connection) if self._total is None else self._total % _MODULUS
        values = ("items_sum", total), ("sources_sum", sources_sum(self._connection))
        self._connection.executemany("INSERT OR REPLACE INTO state VALUES (?,?)", values)
        self._connection.execute(
            "INSERT OR REPLACE INTO state SELECT 'sums_of', value FROM state WHERE key = 'generation'"
        )


@contextlib.contextmanager
def kept(connection: sqlite3.Connection) -> Iterator[Sums]:
    """Yields a `Sums` for one transaction, and stores its checksums at the end of the block."""
    sums = Sums(connection)
    yield sums
    sums.store()


def items_sum(connection: sqlite3.Connection) -> int:
    """Computes the checksum of all items and failures, which are images that could not be indexed.

    Raises IndexDamagedError if a value has the wrong type.
    """
    return sum(_sum_where(connection, table) for table in ("items", "failures")) % _MODULUS


def sources_sum(connection: sqlite3.Connection) -> int:
    """Computes the checksum of all sources. Raises IndexDamagedError if a value has the wrong type."""
    return _sum_where(connection, "sources") % _MODULUS


def problems(connection: sqlite3.Connection) -> list[str]:
    """Compares the recorded checksums with the rows; returns a message for each checksum that differs.

    The list is empty if the index has no checksums, or if a version of simsearch without checksums changed it last.
    """
    states = _states(connection)
    generation, of = states.get("generation", 0), states.get("sums_of", 0)
    if of < generation or "sums_of" not in states:
        return []
    if of > generation:
        return [f"the generation is {generation}, but the checksums are of generation {of}"]
    found = {"items_sum": items_sum(connection), "sources_sum": sources_sum(connection)}
    what = {"items_sum": "items and failures", "sources_sum": "sources"}
    return [
        f"the {what[key]} have checksum {total:016x}, expected {states.get(key, 0):016x}"
        for key, total in found.items()
        if total != states.get(key)
    ]


def _batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields the values in lists of `size` values; the last list may be shorter."""
    rest = iter(values)
    while some := list(itertools.islice(rest, size)):
        yield some


def _states(connection: sqlite3.Connection) -> dict[str, int]:
    return {key: value for key, value in connection.execute("SELECT key, value FROM state") if type(value) is int}


def _sum_where(connection: sqlite3.Connection, table: str, clause: str = "", values: Iterable[Any] = ()) -> int:
    rows = connection.execute(f"SELECT {_SELECTED[table]} FROM {table} {clause}", tuple(values))
    try:
        if table == "items":
            return sum(map(_item_hash, rows))
        return sum(_hash(table.encode() + b"".join(map(_packed, row))) for row in rows)
    except (TypeError, AttributeError, struct.error) as error:
        raise IndexDamagedError(f"items.sqlite: a value of the table {table} has the wrong type") from error


def _item_hash(row: Sequence[Any]) -> int:
    *numbers, path, digest, label, metadata = row
    texts = (label or "").encode(), (metadata or "").encode()
    lengths = len(path), len(digest), -1 if label is None else len(texts[0]), len(texts[1])
    return _hash(b"".join((struct.pack("<11q", *numbers, *lengths), path, digest, *texts)))


def _packed(value: Any) -> bytes:
    data = value.encode() if isinstance(value, str) else b"%d" % value if isinstance(value, int) else bytes(value)
    return struct.pack("<q", len(data)) + data


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
