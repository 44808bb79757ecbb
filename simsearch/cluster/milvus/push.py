"""Copies an index into a Milvus collection, where `simsearch.cluster.milvus.index` searches it.

Only differences are sent. The field `mark` of each row is a hash of the row's content. A push reads all ids and hashes,
deletes the rows that the index no longer has, and sends the rows that are new or have a different hash. So after an
interrupted push, the next push sends only what is missing, and a push without changes sends nothing. Rows are upserted
in portions of bounded size. At the end, the rows are counted, and a sample is compared with the index, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simsearch.cluster.milvus import hints, index_kinds
from simsearch.cluster.milvus.client import SPAN, MilvusClient
from simsearch.cluster.milvus.reader import PROPERTIES
from simsearch.common import outside_json, suggestions
from simsearch.common.milvus_address import MilvusAddress, parse_address
from simsearch.errors import IndexDamagedError, ModelMismatchError, SimsearchError, UsageError
from simsearch.search import similarity
from simsearch.storage.filters import replace_surrogates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.index import Index
    from simsearch.storage.reader import Item, Reader

PORTION = 8 << 20
"""Largest size of one upsert in bytes, well below Milvus's limit of 64 MiB; a row with D = 4096 has 16 KiB."""

PATIENCE = 60.0
"""Seconds to wait for a server that is unreachable, or busy with loading, after a push has begun."""

SAMPLE = 64
"""Number of rows compared at the end."""

_MANY = 10_000
"""From this many items on, a new collection gets a graph (HNSW) instead of a FLAT index."""

_HUGE = 5_000_000
"""From this many items on, the graph is kept on disk (DISKANN)."""

_LONGEST_TEXT = 65535  # bytes, Milvus's limit


@dataclass(frozen=True)
class PushOptions:
    """Options of a push.

    kind: the kind of index for the features in a new collection, one of `index_kinds.KINDS`; None to choose it by the
    number of items. parameters: for building that index. storage: the type of the features; "float16" needs Milvus 2.4
    or later; by default, "float32" in a new collection, and the present type in an existing one.
    replace: True to drop the existing collection first. progress: called with (items compared, items in all).
    """

    kind: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    storage: Literal["float32", "float16"] | None = None
    replace: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in index_kinds.KINDS:
            raise UsageError(
                f"{self.kind!r} is not a kind of index", hint=suggestions.hint(self.kind, list(index_kinds.KINDS))
            )


@dataclass
class PushReport:
    """The outcome of a push: numbers of items, and the kind of the collection's index.

    compared: the number of items that were read back from the collection and found equal to those of the index.
    """

    items: int = 0
    sent: int = 0
    deleted: int = 0
    unchanged: int = 0
    compared: int = 0
    kind: str = ""


def push(index: Index, target: str, options: PushOptions | None = None) -> PushReport:
    """Makes a collection equal to an index; creates it if it does not exist.

    target: the address of the collection; see `common.milvus_address`.
    Raises UnavailableError if the server does not answer; the next push then continues. Without `replace`, raises
    ModelMismatchError if the collection has features of another model, UsageError if it holds another index.
    """
    options = options or PushOptions()
    if "components_sha256" in index.meta.descriptor:
        name = index.meta.features
        raise UsageError(
            f"the features {name} of {index.path} use principal components, which Milvus cannot store",
            hint="an index with the features fc7, fc7-unit or fc6 can be pushed",
        )
    client = MilvusClient(parse_address(target), writing=True)
    try:
        with index.reading() as reader:
            run = _Push(index, reader, client, options)
            client.exists()  # an unreachable server is noticed soon; later calls wait for one that is loading
            client.patience = max(client.patience, PATIENCE)
            run.prepare()
            run.send()
            run.finish()
            return run.pushed
    finally:
        client.close()


