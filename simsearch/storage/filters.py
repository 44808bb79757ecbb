"""Parses conditions on items, such as `label=cat` or `path~*/2023/*`, and turns them into SQL with bound parameters."""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simsearch.common import suggestions
from simsearch.common.numbers import written_number
from simsearch.errors import UsageError

_SYNTAX = re.compile(r"\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")
_COLUMNS = {
    "label": "label",
    "path": "CAST(path AS TEXT)",
    "id": "id",
    "width": "width",
    "height": "height",
    "bytes": "size",
}
_PATHS = (
    "CAST(path AS TEXT)",
    "(SELECT CAST(root AS TEXT) || CASE kind WHEN 'folder' THEN '/' ELSE '!/' END FROM sources WHERE id = items.source)"
    " || CAST(path AS TEXT)",
)
_ORDER = "<", ">", "<=", ">="
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_LISTED = 20
"""Maximum number of fields that an error message lists."""
_SQL = {"=": "IS", "!=": "IS NOT", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "~": "GLOB"}

_OPERATORS = "for example label=cat; operators: = != < > <= >= and ~ for a glob"

FIELDS = tuple(_COLUMNS)
"""The fields that every item has; all other fields are in an item's metadata."""

NUMBERS = "id", "width", "height", "bytes"
"""The members of `FIELDS` whose values are numbers."""

Where = Mapping[str, Any] | Iterable[str]
"""The type of `where` in `Engine.search`: a mapping such as {"label": "cat"}, or conditions such as ["label=cat"]."""


@dataclass(frozen=True)
class Condition:
    """A condition on items: `field operator value`.

    field: one of `FIELDS`, or the name of a field in the metadata, with or without the prefix `metadata.`.
    operator: =, !=, <, >, <= or >=, or ~ for a glob.
    values: one value. With "=" there may be several, of which an item needs to have only one.
    """

    field: str
    operator: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, clause: str) -> Condition:
        """Parses a condition such as "label=cat", the argument of `--filter`. Raises UsageError."""
        match = _SYNTAX.fullmatch(clause)
        if not match:
            raise UsageError(f"filter {clause!r} is not FIELD=VALUE", hint=_OPERATORS)
        if match[3][:1] in {"=", "<", ">"}:
            raise UsageError(f"filter {clause!r}: there is no operator {match[2] + match[3][0]!r}", hint=_OPERATORS)
        return cls(match[1], match[2], (match[3],))

    def __str__(self) -> str:
        return " or ".join(f"{self.field}{self.operator}{value}" for value in self.values)

    @property
    def key(self) -> str | None:
        """The name of the field in the metadata; None if the field is one of `FIELDS`."""
        return None if self.field in _COLUMNS else replace_surrogates(self.field.removeprefix("metadata."))

    def check(self) -> None:
        """Raises UsageError if the field is id, width, height or bytes (see `NUMBERS`) and a value is not a number.

        A condition with the operator "~" is not checked, since this operator takes any text.
        """
        if self.field not in NUMBERS or self.operator == "~":
            return
        for value in self.values:
            if value is not None and _bound(value) is None and not isinstance(value, int | float):
                raise _not_a_number(replace(self, values=(value,)))

    def sql(self) -> tuple[str, list[Any]]:
        """Returns an SQL expression that is true for items that meet the condition, and its parameters."""
        if len(self.values) > 1 and self.field != "path":
            return self._sql_of_many()
        parts, parameters = [], []
        for value in self.values:
            expression, given = self._sql(value)
            parts.append(f"({expression})")
            parameters += given
        while len(parts) > 1:  # SQLite limits the depth of an expression
            parts = [" OR ".join(parts[start : start + 2]) for start in range(0, len(parts), 2)]
            parts = [f"({part})" for part in parts]
        return parts[0] if parts else "0", parameters

    def _sql_of_many(self) -> tuple[str, list[Any]]:
        """Returns an SQL expression that is true for items with any of the values, and its parameters.

        The values are passed as one JSON array, since SQLite limits the number of parameters.
        """
        column, parameters = (_COLUMNS[self.field], []) if self.key is None else _metadata_value(self.key)
        numbers = [] if self.field == "label" else [as_number(value) for value in self.values]
        texts = [] if self.field in NUMBERS else [_as_text(v) for v in self.values if v is not None]
        among = [*(number for number in numbers if number is not None), *map(replace_surrogates, texts)]
        expression = f"{column} IN (SELECT value FROM json_each(?))"
        null = f" OR {column} IS NULL" if None in self.values else ""
        return expression + null, [*parameters, json.dumps(among), *(parameters if null else [])]

    def _sql(self, value: Any) -> tuple[str, list[Any]]:
        if self.field == "path":  # the path as stored or as printed; a BLOB, as it may not be UTF-8
            either = " OR ".join(f"{path} {_SQL[self.operator.lstrip('!')]} CAST(? AS TEXT)" for path in _PATHS)
            negation = "NOT " if self.operator == "!=" else ""
            return f"{negation}({either})", [os.fsencode(str(value))] * len(_PATHS)
        column, parameters = (_COLUMNS[self.field], []) if self.key is None else _metadata_value(self.key)
        operator = _SQL[self.operator]
        text = None if value is None else replace_surrogates(_as_text(value))
        if self.operator == "~":
            return f"{column} {operator} ?", [*parameters, text]
        if self.operator in {"=", "!="}:
            found = None if self.field == "label" else as_number(value)
            if found is None:
                return f"{column} {operator} ?", [*parameters, text]
            both = f"({column} IS ? OR {column} IS ?)"  # a value 2000 matches both the number and the text
            return ("NOT " if self.operator == "!=" else "") + both, [*parameters, found, *parameters, text]
        bound = None if self.field == "label" else _bound(value)
        if bound is None:  # texts are compared with texts only
            return f"typeof({column}) = 'text' AND {column} {operator} ?", [*parameters, *parameters, text]
        return f"{ORDERED}({column}) {operator} ?", [*parameters, bound]


