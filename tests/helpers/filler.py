"""Indexes whose features are put in by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.engine import Engine
from simsearch.storage.creation import create
from simsearch.storage.database import Changes
from simsearch.storage.reader import Item
from tests.helpers.models import Colours

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS = ("one", "two", "three")


class Wide(Colours):
    """A model for indexes whose features are put in by hand: of another dimension, and never asked for any."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension


class Filler:
    """Puts features into an index as `sync` does, without images.

    Ids from 1 on in the order of `add`, rows in that of `add` and `edit`; labels go round, metadata is {"n": id - 1}.
    The files depend on the arguments alone, save for `created` in `meta.json`.
    """

    def __init__(self, path: Path, dimension: int, rows_per_shard: int = 8192) -> None:
        self.path, self.model = path, Wide(dimension)
        create(path, self.model)
        with Engine(path, model=self.model) as engine:
            replace(engine.meta, rows_per_shard=rows_per_shard).write(path)
        self.engine = Engine(path, model=self.model)
        self.source = self.engine.index.database.add_source("folder", "/nowhere", Path("/index"), {}).id
        self.rows = self.count = 0

    def add(self, features: NDArray[Any]) -> None:
        items = [self._item(self.count + n, self.rows + n) for n in range(len(features))]
        self.count += len(features)
        self._apply(features, Changes(inserted=items))

    def edit(self, numbers: Sequence[int], features: NDArray[Any]) -> None:
        """Gives items (1 for the first) other features, in new rows."""
        items = [replace(self._item(number - 1, self.rows + n), id=number) for n, number in enumerate(numbers)]
        self._apply(features, Changes(updated=items))

    def remove(self, numbers: Sequence[int]) -> None:
        self.engine.index.database.apply(Changes(deleted=[int(number) for number in numbers]))

    def _item(self, number: int, row: int) -> Item:
        label, digest = LABELS[number % len(LABELS)], row.to_bytes(32, "big")
        return Item(0, self.source, f"{number:06d}", label, {"n": number}, digest, number, 0, 1, 1, row)

    def _apply(self, features: NDArray[Any], changes: Changes) -> None:
        checksum = self.engine.shards.write(self.rows, np.asarray(features, np.float16))
        changes.blocks.append((self.rows, len(features), checksum))
        self.engine.index.database.apply(changes)
        self.rows += len(features)