class _Push:
    """One push, in three steps: prepare the collection, send rows, finish."""

    def __init__(self, index: Index, reader: Reader, client: MilvusClient, options: PushOptions) -> None:
        self.index, self.reader, self.client, self.options = index, reader, client, options
        self.items = reader.count()
        self.storage = options.storage or "float32"
        self.pushed = PushReport(items=self.items)
        self.portion: list[dict[str, Any]] = []
        self.largest = max(1, PORTION // (4 * index.meta.dimension + 1024))
        ids, _ = reader.ids_and_rows()
        self.highest = int(ids[-1]) if len(ids) else 0

    # -- the collection

    def prepare(self) -> None:
        """Creates the collection, or checks that the existing collection holds this index.

        Raises UsageError, ModelMismatchError.
        """
        if self.client.exists() and self.options.replace:
            self.client.drop()
        if not self.client.exists():
            kind = self.options.kind or _kind(self.items, self.client.address)
            facts = self._facts(complete=False)
            self.client.create(self.index.meta.dimension, self.storage, kind, self.options.parameters, facts)
        else:
            self._check()
            # Searches during the push need the new highest id and the new sources.
            self.client.set_properties(self._facts(complete=False))
            self.client.load()
        self.pushed.kind = str(self.client.index()["index_type"])

    def _check(self) -> None:
        address, ours = self.client.address, self.index.meta
        facts = self.client.describe().get("properties") or {}
        if not all(name in facts for name in PROPERTIES):
            raise UsageError(f"the collection {address} was not made by simsearch", **hints.ANOTHER)
        theirs, state = outside_json.parse(facts[PROPERTIES[0]]), outside_json.parse(facts[PROPERTIES[2]])
        if (theirs["weights_sha256"], theirs["recipe"]) != (ours.weights_sha256, ours.recipe):
            raise ModelMismatchError(
                f"{address} holds features of model {theirs['model']} with weights {theirs['weights_sha256']},"
                f" but the index has features of model {ours.model} with weights {ours.weights_sha256}",
                **hints.ANOTHER,
            )
        if theirs["created"] != ours.created:
            raise UsageError(
                f"{address} holds another index, made {theirs['created']}",
                **hints.ANOTHER,
            )
        self.highest = max(self.highest, int(state["highest"]))
        kind = str(self.client.index()["index_type"])
        for wanted, found, name in (
            (self.options.kind, kind, "index"),
            (self.options.storage, state["storage"], "storage"),
        ):
            if wanted is not None and wanted != found:
                raise UsageError(f"{address} has {name} {found}, not {wanted}", **hints.REPLACE)
        self.storage = state["storage"]

    def _facts(self, complete: bool) -> dict[str, str]:
        """Returns the properties to store with the collection; see `reader.PROPERTIES`.

        complete: True at the end of the push, when all rows have been sent.
        """
        meta = {
            **asdict(self.index.meta),
            "search": {"kind": "", "recall": 0.0, "parameters": {}},
            "items": self.items,
            "failures": self.reader.failure_count(),
            "similarity": self._similarity(),
        }
        opened = self.index.sources(self.reader)
        sources = [  # a fourth value only where it is needed, since former versions read three
            [row.id, row.kind, opened[row.id].root, *([True] if opened[row.id].outside else [])]
            for row in self.reader.sources()
        ]
        state = {
            "complete": complete,
            "generation": self.reader.state("generation"),
            "storage": self.storage,
            "highest": self.highest,
            "labels": self.reader.label_count(),
        }
        return dict(zip(PROPERTIES, map(json.dumps, (meta, sources, state)), strict=True))

    def _similarity(self) -> dict[str, Any]:
        """Returns the scale of similarities as in `Meta.similarity`; estimates it if the index does not have it."""
        if self.index.meta.similarity:
            return self.index.meta.similarity
        scale = similarity.estimate(self.reader.shards, self.reader.rows())
        return {} if scale is None else {**scale.to_dict(), "items": self.items, "rows": self.reader.state("rows")}

    # -- the rows

    def send(self) -> None:
        """Deletes the rows that the index no longer has, and sends the rows that are new or differ, ordered by id."""
        done = 0
        self.options.progress(0, self.items)
        stream = self._spans()
        for rows in self.client.scan("", ["mark"], self.highest, strong=True):
            items = next(stream)
            marks = {int(row["id"]): int(row["mark"]) for row in rows}
            gone = sorted(marks.keys() - {item.id for item in items})
            if gone:
                self.client.delete(gone)
                self.pushed.deleted += len(gone)
            fresh = [item for item in items if marks.get(item.id) != row_hash(item)]
            self.pushed.unchanged += len(items) - len(fresh)
            done += len(items) - len(fresh)
            for start in range(0, len(fresh), self.largest):
                part = fresh[start : start + self.largest]
                self._upsert(part)
                self.pushed.sent += len(part)
                done += len(part)
                self.options.progress(done, self.items)
        self.options.progress(done, self.items)

    def _spans(self) -> Iterator[list[Item]]:
        """Yields the items of the index: a list for each range of SPAN ids, as `MilvusClient.scan` does."""
        stream = self.reader.items()
        ahead = next(stream, None)
        for first in range(0, self.highest + 1, SPAN):
            items = []
            while ahead is not None and ahead.id < first + SPAN:
                items.append(ahead)
                ahead = next(stream, None)
            yield items

    def _upsert(self, items: Sequence[Item]) -> None:
        """Sends items in portions of at most `PORTION` bytes."""
        features = self.reader.shards.read(np.array([item.row for item in items], np.int64))
        portion: list[dict[str, Any]] = []
        size = 0
        for item, vector in zip(items, features, strict=True):
            row, weight = _row(item, vector, self.storage)
            if portion and size + weight > PORTION:
                self.client.upsert(portion)
                portion, size = [], 0
            portion.append(row)
            size += weight
        self.client.upsert(portion)

    # -- the end

    def finish(self) -> None:
        """Counts the rows, compares a sample and marks the push as complete. Raises SimsearchError for a difference."""
        if self.pushed.sent or self.pushed.deleted:
            self.client.flush()
        found = self.client.count(strong=True)
        if found != self.items:
            raise SimsearchError(
                f"{self.client.address} has {found:,} rows, but the index has {self.items:,} items",
                hint="is another program writing to it? push again, or use replace=True",
                shell_hint="is another program writing to it? push again, or use --replace",
            )
        self._compare()
        self.highest = int(self.reader.ids_and_rows()[0][-1]) if self.items else 0
        self.client.set_properties(self._facts(complete=True))

    def _compare(self) -> None:
        """Reads back a sample of rows and their features. Raises IndexDamagedError if a row differs from the index."""
        ids, _ = self.reader.ids_and_rows()
        chosen = np.random.default_rng(0).choice(ids, min(SAMPLE, len(ids)), replace=False)
        items = [self.reader.item(int(number)) for number in np.sort(chosen)]
        if not items:
            return
        mine = self.reader.shards.read(np.array([item.row for item in items], np.int64))
        rows = self.client.query(f"id in {[item.id for item in items]}", ["mark"], strong=True)
        marks = {int(row["id"]): int(row["mark"]) for row in rows}
        theirs = self.client.features([item.id for item in items], strong=True)
        for item, features in zip(items, mine, strict=True):
            if marks.get(item.id) != row_hash(item) or not np.array_equal(theirs.get(item.id), features):  # type: ignore[arg-type]
                message = f"{self.client.address}: item {item.id} is not as it was sent"
                raise IndexDamagedError(message, **hints.REPLACE)
        self.pushed.compared = len(items)


def row_hash(item: Item) -> int:
    """Returns a 63-bit hash of an item's fields, one of which is the file's SHA-256.

    The features are not hashed, because the same model computes the same features from the same file.
    """
    fields = [
        item.source,
        os.fsencode(item.path).hex(),
        item.label,
        item.metadata,
        item.digest.hex(),
        item.size,
        item.stamp,
        item.width,
        item.height,
    ]
    digest = hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _row(item: Item, features: NDArray[np.float16], storage: str) -> tuple[dict[str, Any], int]:
    """Returns an item's row and its approximate size in bytes. Raises UsageError if Milvus cannot store it."""
    path = replace_surrogates(item.path)
    row = {
        "id": item.id,
        "source": item.source,
        "path": path,
        "label": item.label or "",
        "path_hex": os.fsencode(item.path).hex() if path != item.path else "",
        "labelled": item.label is not None,
        "metadata": item.metadata,
        "digest": item.digest.hex(),
        "size": item.size,
        "stamp": item.stamp,
        "width": item.width,
        "height": item.height,
        "mark": row_hash(item),
        "features": features if storage == "float16" else features.astype(np.float32),
    }
    cells = {name: len(str(row[name]).encode()) for name in ("path", "path_hex", "label")}
    cells["metadata"] = len(json.dumps(item.metadata).encode())
    for name, length in cells.items():
        if length > _LONGEST_TEXT:
            limit = f"the limit of Milvus is {_LONGEST_TEXT:,}"
            raise UsageError(f"the {name} of item {item.id} has {length:,} bytes; {limit}")
    return row, sum(cells.values()) + features.size * (2 if storage == "float16" else 4) + 256


def _kind(items: int, address: MilvusAddress) -> str:
    """Returns the default kind of index: exact in Milvus Lite and for few items, else approximate."""
    if address.file is not None or items < _MANY:
        return "FLAT"
    return "HNSW" if items < _HUGE else "DISKANN"
