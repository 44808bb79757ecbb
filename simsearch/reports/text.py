"""Results as text: tables, JSON, JSON lines, CSV and paths."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from simsearch.common.printable import printable
from simsearch.search.results import QueryResult

FORMATS = ("table", "json", "jsonl", "csv", "paths")


def render(
    answers: Sequence[QueryResult], form: str, end: str = "\n", show_path: Callable[[str], str] = printable
) -> str:
    """Returns all queries with their matches as text.

    form: one of FORMATS.
    end: the text after each path in the format "paths".
    show_path: converts a path to printable text, in the format "table".
    """
    if form == "json":
        return json.dumps([answer.to_dict() for answer in answers], indent=1) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(answer.to_dict()) + "\n" for answer in answers)
    if form == "csv":
        return _csv(answers)
    if form == "paths":
        return "".join(match.path + end for answer in answers for match in answer.matches)
    blocks = []
    for answer in answers:
        lines = [f"{printable(answer.query)}: no match"]
        if answer.matches:
            rows = [("rank", "distance", "similarity", "id", "label", "path")]
            for m in answer.matches:
                numbers = str(m.rank), format_distance(m.distance), m.word, str(m.id)
                rows.append((*numbers, m.label or "-", m.path))
            lines = [printable(answer.query), *table(rows, right=4, last=show_path)]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def table(rows: Iterable[Sequence[str]], right: int = 0, last: Callable[[str], str] = printable) -> list[str]:
    """Returns the lines of a table, with columns two spaces apart. The first `right` columns are right-aligned.

    `printable` makes control characters in cells visible.
    last: the function to use instead of `printable` for cells of the last column, which often are paths.
    """
    rows = [[*map(printable, row[:-1]), last(row[-1])] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column < right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that start a formula in a spreadsheet; the last four, full-width forms, only in some programs."""


def to_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Returns rows as the text of a CSV file. Texts are escaped by `csv_cell`, so that none is read as a formula."""
    lines = []
    for row in rows:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")  # with \r here, csv quotes cells that contain \r
        writer.writerow(csv_cell(value) if isinstance(value, str) else value for value in row)
        lines.append(out.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def csv_cell(text: str) -> str:
    """Returns a text for a CSV cell, with an apostrophe in front if a spreadsheet would read the text as a formula."""
    return "'" + text if text != "-" and text.startswith(_FORMULAS) else text


def format_distance(number: float) -> str:
    """Returns a distance with four significant digits; 0 if it is below 0.001, which may be a rounding error."""
    return "0" if number < 1e-3 else f"{number:.4g}"


def format_size(number: float) -> str:
    """Returns a number of bytes with a unit, such as 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def _csv(answers: Sequence[QueryResult]) -> str:
    rows: list[Sequence[Any]] = [("query", "rank", "id", "path", "label", "distance", "similarity", "metadata")]
    for answer in answers:
        for m in answer.matches:
            metadata = json.dumps(m.metadata) if m.metadata else ""
            numbers = f"{m.distance:.6g}", f"{m.similarity:.6g}"
            rows.append((answer.query, m.rank, m.id, m.path, m.label or "", *numbers, metadata))
    return to_csv(rows)
