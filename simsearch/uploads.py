"""Images that came over HTTP: kept in `uploads/` inside the index, named by a manifest that is one of its sources."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any

from simsearch import images
from simsearch.engine import Engine
from simsearch.errors import SimsearchError, UsageError
from simsearch.files import write_atomically


class Uploads:
    """Adds and removes; one at a time, since an index has one writer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, engine: Engine, query: dict[str, Any], largest: int) -> tuple[int, bool]:
        """The id of the image's item, and whether it is new. Raises SimsearchError."""
        data: bytes = query["image"]
        images.decode(data, engine.recipe.resize, largest)
        name = hashlib.sha256(data).hexdigest()
        folder = engine.path / "uploads"
        with self._lock:
            if found := self._find(engine, name):
                return found, False
            folder.mkdir(exist_ok=True)
            write_atomically(folder / name, data)
            row = {**query.get("metadata", {}), "path": name, "label": query.get("label")}
            others = [other for other in self._rows(engine) if other["path"] != name]
            self._write(engine, [*others, row])
            try:
                engine.add(folder / "items.jsonl")
            finally:  # what was refused must not come back with the next build
                found = self._find(engine, name)
                if found is None:
                    self._write(engine, others)
                    (folder / name).unlink()
            if found is None:
                raise SimsearchError("the image could not be indexed")
            return found, True

    def remove(self, engine: Engine, number: int) -> None:
        """Takes an item out of the index; its file too, if it came over HTTP. Raises ItemNotFoundError."""
        with self._lock:
            path = engine.paths([engine.item(number)])[0]
            engine.remove(number)
            name = path.rpartition("/")[2]
            if path == str((engine.path / "uploads" / name).absolute()):
                self._write(engine, [row for row in self._rows(engine) if row["path"] != name])
                (engine.path / "uploads" / name).unlink(missing_ok=True)

    def _find(self, engine: Engine, name: str) -> int | None:
        full = str((engine.path / "uploads" / name).absolute())
        try:
            return engine.find(full)[0].id
        except UsageError:
            return None

    def _rows(self, engine: Engine) -> list[dict[str, Any]]:
        path = engine.path / "uploads" / "items.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _write(self, engine: Engine, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(engine.path / "uploads" / "items.jsonl", text.encode())
