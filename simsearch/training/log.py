"""Writes the log of a training, as JSON lines and as a chart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simsearch.common.atomic_files import atomic_write
from simsearch.reports import charts


class TrainingLog:
    """Passes each row of the log on to a function, and appends it to a file of JSON lines.

    A row "resume" is not appended. Instead, rows of later steps are deleted from the file, because the training repeats
    these steps.
    path: the file. If it is None, as in all processes except the first, rows are neither written nor passed on.
    resumed: True to keep the rows of an existing file. log: the function that gets the rows.
    """

    def __init__(self, path: Path | None, resumed: bool, log: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.log = path, log
        self.rows: list[dict[str, Any]] = []
        if path and path.exists() and resumed:
            self.rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        elif path:
            path.write_text("")

    def __call__(self, row: dict[str, Any]) -> None:
        if self.path is None:
            return
        self.log(row)
        if row["event"] == "resume":  # steps after the checkpoint are repeated
            self.rows = [old for old in self.rows if old.get("step", 0) <= row["step"]]
            self.path.write_text("".join(json.dumps(old) + "\n" for old in self.rows))
            return
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def draw(self, path: Path) -> None:
        """Writes the learning curve as a PNG file."""
        if self.path is not None and self.rows:
            atomic_write(path, charts.png(charts.curve(self.rows)))


def silent(row: dict[str, Any]) -> None:
    """Discards a row; the log function of all processes except the first."""
