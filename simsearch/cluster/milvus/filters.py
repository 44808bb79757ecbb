"""Conditions on items in Milvus's language, where they mean the same in it to the letter; the others are left over.

Milvus has no globs (but for a text's beginning), no order across types, and as many ways of taking a field that is
missing as it has versions. What it cannot say, or says differently, is answered by `matching`: SQLite, in memory, over
the fields of the items that the other conditions leave.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from simsearch.errors import UsageError
from simsearch.images.sources.base import SEPARATOR
from simsearch.storage.filters import Condition, as_number

_NUMBERS = {"id": "id", "width": "width", "height": "height", "bytes": "size"}
_OPERATORS = {"=": "==", "!=": "!=", "<": "<", ">": ">", "<=": "<=", ">=": ">="}
_PLAIN = re.compile(r"[^\\\"\x00-\x1f\ud800-\udfff]*")
"""Text that needs no escaping."""

_START = re.compile(r"[^*?\[\]%_\\\"\x00-\x1f\ud800-\udfff]*\*")
"""A glob that means a text's beginning, and that is written so in every version."""

Roots = dict[int, tuple[str, str]]
"""The kind and the root of each source, by number."""


def to_milvus_expression(wanted: Sequence[Condition], roots: Roots) -> tuple[str, list[Condition]]:
    """An expression that holds what Milvus can say of the conditions ("" for nothing), and those it cannot."""
    said, rest = [], []
    for condition in wanted:
        expression = _one(condition, roots)
        if expression is None:
            rest.append(condition)
        else:
            said.append(f"({expression})")
    return " and ".join(said), rest


def _one(condition: Condition, roots: Roots) -> str | None:
    value, operator = condition.value, condition.operator
    if condition.field in _NUMBERS:
        found = as_number(value)
        if isinstance(found, int) and operator in _OPERATORS:
            return f"{_NUMBERS[condition.field]} {_OPERATORS[operator]} {found}"
        return None
    if value is not None and not (_START if operator == "~" else _PLAIN).fullmatch(str(value)):
        return None
    if condition.field == "label":
        return _label(operator, value)
    if condition.field == "path":
        return _path(operator, str(value), roots)
    return _metadata(condition.field.removeprefix("metadata."), operator, value)


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
    """A path is meant as stored or as printed, which begins with the root of its source."""
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
    """Equality only, of text and whole numbers: order is across types in SQLite, but not in Milvus."""
    if operator != "=" or value is None or not _PLAIN.fullmatch(name) or not name:
        return None
    field = f'metadata["{name}"]'
    alternatives = [f'{field} == "{value}"']
    found = as_number(value)
    if isinstance(found, float):
        return None
    if found is not None:
        alternatives.append(f"{field} == {found}")
        if found in (0, 1):  # as SQLite reads true and false from JSON
            alternatives.append(f"{field} == {'true' if found else 'false'}")
    return " or ".join(alternatives)


def matching(rows: Iterable[Sequence[Any]], wanted: Sequence[Condition], roots: Roots) -> list[int]:
    """The ids of the rows that meet all conditions.

    rows: (id, source, path, label, metadata, size, width, height) of items, as `reader.Item` has them.
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
        parts, parameters = [], []
        for condition in wanted:
            expression, values = condition.sql()
            parts.append(expression)
            parameters += values
        try:
            found = database.execute(f"SELECT id FROM items WHERE {' AND '.join(parts)} ORDER BY id", parameters)
        except sqlite3.OperationalError as error:
            raise UsageError(f"a filter cannot be used: {error}") from error
        ids = [int(row[0]) for row in found]
    database.close()
    return ids
