"""The forms in which results are printed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence

from simsearch.search.results import QueryResult

FORMATS = ("table", "json", "jsonl", "csv", "paths")


def render(answers: Sequence[QueryResult], form: str, end: str = "\n") -> str:
    """All answers as text, in one of FORMATS; `end` closes each path of "paths"."""
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
        lines = [f"{answer.query}: no match"]
        if answer.matches:
            rows = [("rank", "distance", "similarity", "id", "label", "path")]
            for m in answer.matches:
                numbers = str(m.rank), format_distance(m.distance), f"{m.similarity:.2%}", str(m.id)
                rows.append((*numbers, printable(m.label or "-"), printable(m.path)))
            lines = [printable(answer.query), *table(rows, right=4)]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def table(rows: Iterable[Sequence[str]], right: int = 0) -> list[str]:
    """Rows as lines with aligned columns, two spaces apart; the first `right` columns are flush right."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column < right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """A name that cannot disturb the terminal: control characters become escapes."""
    return "".join(
        c if c.isprintable() or 0xDC80 <= ord(c) <= 0xDCFF else c.encode("unicode_escape").decode() for c in text
    )


def format_distance(number: float) -> str:
    """Four digits; what is left of nothing after float32 arithmetic is shown as nothing."""
    return "0" if number < 1e-3 else f"{number:.4g}"


def format_size(number: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def _csv(answers: Sequence[QueryResult]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["query", "rank", "id", "path", "label", "distance", "similarity", "metadata"])
    for answer in answers:
        for m in answer.matches:
            metadata = json.dumps(m.metadata) if m.metadata else ""
            writer.writerow(
                [
                    answer.query,
                    m.rank,
                    m.id,
                    m.path,
                    m.label or "",
                    f"{m.distance:.6g}",
                    f"{m.similarity:.6g}",
                    metadata,
                ]
            )
    return out.getvalue()
