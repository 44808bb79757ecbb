"""A map of items as one self-contained HTML page: a canvas, its script, and a policy that forbids requests.

The page's parts are in `templates/map`. The numbers are embedded as arrays; see `pack`. The thumbnails of some items
are embedded in large images; see `simsearch.reports.thumbnail_sheets`.

In the shapes of arrays, n is the number of items and k the number of neighbours of each item.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.atomic_files import atomic_write
from simsearch.common.printable import printable
from simsearch.reports.map_columns import Categories, Numbers, columns, common_folder
from simsearch.reports.page_templates import page_environment
from simsearch.reports.thumbnail_sheets import Sheets

if TYPE_CHECKING:
    from jinja2 import Template
    from numpy.typing import NDArray

NEAREST = 8
"""Number of neighbours that the page shows for each item."""


@dataclass(frozen=True)
class MapData:
    """The content of a map's page.

    positions: (n, 2), the items' coordinates on the map.
    ids: (n,), the items' ids.
    clusters: (n,) indices into `cluster_names`, which has the name of each cluster.
    cluster_notes: for each cluster, a text that says where its name comes from.
    paths, labels, metadata: one for each item.
    neighbours: (n, k) indices of each item's nearest other items, nearest first; -1 if there are fewer.
    sheets: the thumbnails.
    """

    positions: NDArray[np.float32]
    ids: NDArray[np.int64]
    clusters: NDArray[np.int32]
    cluster_names: Sequence[str]
    cluster_notes: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[str | None]
    metadata: Sequence[Mapping[str, Any]]
    neighbours: NDArray[np.int64]
    sheets: Sheets = field(default_factory=Sheets)


def save_map(data: MapData, path: Path, title: str, facts: Mapping[str, str]) -> int:
    """Writes the page of `render_map` to a UTF-8 file and returns the file's size in bytes.

    Raises UsageError if the file cannot be written.
    """
    page = render_map(data, title, facts).encode("utf-8")
    atomic_write(path, page)
    return len(page)


def render_map(data: MapData, title: str, facts: Mapping[str, str]) -> str:
    """Returns the HTML page of a map. facts: names and values to show in the page's panel."""
    template, script = _templates()
    code = script.render()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return template.render(
        title=title,
        script=_markup(code),
        policy=f"default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        data=base64.b64encode(pack(data, facts)).decode("ascii"),
        sheets=[base64.b64encode(sheet).decode("ascii") for sheet in data.sheets.images],
    )


def pack(data: MapData, facts: Mapping[str, str] | None = None) -> bytes:
    """Returns the data of the page, compressed by gzip: the length of a JSON header, the header, then the arrays.

    The header lists each array with its type, offset and length. Offsets are counted from the end of the header and are
    multiples of 8 bytes. Numbers are little-endian. Paths are lines of UTF-8, with unprintable characters escaped.
    facts: see `render_map`.
    """
    folder = common_folder(data.paths)
    shown = [printable(path.removeprefix(folder)) for path in data.paths]
    near = data.neighbours[:, :NEAREST]
    arrays: dict[str, NDArray[Any]] = {
        "positions": data.positions.astype("<f4").reshape(-1),
        "ids": data.ids.astype("<f8"),
        "neighbours": np.where(near < 0, 0xFFFFFFFF, near).astype("<u4").reshape(-1),
        "paths": np.frombuffer("\n".join(shown).encode("utf-8"), np.uint8),
        "pictured": data.sheets.places.astype("<u4"),
        "sizes": data.sheets.sizes.astype(np.uint8).reshape(-1),
    }
    fields: list[dict[str, Any]] = []
    for name, column in columns(data.clusters, data.cluster_names, data.labels, data.metadata):
        _add_field(fields, arrays, name, column)
    fields[0]["notes"] = list(data.cluster_notes)
    header: dict[str, Any] = {
        "items": len(data.ids),
        "near": near.shape[1],
        "folder": printable(folder),
        "fields": fields,
        "facts": {printable(name): printable(value) for name, value in (facts or {}).items()},
        "sheet": {"side": data.sheets.side, "columns": data.sheets.columns},
        "arrays": {},
    }
    offset, parts = 0, []
    for name, array in arrays.items():
        header["arrays"][name] = [array.dtype.str[1:], offset, len(array)]
        raw = array.tobytes()
        parts.append(raw + bytes(-len(raw) % 8))
        offset += len(parts[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 8)
    return gzip.compress(struct.pack("<II", len(text), 0) + text + b"".join(parts), 6, mtime=0)


def _add_field(
    fields: list[dict[str, Any]], arrays: dict[str, NDArray[Any]], name: str, column: Categories | Numbers
) -> None:
    """Adds a column by which the map can be coloured: its description to `fields`, its values to `arrays`."""
    key = f"field {len(fields)}"
    if isinstance(column, Numbers):
        fields.append({"name": name, "array": key, "kind": "number"})
        arrays[key] = column.values
    else:
        fields.append({"name": name, "array": key, "kind": "category", "names": list(column.names)})
        arrays[key] = column.codes


@functools.cache
def _templates() -> tuple[Template, Template]:
    """Returns the template of the page and the template of its script.

    The script's template has no places for values: rendering it always gives the same script.
    """
    environment = page_environment("map")
    return environment.get_template("page.html"), environment.get_template("script.js")


def _markup(code: str) -> Any:
    from markupsafe import Markup

    return Markup(code)
