"""A map of items as one self-contained HTML page: a canvas, its script, and a policy that forbids requests.

The page's parts are in `templates/map`. Numbers are embedded as arrays, see `pack`; small pictures of some items in
sheets, see `simsearch.reports.thumbnail_sheets`.

Letters: n items, k neighbours, m items with a picture.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.atomic_files import atomic_write
from simsearch.common.printable import printable
from simsearch.reports.page_templates import page_environment
from simsearch.reports.thumbnail_sheets import Sheets

if TYPE_CHECKING:
    from jinja2 import Template
    from numpy.typing import NDArray

CATEGORIES, FIELDS = 1000, 12
"""Most values of a field to colour by, and most fields. Fields with more values, if not numbers, are names."""

NEAREST = 8
"""Neighbours of each item that the page shows."""

NONE = 0xFFFF
"""The category of items that have none."""


@dataclass(frozen=True)
class MapData:
    """The content of the page.

    positions: (n, 2) float32. ids: (n,). clusters: (n,) places in `cluster_names`. paths, labels, metadata: of each
    item. neighbours: (n, k) places of the nearest other items, nearest first; -1 for none. sheets: small pictures.
    cluster_notes: of each cluster, where its name comes from.
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
    """Writes the page of `render_map` to a UTF-8 file; returns its size. Raises UsageError if it cannot be written."""
    page = render_map(data, title, facts).encode("utf-8")
    atomic_write(path, page)
    return len(page)


def render_map(data: MapData, title: str, facts: Mapping[str, str]) -> str:
    """Returns the page. facts: names and values shown in its panel."""
    template, script = _templates()
    code = script.render()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return template.render(
        title=title,
        facts=facts,
        items=len(data.ids),
        script=_markup(code),
        policy=f"default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        data=base64.b64encode(pack(data)).decode("ascii"),
        sheets=[base64.b64encode(sheet).decode("ascii") for sheet in data.sheets.images],
    )


def pack(data: MapData) -> bytes:
    """Returns the data of the page, compressed by gzip: the length of a JSON header, the header, arrays.

    The header names each array with its type, its place after the header, aligned to 8 bytes, and its length. Numbers
    are little-endian. The paths are lines of UTF-8; unprintable characters in them are escaped.
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
    _add_field(fields, arrays, "cluster", _Categories(data.clusters.astype("<u2"), list(data.cluster_names)))
    fields[0]["notes"] = list(data.cluster_notes)
    if (labels := categories(data.labels, CATEGORIES * 60)) is not None:
        _add_field(fields, arrays, "label", labels)
    most = min(CATEGORIES, max(12, len(data.ids) // 2))  # where most items differ, the values are names
    for name in list(dict.fromkeys(key for each in data.metadata for key in each))[: 4 * FIELDS]:
        if len(fields) < FIELDS + 2:
            values = [each.get(name) for each in data.metadata]
            _add_field(fields, arrays, printable(name), numbers(values) or categories(values, most))
    header: dict[str, Any] = {
        "items": len(data.ids),
        "near": near.shape[1],
        "folder": printable(folder),
        "fields": fields,
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


@dataclass(frozen=True)
class _Categories:
    """codes: (n,) uint16, places in names, or `NONE`."""

    codes: NDArray[np.uint16]
    names: Sequence[str]


@dataclass(frozen=True)
class _Numbers:
    """values: (n,) float32, NaN for none."""

    values: NDArray[np.float32]


def _add_field(
    fields: list[dict[str, Any]], arrays: dict[str, Any], name: str, column: _Categories | _Numbers | None
) -> None:
    """Adds a field to colour by, and its array; nothing for None."""
    if column is None:
        return
    key = f"field {len(fields)}"
    if isinstance(column, _Numbers):
        fields.append({"name": name, "array": key, "kind": "number"})
        arrays[key] = column.values
    else:
        fields.append({"name": name, "array": key, "kind": "category", "names": list(map(printable, column.names))})
        arrays[key] = column.codes


def numbers(values: Sequence[Any]) -> _Numbers | None:
    """Returns values as numbers; None if some value is none, or there are so few different ones that they are kinds."""
    known = [value for value in values if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return None
    if len(set(known)) <= 12:
        return None
    with np.errstate(over="ignore"):
        flat = np.array([np.nan if value is None else float(value) for value in values]).astype("<f4")
    return _Numbers(np.where(np.isinf(flat), np.nan, flat).astype("<f4"))


def categories(values: Sequence[Any], most: int) -> _Categories | None:
    """Returns values as kinds, the most frequent first; None if there are none, or more than `most`."""
    texts = [None if value is None else str(value) for value in values]
    counts = Counter(text for text in texts if text is not None)
    if not counts or len(counts) > min(most, NONE):
        return None
    names = [name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    place = {name: number for number, name in enumerate(names)}
    codes = np.array([NONE if text is None else place[text] for text in texts], "<u2")
    return _Categories(codes, names)


def common_folder(paths: Sequence[str]) -> str:
    """Returns the start of all paths up to a "/", which the page holds once; "" for none."""
    if len(paths) < 2:
        return ""
    first, last = min(paths), max(paths)
    same = next((at for at in range(len(first)) if first[at : at + 1] != last[at : at + 1]), len(first))
    return first[: first.rfind("/", 0, same) + 1]


@functools.cache
def _templates() -> tuple[Template, Template]:
    """Returns the templates of the page and of its script, which has no values."""
    environment = page_environment("map")
    return environment.get_template("page.html"), environment.get_template("script.js")


def _markup(code: str) -> Any:
    from markupsafe import Markup

    return Markup(code)
