"""Conditions on items: `label=cat`, `path~*/2023/*`, `year>2000`, turned into SQL with bound parameters."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
_SQL = {"=": "IS", "!=": "IS NOT", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "~": "GLOB"}

_OPERATORS = "operators: = != < > <= >= and ~ for a glob"

Where = Mapping[str, Any] | Iterable[str]
"""What `Engine.search(where=...)` takes: {"label": "cat"}, or conditions as on the command line."""


@dataclass(frozen=True)
class Condition:
    """`field operator value`. A field that is no column of the items is looked up in the metadata."""

    field: str
    operator: str
    value: Any

    @classmethod
    def parse(cls, clause: str) -> Condition:
        """Reads one `--filter`. Raises UsageError."""
        match = _SYNTAX.fullmatch(clause)
        if not match:
            raise UsageError(f"filter {clause!r} is not FIELD=VALUE", hint=_OPERATORS)
        if match[3][:1] in {"=", "<", ">"}:
            raise UsageError(f"filter {clause!r} has no operator {match[2] + match[3][0]!r}", hint=_OPERATORS)
        return cls(match[1], match[2], match[3])

    def sql(self) -> tuple[str, list[Any]]:
        """An SQL expression over the table `items`, and its parameters."""
        parameters: list[Any] = []
        column = _COLUMNS.get(self.field)
        if column is None:
            name = replace_surrogates(self.field.removeprefix("metadata.").replace('"', '""'))
            column = "json_extract(metadata, ?)"
            parameters.append(f'$."{name}"')
        operator = _SQL[self.operator]
        if self.field == "path":  # as stored or as printed; may hold bytes that are no UTF-8, which only a BLOB can
            either = " OR ".join(f"{path} {_SQL[self.operator.lstrip('!')]} CAST(? AS TEXT)" for path in _PATHS)
            negation = "NOT " if self.operator == "!=" else ""
            return f"{negation}({either})", [os.fsencode(str(self.value))] * len(_PATHS)
        if self.operator == "~":
            return f"{column} {operator} ?", [*parameters, replace_surrogates(str(self.value))]
        found = as_number(self.value)
        if found is None or self.field == "label":
            return f"{column} {operator} ?", [
                *parameters,
                None if self.value is None else replace_surrogates(str(self.value)),
            ]
        if self.operator in {"=", "!="}:  # "2000" equals both the number and the text
            both = f"({column} IS ? OR {column} IS ?)"
            return ("NOT " if self.operator == "!=" else "") + both, [*parameters, found, *parameters, str(self.value)]
        numeric = f"typeof({column}) IN ('integer', 'real') AND {column} {operator} ?"
        return f"({numeric})", [*parameters, *parameters, found]


def conditions(where: Where | None) -> list[Condition]:
    """Reads either form of `where`; all conditions must hold."""
    if where is None:
        return []
    if isinstance(where, str):
        return [Condition.parse(where)]
    if isinstance(where, Mapping):
        for field, value in where.items():
            if not isinstance(value, str | int | float | None):
                raise UsageError(f"filter {field!r}: {value!r} is neither text nor a number")
        return [Condition(str(field), "=", value) for field, value in where.items()]
    if not isinstance(where, Iterable):
        raise UsageError(f"{where!r} is no list of conditions")
    return [Condition.parse(str(clause)) for clause in where]


def as_number(value: Any) -> float | int | None:
    """The number that a value is or spells, as SQLite can hold it."""
    if value in ("true", "false"):  # as SQLite reads them from JSON
        return int(value == "true")
    if not isinstance(value, int | float | str):
        return None
    for kind in (float,) if isinstance(value, float) else (int, float):
        try:
            number = kind(value)
            if math.isfinite(number) and (kind is float or abs(number) < 2**63):
                return number
        except (ValueError, OverflowError):
            continue
    return None


def replace_surrogates(value: str) -> str:
    """A label taken from a file name may hold bytes that are no UTF-8, which a TEXT column cannot."""
    return _SURROGATES.sub("\ufffd", value)
