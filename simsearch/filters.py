"""Conditions on items: `label=cat`, `path~*/2023/*`, `year>2000`, turned into SQL with bound parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from simsearch.errors import UsageError

_SYNTAX = re.compile(r"\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_COLUMNS = {
    "label": "label",
    "path": "CAST(path AS TEXT)",
    "id": "id",
    "width": "width",
    "height": "height",
    "bytes": "size",
}
_SQL = {"=": "IS", "!=": "IS NOT", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "~": "GLOB"}

Where = Mapping[str, Any] | Iterable[str]
"""What `Engine.search(where=...)` takes: {"label": "cat"}, or conditions as on the command line."""


@dataclass(frozen=True)
class Condition:
    """`field operator value`. A field that is no column of the items is looked up in the metadata."""

    field: str
    operator: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads one `--filter`. Raises UsageError."""
        match = _SYNTAX.fullmatch(text)
        if not match:
            raise UsageError(f"filter {text!r} is not FIELD=VALUE", hint="operators: = != < > <= >= and ~ for a glob")
        return cls(match[1], match[2], match[3])

    def sql(self) -> tuple[str, list[Any]]:
        """An SQL expression over the table `items`, and its parameters."""
        parameters: list[Any] = []
        column = _COLUMNS.get(self.field)
        if column is None:
            name = self.field.removeprefix("metadata.").replace('"', '""')
            column = "json_extract(metadata, ?)"
            parameters.append(f'$."{name}"')
        operator = _SQL[self.operator]
        if self.operator == "~":
            return f"{column} {operator} ?", [*parameters, str(self.value)]
        number = _number(self.value)
        if number is None or (self.field in {"label", "path"}):
            value = self.value if self.value is None or isinstance(self.value, str) else str(self.value)
            return f"{column} {operator} ?", [*parameters, value]
        if self.operator in {"=", "!="}:  # "2000" equals both the number and the text
            both = f"({column} IS ? OR {column} IS ?)"
            text = self.value if isinstance(self.value, str) else str(self.value)
            return ("NOT " if self.operator == "!=" else "") + both, [*parameters, number, *parameters, text]
        numeric = f"typeof({column}) IN ('integer', 'real') AND {column} {operator} ?"
        return f"({numeric})", [*parameters, *parameters, number]


def conditions(where: Where | None) -> list[Condition]:
    """Reads either form of `where`; all conditions must hold."""
    if where is None:
        return []
    if isinstance(where, str):
        return [Condition.parse(where)]
    if isinstance(where, Mapping):
        return [Condition(str(field), "=", value) for field, value in where.items()]
    return [Condition.parse(text) for text in where]


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        return None
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None
