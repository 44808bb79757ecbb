"""Translates conditions on items into Milvus expressions, if Milvus gives them exactly the same meaning.

Prefixes are the only globs that Milvus has. It cannot compare values of different types, and its versions differ in
how they treat a missing field. Conditions that Milvus cannot express, or would interpret differently, are checked by
`matching`: it puts the items that meet the other conditions into an SQLite database in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from simsearch.errors import UsageError
from simsearch.images.sources.base import SEPARATOR
from simsearch.storage.filters import Condition, as_number, check_fields, select

_NUMBERS = {"id": "id", "width": "width", "height": "height", "bytes": "size"}
_OPERATORS = {"=": "==", "!=": "!=", "<": "<", ">": ">", "<=": "<=", ">=": ">="}
_PLAIN = re.compile(r"[^\\\"\x00-\x1f\ud800-\udfff]*")
"""Text that needs no escaping."""

_START = re.compile(r"[^*?\[\]%_\\\"\x00-\x1f\ud800-\udfff]*\*")
"""A prefix glob, such as `abc*`, that every version of Milvus interprets alike."""

Roots = dict[int, tuple[str, str]]
"""A dict from the number of each source to its kind and root."""


def to_milvus_expression(wanted: Sequence[Condition], roots: Roots) -> tuple[str, list[Condition]]:
    """Returns a Milvus expression, and the conditions that it leaves out because Milvus cannot express them.

    The expression is "" if it leaves all conditions out. roots: see `Roots`.
    Raises UsageError.
    """
    expressions, rest = [], []
    for condition in wanted:
        condition.check()
        parts = [_one(condition, value, roots) for value in condition.values]
        if not parts or None in parts:
            rest.append(condition)
        else:
            expressions.append("(" + " or ".join(f"({part})" for part in parts) + ")")
    return " and ".join(expressions), rest


def _one(condition: Condition, value: Any, roots: Roots) -> str | None:
    operator = condition.operator
    if condition.field in _NUMBERS:
        found = as_number(value)
        if isinstance(found, int) and operator in _OPERATORS:
            return f"{_NUMBERS[condition.field]} {_OPERATORS[operator]} {int(found)}"
        return None
    if value is not None and not (_START if operator == "~" else _PLAIN).fullmatch(str(value)):
        return None
    if condition.field == "label":
        return _label(operator, value)
    if condition.field == "path":
        return _path(operator, str(value), roots)
    return _metadata(condition.key or "", operator, value)


def _label(operator: str, value: Any) -> str | None:
    if value is None:
        return {"=": "labelled == false", "!=": "labelled == true"}.get(operator)
    text = str(value)
    if operator == "=":
        return f'labelled == true and label == "{text}"'
    if operator == "!=":
        return f'labelled == false or label != "{text}"'
    if operator == "~":
        return f'labelled == true and label like "{text[:-1]}%"'
    return f'labelled == true and label {_OPERATORS[operator]} "{text}"'


def _path(operator: str, text: str, roots: Roots) -> str | None:
    """Returns a Milvus expression for a condition on the path; None if Milvus cannot express it.

    text: a path or prefix as stored (relative to the source), or as printed (with the root of the source before it).
    """
    if operator == "~":
        start = text[:-1]
        parts = [f'path like "{start}%"'] if start else [""]
        for source, (kind, root) in roots.items():
            whole = root + ("/" if kind == "folder" else SEPARATOR)
            if whole.startswith(start):
                parts.append(f"source == {source}")
            elif start.startswith(whole):
                parts.append(f'(source == {source} and path like "{start[len(whole) :]}%")')
    elif operator in {"=", "!="}:
        parts = [f'path == "{text}"']
        for source, (kind, root) in roots.items():
            whole = root + ("/" if kind == "folder" else SEPARATOR)
            if text.startswith(whole):
                parts.append(f'(source == {source} and path == "{text[len(whole) :]}")')
    else:
        return None
    if "" in parts:
        return None
    either = " or ".join(parts)
    return f"not ({either})" if operator == "!=" else either


def _metadata(name: str, operator: str, value: Any) -> str | None:
    """Returns a Milvus expression for a condition on metadata; None if Milvus cannot express it.

    Only the operator "=" with a text or an integer can be expressed. For "<" and ">", Milvus would have to compare
    values of different types. Unlike SQLite, it cannot.
    """
    if operator != "=" or value is None or not _PLAIN.fullmatch(name) or not name:
        return None
    field = f'metadata["{name}"]'
    if isinstance(value, bool):
        return None
    alternatives = [f'{field} == "{value}"']
    found = as_number(value)
    if isinstance(found, float):
        return None
    if found is not None:
        alternatives.append(f"{field} == {found}")
        if found in (0, 1):  # SQLite reads true and false in JSON as 1 and 0
            alternatives.append(f"{field} == {'true' if found else 'false'}")
    return " or ".join(alternatives)


def matching(rows: Iterable[Sequence[Any]], wanted: Sequence[Condition], roots: Roots) -> list[int]:
    """Returns the ids of the rows that meet all conditions. Raises UsageError.

    rows: (id, source, path, label, metadata, size, width, height) of each item, as in `storage.reader.Item`.
    """
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE sources (id INTEGER PRIMARY KEY, kind TEXT, root BLOB)")
        database.executemany(
            "INSERT INTO sources VALUES (?,?,?)", [(n, kind, os.fsencode(root)) for n, (kind, root) in roots.items()]
        )
        database.execute(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, source INTEGER, path BLOB, label TEXT,"
            " metadata TEXT, size INTEGER, width INTEGER, height INTEGER)"
        )
        database.executemany(
            "INSERT INTO items VALUES (?,?,?,?,?,?,?,?)",
            [
                (n, source, os.fsencode(path), label, json.dumps(metadata) if metadata else None, *rest)
                for n, source, path, label, metadata, *rest in rows
            ],
        )
        try:
            ids = sorted(int(row[0]) for row in select(database, "id", wanted))
        except sqlite3.OperationalError as error:
            raise UsageError(f"a filter cannot be used: {error}") from error
    database.close()
    return ids


def check_metadata(metadata: Iterable[dict[str, Any]], wanted: Sequence[Condition], found: int) -> None:
    """Raises UsageError if a condition on metadata must be a mistake; see `storage.filters.check_fields`.

    metadata: the metadata of every item in the collection. found: the number of items that meet all conditions. If
    it is above 0, only conditions with "!=" are checked: all items meet such a condition if its field is misspelt.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE items (metadata TEXT)")
        database.executemany("INSERT INTO items VALUES (?)", ((json.dumps(each),) for each in metadata))
        check_fields(database, wanted, found)
