"""Handing the features on: NumPy for everybody."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from simsearch.engine import Engine

_ROWS = 2048


def export_npy(engine: Engine, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Writes `features.npy` (N, D) float32 and, row by row, `items.jsonl`; returns N.

    Rows are in the order of the ids. Each file appears under its name only when it is complete. float32 holds the
    stored float16 values exactly.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with engine.store.reading() as reader:
            _, rows = reader.ids()
            opened = engine.opened(reader)
            partial = folder / ".features.npy.partial"
            shape = (len(rows), engine.meta.dimension)
            with partial.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(rows), _ROWS):
                    file.write(engine.shards.read(rows[start : start + _ROWS]).astype("<f4").tobytes())
                    progress(min(start + _ROWS, len(rows)), len(rows))
            listing = folder / ".items.jsonl.partial"
            with listing.open("w", encoding="utf-8") as lines:
                for item in reader.items():
                    path = opened[item.source].display(item.path)
                    facts = {"id": item.id, "path": path, "label": item.label, "metadata": item.metadata}
                    lines.write(json.dumps(facts) + "\n")
        os.replace(partial, folder / "features.npy")
        os.replace(listing, folder / "items.jsonl")
    except OSError as error:
        raise UsageError(f"cannot export to {folder}: {error.strerror}") from error
    return len(rows)
