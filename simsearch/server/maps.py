"""The HTTP handler for maps: positions of items on a plane, and the fields to colour and search them by."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response

from simsearch.curation.map import representatives
from simsearch.engine import Engine
from simsearch.reports.map_columns import NONE, Categories, Numbers, columns, common_folder
from simsearch.server.background import Key
from simsearch.server.errors import reply
from simsearch.server.map_maker import Known, MapJob
from simsearch.server.service import SearchService
from simsearch.storage.stored_map import content_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.reader import Item

PATIENCE, STEP = 1.0, 0.02
"""Seconds to wait for a map before answering with the progress; seconds between two checks."""

KEPT = 2
"""The most answers kept in memory, compressed to some 20 bytes per item."""

PICTURED = 4000
"""Largest number of items in `representatives`. Of any length, its first items cover the map evenly."""

DIGITS = 4
"""Significant digits of positions; a screen shows fewer."""


@dataclass(frozen=True)
class MapAnswer:
    """The JSON answer with a map. data: compressed by gzip. tag: the ETag."""

    data: bytes
    tag: str


class Maps:
    """Answers with maps."""

    def __init__(self, service: SearchService) -> None:
        self.service = service
        self._kept: OrderedDict[Key, MapAnswer] = OrderedDict()
        self._lock = threading.Lock()

    async def map(self, request: Request, again: bool) -> Response:
        """Answers with the map of an index, or with the progress while it is being drawn.

        again: True to draw a new map if the last one is out of date; see `MapMaker.find`.
        """
        served = self.service.index(request)
        maker = self.service.map_maker
        known = await self.service.in_thread(lambda: maker.find(served, again))
        if isinstance(known, MapJob):
            await _wait(known.result)
            if not known.result.done():
                values = {"step": known.step, "done": known.done, "total": known.total}
                return reply(values, 202, {"retry-after": "1"})
            known = known.result.result()
        ready = known
        answer = await self.service.in_thread(lambda: served.run(lambda engine: self._answer(engine, ready)))
        headers = {"etag": answer.tag, "cache-control": "private, no-cache", "vary": "accept-encoding"}
        if answer.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(answer.data, media_type="application/json", headers=headers)
        text = await self.service.in_thread(lambda: gzip.decompress(answer.data))
        return Response(text, media_type="application/json", headers=headers)

    def _answer(self, engine: Engine, known: Known) -> MapAnswer:
        """Returns the answer with a map for the present state of the index, from memory if it was made before."""
        with engine.reading() as reader:
            key = known.token, reader.state("generation")
            with self._lock:
                if (found := self._kept.get(key)) is not None:
                    self._kept.move_to_end(key)
                    return found
            values = self._values(engine, known, list(reader.items()))
        text = json.dumps(values, separators=(",", ":")).encode()
        tag = f'"{hashlib.sha256(text).hexdigest()[:32]}"'
        made = MapAnswer(gzip.compress(text, 6, mtime=0), tag)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    def _values(self, engine: Engine, known: Known, items: list[Item]) -> dict[str, Any]:
        """Returns the JSON fields of a map, without items that were removed or changed after it was drawn."""
        drawn = known.drawn
        places, there = _still_there(drawn.ids, drawn.contents, items)
        shown = [items[place] for place in there.tolist()]
        positions, clusters = drawn.positions[places], drawn.cluster_ids[places]
        paths = [item.path for item in shown] if self.service.settings.relative else engine.paths(shown)
        folder = common_folder(paths)
        named = [cluster.name for cluster in drawn.clusters]
        labels, metadata = [item.label for item in shown], [item.metadata for item in shown]
        fields = [_field(name, column) for name, column in columns(clusters, named, labels, metadata)]
        fields[0]["notes"] = [cluster.note for cluster in drawn.clusters]
        chosen = representatives(positions, PICTURED) if len(shown) else np.zeros(0, np.int64)
        return {
            "items": len(shown),
            "added": len(items) - len(shown),
            "removed": len(drawn.ids) - len(shown),
            "redraws": self.service.map_maker.redraws(engine),
            "facts": drawn.facts,
            "ids": [item.id for item in shown],
            "x": _rounded(positions[:, 0]),
            "y": _rounded(positions[:, 1]),
            "folder": folder,
            "paths": [path.removeprefix(folder) for path in paths],
            "fields": fields,
            "representatives": chosen.tolist(),
        }


def _still_there(
    ids: NDArray[np.int64], contents: NDArray[np.uint64], items: list[Item]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds the m items of a map that are still in the index, unchanged; returns their places in `ids` and in `items`.

    ids: (n,) the ids of the items on the map. contents: (n,) the first 64 bits of the SHA-256 of each
    item's file when the map was drawn (`content_key`). items: all items of the index.
    Both results have the shape (m,) and are sorted by id.
    """
    now = np.array([item.id for item in items], np.int64)
    found, on_map, in_list = np.intersect1d(ids, now, assume_unique=True, return_indices=True)
    keys = np.array([content_key(items[place].digest) for place in in_list.tolist()], np.uint64)
    same = keys == contents[on_map] if len(found) else np.zeros(0, bool)
    return on_map[same], in_list[same]


def _field(name: str, column: Categories | Numbers) -> dict[str, Any]:
    if isinstance(column, Numbers):
        numbers = [None if value != value else value for value in column.values.tolist()]
        return {"name": name, "kind": "number", "values": numbers}
    codes = [None if code == NONE else code for code in column.codes.tolist()]
    return {"name": name, "kind": "category", "names": list(column.names), "codes": codes}


def _rounded(values: NDArray[np.float32]) -> list[float]:
    """Returns the numbers, rounded so that the largest one keeps `DIGITS` significant digits."""
    largest = float(np.abs(values).max()) if len(values) else 0.0
    decimals = max(0, DIGITS - len(str(int(largest))))
    return np.round(values.astype(np.float64), decimals).tolist()  # type: ignore[no-any-return]


async def _wait(result: Any) -> None:
    end = asyncio.get_running_loop().time() + PATIENCE
    while not result.done() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(STEP)