ORDERED = "simsearch_ordered"
"""The SQL function that `<` and `>` apply to an item's value to compare it with a number; see `_ordered`."""


def _ordered(value: Any) -> float | int | None:
    """Returns an item's value as the number that `<` and `>` compare; None if the value is not a number.

    A decimal text such as "1.50" counts as a number. For None, every comparison with a number is false.
    """
    if isinstance(value, str):
        return float(value) if _DECIMAL.fullmatch(value) else None
    return value if isinstance(value, int | float) else None


def _metadata_value(key: str) -> tuple[str, list[Any]]:
    """Returns an SQL expression for the value of a field in the metadata, and its parameters.

    For most names of fields, this is json_extract, which is faster than json_each. For a name that JSON writes with
    escapes (with quotes, backslashes, or characters that are not printable ASCII), it is json_each: versions of SQLite
    differ in how json_extract looks up such a name.
    """
    if key.isascii() and key.isprintable() and not {'"', "\\"} & set(key):
        return "json_extract(metadata, ?)", [f'$."{key}"']
    return "(SELECT value FROM json_each(metadata) WHERE key IS ?)", [key]


def value_counts(connection: sqlite3.Connection, field: str, limit: int) -> dict[str, int]:
    """Returns each text in a field with the number of items that have it; the most frequent text is first.

    field: "label", or a field of the metadata. limit: the maximum number of texts; -1 for all.
    """
    key = Condition(field, "=", ()).key
    value, parameters = (_COLUMNS[field], []) if key is None else _metadata_value(key)
    query = f"SELECT {value}, count(*) FROM items WHERE typeof({value}) = 'text' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?"
    return dict(connection.execute(query, (*parameters, *parameters, limit)).fetchall())


def select(connection: sqlite3.Connection, column: str, wanted: Sequence[Condition]) -> sqlite3.Cursor:
    """Selects the items that meet all conditions; returns a cursor over their values in one column.

    column: the SQL of the column. wanted: the conditions.
    Raises UsageError if a condition compares a numeric field (see `NUMBERS`) with a value that is not a number, and
    sqlite3.OperationalError if SQLite cannot run the statement, for example because a glob is too long.
    """
    parts, parameters = [], []
    for condition in wanted:
        condition.check()
        expression, values = condition.sql()
        parts.append(f"({expression})")
        parameters += values
    where = " WHERE " + " AND ".join(parts) if parts else ""
    connection.create_function(ORDERED, 1, _ordered, deterministic=True)
    return connection.execute(f"SELECT {column} FROM items{where}", parameters)


