"""Opens SQLite databases that may come from a stranger: without features that could run code, and with limits.

The measures follow https://sqlite.org/security.html. The database of an index has the tables of simsearch and nothing
else, no views and no triggers. The size of a value is limited. A statement is stopped if it does far more work than a
database of this size should need.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from simsearch.errors import IndexDamagedError

LARGEST_VALUE = 64 << 20
"""Maximum size of a text, blob or row in bytes."""

STEP = 100_000
"""Number of SQLite operations in a step; a running statement is checked after each step."""

STEPS, STEP_BYTES = 200, 20_000
"""A statement may take STEPS steps, and one more step for every STEP_BYTES bytes of the database on disk."""

_BUILT_IN = ("sqlite_autoindex_", "sqlite_sequence", "sqlite_stat1")
"""Beginnings of the names of tables and indexes that SQLite itself adds to a database."""


class Connection(sqlite3.Connection):
    """A connection that stops a statement that takes far more operations than a database of this size should need."""

    budget: _Budget
    alone = False
    """True if the connection does not see changes that other connections make."""
    seen: tuple[int, int] | None = None
    """SQLite's data_version and the index's generation, as `Database.generation` has read them; None if it must read.

    The data_version changes when another connection commits, but not when this one does.
    """

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.budget.steps = 0
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        self.budget.steps = -1 << 60  # in effect unlimited, as there may be many values
        return super().executemany(*arguments)


class _Budget:
    """Counts the work that a running statement has done, in steps of `STEP` SQLite operations.

    path: the path of the database. The number of steps that a statement may take depends on the database's size.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.steps = path, 0

    def exceeded(self) -> bool:
        """Counts a step; returns True if the statement must stop."""
        self.steps += 1
        return self.steps > STEPS and self.steps > STEPS + _bytes_on_disk(self.path) // STEP_BYTES


def connect(uri: str, path: Path) -> Connection:
    """Opens a database that may come from a stranger, with limits on what its statements may do. Raises sqlite3.Error.

    uri: the URI of the database file, with the mode ("file:…?mode=ro").
    path: the path of the same file. The size of the file determines how much work a statement may do.
    """
    connection = sqlite3.connect(
        uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False, factory=Connection
    )
    connection.budget = _Budget(path)
    try:
        connection.set_progress_handler(connection.budget.exceeded, STEP)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        if configure := getattr(connection, "setconfig", None):  # Python 3.12
            configure(getattr(sqlite3, "SQLITE_DBCONFIG_DEFENSIVE"), True)  # noqa: B009, for checkers of 3.11
            configure(getattr(sqlite3, "SQLITE_DBCONFIG_ENABLE_TRIGGER"), False)  # noqa: B009
            configure(getattr(sqlite3, "SQLITE_DBCONFIG_ENABLE_VIEW"), False)  # noqa: B009
        for setting in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
            sqlite3.Connection.execute(connection, f"PRAGMA {setting}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def check_schema(connection: sqlite3.Connection, path: Path, schema: str) -> None:
    """Raises IndexDamagedError unless the database has the tables and indexes of `schema`, and nothing else."""
    expected = _expected(schema)
    found = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    texts = {name: _normalised(sql) for _, name, sql in found}
    for kind, name, _ in found:
        if isinstance(name, str) and name.startswith(_BUILT_IN) and kind in {"table", "index"}:
            continue
        if name not in expected:
            raise IndexDamagedError(f"{path} has the {kind} {name!r}, which simsearch does not make")
        if texts[name] != expected[name]:
            raise IndexDamagedError(f"{path}: the {kind} {name!r} is not as simsearch makes it")
    if missing := expected.keys() - texts.keys():
        raise IndexDamagedError(f"{path} has no table or index {sorted(missing)[0]!r}")


_known: dict[str, dict[str, str]] = {}


def _expected(schema: str) -> dict[str, str]:
    """Returns a dict from the name of each table and index that a schema creates to its SQL."""
    if schema not in _known:
        memory = sqlite3.connect(":memory:")
        memory.executescript(schema)
        rows = memory.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite%'").fetchall()
        memory.close()
        _known[schema] = {name: _normalised(sql) for name, sql in rows}
    return _known[schema]


def _normalised(sql: object) -> str:
    return " ".join(sql.split()) if isinstance(sql, str) else ""


def _bytes_on_disk(path: Path) -> int:
    """Returns the bytes that a database and its log take on disk; parts that were never written take none."""
    total = 0
    for name in (path, path.with_name(path.name + "-wal")):
        try:
            facts = os.stat(name)
        except OSError:
            continue
        total += min(facts.st_size, 512 * facts.st_blocks)
    return total
