"""`meta.json`, the description of an index.

Some fields, such as the model and the dimension, are written when the index is created, and never change. Counts and
measured values are updated after a commit of the database, and `generation` is set to the number of this commit. If the
database has a higher number, it was changed later, and the counts are out of date.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from simsearch.common import outside_json, suggestions
from simsearch.errors import IndexDamagedError, IndexNotFoundError, SimsearchError, UsageError, WeightsError
from simsearch.images.preprocessing import Preprocessing
from simsearch.storage.feature_files import ROWS_PER_SHARD
from simsearch.storage.folder import Folder, error_for

FORMAT = 1

LIMIT = 4 << 20
"""Maximum size of `meta.json` in bytes; a larger file is not read."""

MAX_DIMENSION, MAX_ROWS_PER_SHARD = 1 << 20, 1 << 31

_CHECKSUM = "crc32"
"""The key of the CRC-32 of all other values, which `verify` checks. Files of older versions do not have this key."""

_SINCE = ("recall", "low", "high", "queries")
"""Keys of `search["since"]`, the recall that was measured on items added after the search structure was built."""

_KINDS: dict[str, type] = {"str": str, "int": int, "dict[str, Any]": dict, "list[float]": list}


@dataclass(frozen=True)
class Meta:
    """The content of `meta.json`."""

    model: str
    weights_sha256: str
    recipe: dict[str, Any]
    dimension: int
    engine: str
    format: int = FORMAT
    metric: str = "euclidean"
    storage: str = "float16"
    rows_per_shard: int = ROWS_PER_SHARD
    created: str = ""
    simsearch: str = ""
    generation: int = 0
    items: int = 0
    rows: int = 0
    failures: int = 0
    search: dict[str, Any] = field(default_factory=lambda: {"kind": "exact", "recall": 1.0, "parameters": {}})
    features: str = "fc7"
    descriptor: dict[str, Any] = field(default_factory=dict)
    """The definition of the features, empty for plain fc7; see `simsearch.models.descriptors`."""
    distances: list[float] = field(default_factory=list)
    """Quantiles of the distances between random pairs of items; see `simsearch.search.similarity`."""
    distances_of: int = 0
    """The number of items when `distances` was measured."""
    similarity: dict[str, Any] = field(default_factory=dict)
    """The scale that turns distances into similarities; see `simsearch.search.similarity`.

    `nearest` and `random` are median distances: of an item to its nearest neighbour, and of two random items. `items`
    and `rows` are the numbers of items and rows when these distances were measured. The scale is empty in an index of
    an older version, and if fewer than three items differ.
    """
    sketch: dict[str, Any] = field(default_factory=dict)
    """The record of the sketch that speeds up exact searches; see `simsearch.search.sketch_files.SketchFacts`."""

    @classmethod
    def read(cls, folder: Folder | Path) -> Meta:
        """Reads `meta.json` from an index's folder.

        Raises IndexNotFoundError if there is no index, IndexDamagedError if the file is damaged, and UsageError if this
        version of simsearch does not support the index format.
        """
        place = folder.path if isinstance(folder, Folder) else folder
        path = place / "meta.json"
        try:
            opened = folder if isinstance(folder, Folder) else Folder.at(folder)
            return cls.of(outside_json.parse(opened.read("meta.json", LIMIT)), place)
        except WeightsError as error:  # for an invalid preprocessing recipe
            raise IndexDamagedError(f"{path}: {error}") from error
        except SimsearchError:
            raise
        except FileNotFoundError:
            if _has_features(folder):
                raise IndexDamagedError(f"{path} is missing, but its folder has feature files") from None
            hint, shell_hint = _hints(Path(place))
            raise IndexNotFoundError(f"there is no index at {place}", hint=hint, shell_hint=shell_hint) from None
        except NotADirectoryError:
            raise IndexNotFoundError(f"{place} is not a folder and so not an index") from None
        except OSError as error:
            raise error_for(path, error) from error
        except KeyError as error:
            raise IndexDamagedError(f"{path}: {error} is missing") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise IndexDamagedError(f"{path}: {error}") from error

    @classmethod
    def of(cls, values: Any, place: Path) -> Meta:
        """Makes a `Meta` from parsed JSON, after validating the values. place: the index's path, for messages.

        Raises ValueError, KeyError, TypeError or WeightsError for an invalid value, and UsageError for an unsupported
        format.
        """
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        if values["format"] != FORMAT:
            message = f"{place} has index format {values['format']!r}, this version reads {FORMAT}"
            raise UsageError(message, hint="upgrade simsearch, or build the index again")
        known = {f.name: _KINDS[str(f.type)] for f in fields(cls)}
        for key in known.keys() & values.keys():
            if type(values[key]) is not known[key]:
                raise ValueError(f"{key} has the wrong type: {str(values[key])[:80]!r}")
        meta = cls(**{key: values[key] for key in known.keys() & values.keys()})
        Preprocessing.from_dict(meta.recipe)
        if not (0 < meta.dimension <= MAX_DIMENSION and 0 < meta.rows_per_shard <= MAX_ROWS_PER_SHARD):
            raise ValueError("dimension or rows_per_shard is out of range")
        counts = meta.generation, meta.items, meta.rows, meta.failures, meta.distances_of
        if meta.storage != "float16" or not all(0 <= count < 1 << 62 for count in counts):
            raise ValueError("storage is not float16, or a count is out of range")
        known_keys = meta.search.keys() >= {"kind", "recall", "parameters"}
        if (
            not known_keys
            or not _is_search(meta.search)
            or not all(_is_number(distance) and distance >= 0 for distance in meta.distances)
        ):
            raise ValueError("the value of search or distances is invalid")
        if meta.distances != sorted(meta.distances):
            raise ValueError("distances do not ascend")
        if meta.similarity and not all(_is_number(value) and value >= 0 for value in _scale(meta.similarity)):
            raise ValueError("the value of similarity is invalid")
        return meta

    def write(self, folder: Folder | Path) -> None:
        """Replaces `meta.json` in a folder, atomically and durably. Raises OSError."""
        opened = folder if isinstance(folder, Folder) else Folder.at(folder)
        values = asdict(self)
        opened.write("meta.json", (json.dumps({**values, _CHECKSUM: _crc32(values)}, indent=1) + "\n").encode())

    @staticmethod
    def checksum_problem(folder: Folder) -> str | None:
        """Returns a description of the problem if `meta.json` is unreadable or does not match its checksum, else None.

        A file without a checksum, from an older version, is no problem.
        """
        try:
            values = outside_json.parse(folder.read("meta.json", LIMIT))
            recorded = values.pop(_CHECKSUM, None)
        except (OSError, ValueError, AttributeError):
            return "it cannot be read any more"
        found = _crc32(values)
        return None if recorded in (None, found) else f"its values have checksum {found}, expected {str(recorded)[:40]}"


def _hints(place: Path) -> tuple[str, str]:
    """Returns two hints for the message that there is no index at `place`: for Python, and for the command line.

    Each says how to build an index there and, if the parent folder has other indexes, names one of them.
    """
    try:
        beside = sorted(path.parent.name for path in place.parent.glob("*/meta.json"))
    except OSError:
        beside = []
    make, shell_make = f'simsearch.build(SOURCE, index="{place}")', f"simsearch build SOURCE -i {place}"
    if not beside:
        return f"make one: {make}", f"make one: {shell_make}"
    near = suggestions.nearest(place.name, beside)
    other = place.parent / (near or beside[0])
    found = f'did you mean "{other}"?' if near else f'there is an index "{other}";'
    return f"{found} or make one: {make}", f"there is an index {other}: -i {other}; or make one: {shell_make}"


def _crc32(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def _scale(similarity: dict[str, Any]) -> list[Any]:
    return [similarity.get(key) for key in ("nearest", "random", "items", "rows")]


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and abs(value) < 1e38


def _is_search(search: dict[str, Any]) -> bool:
    """Returns True if `search`, a field of `meta.json`, has the keys and types that `tune` writes."""
    parameters, since = search["parameters"], search.get("since", {})
    if type(search["kind"]) is not str or type(parameters) is not dict or type(since) is not dict:
        return False
    needed = {"recall", "low", "high", "queries"} if "low" in search else {"recall"}
    folder = parameters.get("folder", "")
    return (
        type(folder) is str
        and all(_is_number(search.get(key)) for key in needed)
        and all(_is_number(since.get(key)) for key in (*_SINCE, "items") if since)
        and (not folder or _is_number(search.get("items")))
        and (search.get("target") is None or _is_number(search["target"]))
        and (search["kind"] != "codes" or _is_number(parameters.get("dimensions")))
    )


def _has_features(folder: Folder | Path) -> bool:
    """Returns True if an index's folder has feature files."""
    with contextlib.suppress(OSError):
        opened = folder if isinstance(folder, Folder) else Folder.at(folder)
        return any(name.endswith(".f16") for name in opened.child("features").names())
    return False