def check_fields(connection: sqlite3.Connection, wanted: Iterable[Condition], found: int) -> None:
    """Raises UsageError for a condition that must be a mistake.

    There are two such mistakes: a field that no item's metadata has, and a text after <, >, <= or >= although all
    values of the field in the metadata are numbers.
    If no item was found, all conditions are checked. If items were found, only the conditions with "!=" are checked:
    if the field of such a condition is misspelt, no item has the field, and so all items meet the condition.
    wanted: the conditions. found: the number of items that meet all conditions.
    """
    for condition in wanted:
        if condition.key is None or (found and condition.operator != "!="):
            continue
        value, parameters = _metadata_value(condition.key)
        kinds = f"SELECT typeof({value}) FROM items WHERE {value} IS NOT NULL"
        if connection.execute(kinds + " LIMIT 1", parameters * 2).fetchone() is None:
            if connection.execute("SELECT 1 FROM items LIMIT 1").fetchone() is None:
                return
            keys = connection.execute("SELECT DISTINCT key FROM items, json_each(metadata) ORDER BY key")
            raise _no_field(condition.key, [str(row[0]) for row in keys])
        if condition.operator in _ORDER and _bound(condition.values[0]) is None:
            found_kinds = {row[0] for row in connection.execute(kinds + " GROUP BY 1", parameters * 2)}
            if found_kinds <= {"integer", "real"}:
                raise _not_a_number(condition)


def _not_a_number(condition: Condition) -> UsageError:
    hint = f"{condition.field} is a number, as in {condition.field}{condition.operator}1000"
    return UsageError(f"filter {condition}: {condition.values[0]!r} is not a number", hint=hint)


def _no_field(name: str, known: Sequence[str]) -> UsageError:
    fields = [*_COLUMNS, *known]
    near = suggestions.nearest(name, fields)
    shown = ", ".join(fields[:_LISTED]) + (", ..." if len(fields) > _LISTED else "")
    return UsageError(
        f"no item has a field {name!r}; the fields are {shown}", hint=f"did you mean {near}?" if near else None
    )


def conditions(where: Where | None) -> list[Condition]:
    """Parses `where`, a mapping or a list, into conditions. An item must meet all of them. Raises UsageError.

    If a field has several values with "=", they become one condition, and an item needs to have only one of the values.
    So {"label": ["cat", "dog"]} and ["label=cat", "label=dog"] both match the cats and the dogs.
    """
    if where is None:
        return []
    if isinstance(where, Mapping):
        return [Condition(str(field), "=", tuple(_plain_values(field, value))) for field, value in where.items()]
    given: Any = where
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise UsageError(f"{where!r} is not a list of conditions")
    parsed = [Condition.parse(str(clause)) for clause in ([where] if isinstance(where, str) else where)]
    facets: dict[str, list[Any]] = {}
    for condition in parsed:
        if condition.operator == "=":
            facets.setdefault(condition.field, []).extend(condition.values)
    others = [condition for condition in parsed if condition.operator != "="]
    return [*(Condition(field, "=", tuple(values)) for field, values in facets.items()), *others]


def _plain_values(field: Any, value: Any) -> Iterator[Any]:
    """Yields `value`, or each of its elements if it is a list, set or array. field: the field's name, for messages.

    Raises UsageError for an element that is neither text nor a number nor None.
    """
    scalar = isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", None) == 0
    many = isinstance(value, Iterable) and not scalar
    for each in value if many else [value]:
        plain = each.item() if getattr(each, "ndim", None) == 0 else each  # a scalar of numpy
        if not isinstance(plain, str | int | float | None):
            raise UsageError(f"filter {field!r}: {each!r} is neither text nor a number")
        yield plain


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_number(value: Any) -> float | int | None:
    """Converts a value to a number that SQLite can store exactly; returns None if that is not possible.

    A text is converted only if it is the usual way to write the number: "7" is, but "007" and "1.50" are not. Integers
    from 2**63 on are too large for SQLite. The texts "true" and "false" become 1 and 0.
    """
    if value in ("true", "false"):  # SQLite reads the JSON values true and false as 1 and 0
        return int(value == "true")
    found = written_number(value) if isinstance(value, str) else value
    if isinstance(found, float):
        return found if math.isfinite(found) else None
    return found if isinstance(found, int) and abs(found) < 2**63 else None


def _bound(value: Any) -> float | int | None:
    """Converts the value of a condition with `<` or `>` to a number; returns None if it is not a number.

    Converts everything that `as_number` converts, and also decimal texts such as "1.50" and integers too large for
    SQLite.
    """
    found = as_number(value)
    if found is None and (isinstance(value, int) or (isinstance(value, str) and _DECIMAL.fullmatch(value))):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    return found


def replace_surrogates(value: str) -> str:
    """Replaces the surrogates in a text by U+FFFD, since a TEXT column of SQLite cannot store surrogates.

    In a file name, Python uses surrogates for bytes that are not UTF-8.
    """
    return _SURROGATES.sub("\ufffd", value)
