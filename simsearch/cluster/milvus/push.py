"""Copying an index into a Milvus collection, where it is searched as it is here (`simsearch.cluster.milvus.engine`).

What is sent is the difference: each row carries a mark of all that it holds, so a push reads ids and marks, deletes
what the index no longer has and sends what has another mark. So the next push continues one that was interrupted, and
sends nothing where nothing changed. Rows go by upsert in portions of bounded size, so that none is ever doubled; at the
end the collection is counted and a sample of it compared with the index, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simsearch.cluster.milvus import client
from simsearch.cluster.milvus.client import MilvusClient
from simsearch.cluster.milvus.reader import PROPERTIES
from simsearch.common.milvus_address import MilvusAddress, parse_address
from simsearch.errors import IndexDamagedError, ModelMismatchError, SimsearchError, UsageError
from simsearch.storage.filters import replace_surrogates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.index import Index
    from simsearch.storage.reader import Item, Reader

PORTION = 8 << 20
"""Bytes of one upsert, well below the 64 MiB that Milvus takes; a row of D = 4096 has 16 KiB."""

PATIENCE = 60.0
"""Seconds that a server may be away, or busy with loading, once a push has begun."""

SAMPLE = 64
"""Rows compared at the end."""

_MANY = 10_000
"""From this many items on, a new collection gets a graph instead of comparing with all."""

_HUGE = 5_000_000
"""From this many items on, the graph stays on disk."""

_CELL = 65535


@dataclass(frozen=True)
class PushOptions:
    """How to push.

    kind: the index of the features in a new collection, one of `client.KINDS`; None chooses by the number of
    items. parameters: what it is built with. storage: "float16" needs Milvus 2.4 or later. replace: drop what the
    collection holds now. progress: called with the number of items looked at and their total.
    """

    kind: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    storage: Literal["float32", "float16"] | None = None
    replace: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in client.KINDS:
            raise UsageError(f"no index is of kind {self.kind!r}", hint=f"one of {', '.join(client.KINDS)}")


@dataclass
class PushReport:
    """What a push did, in items. compared: rows of the sample that were read back and found equal."""

    items: int = 0
    sent: int = 0
    deleted: int = 0
    unchanged: int = 0
    compared: int = 0
    kind: str = ""


def push(index: Index, target: str, options: PushOptions | None = None) -> PushReport:
    """Brings a collection in step with an index; makes it if it is not there.

    Raises UnavailableError (a second push continues), ModelMismatchError for a collection of another model, UsageError
    for one of another index, unless `replace`.
    """
    options = options or PushOptions()
    if "components_sha256" in index.meta.descriptor:
        name = index.meta.features
        raise UsageError(
            f"the features {name} of {index.path} have components that Milvus cannot keep",
            hint="an index with --features fc7, fc7-unit or fc6 can be pushed",
        )
    rows = MilvusClient(parse_address(target), writing=True)
    try:
        with index.reading() as reader:
            run = _Push(index, reader, rows, options)
            rows.exists()  # one that is away is noticed soon; one that is there may yet have to load
            rows.patience = max(rows.patience, PATIENCE)
            run.prepare()
            run.send()
            run.finish()
            return run.pushed
    finally:
        rows.close()


class _Push:
    def __init__(self, index: Index, reader: Reader, rows: MilvusClient, options: PushOptions) -> None:
        self.index, self.reader, self.rows, self.options = index, reader, rows, options
        self.items = reader.count()
        self.storage = options.storage or "float32"
        self.pushed = PushReport(items=self.items)
        self.portion: list[dict[str, Any]] = []
        self.largest = max(1, PORTION // (4 * index.meta.dimension + 1024))
        ids, _ = reader.ids()
        self.highest = int(ids[-1]) if len(ids) else 0

    # -- the collection

    def prepare(self) -> None:
        """Makes the collection, or sees that the one that is there is this index's."""
        if self.rows.exists() and self.options.replace:
            self.rows.drop()
        if not self.rows.exists():
            kind = self.options.kind or _kind(self.items, self.rows.address)
            facts = self._facts(complete=False)
            self.rows.create(self.index.meta.dimension, self.storage, kind, self.options.parameters, facts)
        else:
            self._check()
            # A reader asks up to the highest id, and for sources by number, while this goes on.
            self.rows.set_properties(self._facts(complete=False))
            self.rows.load()
        self.pushed.kind = str(self.rows.index()["index_type"])

    def _check(self) -> None:
        address, ours = self.rows.address, self.index.meta
        facts = self.rows.describe().get("properties") or {}
        if not all(name in facts for name in PROPERTIES):
            raise UsageError(
                f"the collection {address} was not made by simsearch", hint="name another one; --replace drops it"
            )
        theirs, state = json.loads(facts[PROPERTIES[0]]), json.loads(facts[PROPERTIES[2]])
        if (theirs["weights_sha256"], theirs["recipe"]) != (ours.weights_sha256, ours.recipe):
            raise ModelMismatchError(
                f"{address} holds features of model {theirs['model']} with weights {theirs['weights_sha256']},"
                f" the index those of {ours.model} with weights {ours.weights_sha256}",
                hint="push into another collection; --replace drops this one",
            )
        if theirs["created"] != ours.created:
            raise UsageError(
                f"{address} holds another index, made {theirs['created']}",
                hint="push into another collection; --replace drops this one",
            )
        self.highest = max(self.highest, int(state["highest"]))
        kind = str(self.rows.index()["index_type"])
        for asked, found, name in (
            (self.options.kind, kind, "index"),
            (self.options.storage, state["storage"], "storage"),
        ):
            if asked is not None and asked != found:
                raise UsageError(f"{address} has {name} {found}, not {asked}", hint="--replace makes it anew")
        self.storage = state["storage"]

    def _facts(self, complete: bool) -> dict[str, str]:
        """The collection's properties: see `reader.PROPERTIES`."""
        meta = {
            **asdict(self.index.meta),
            "search": {"kind": "", "recall": 0.0, "parameters": {}},
            "items": self.items,
            "failures": self.reader.failure_count(),
        }
        opened = self.index.sources(self.reader)
        sources = [[row.id, row.kind, opened[row.id].root] for row in self.reader.sources()]
        state = {
            "complete": complete,
            "generation": self.reader.state("generation"),
            "storage": self.storage,
            "highest": self.highest,
            "labels": self.reader.label_count(),
        }
        return dict(zip(PROPERTIES, map(json.dumps, (meta, sources, state)), strict=True))

    # -- the rows

    def send(self) -> None:
        """Sends what differs, by ids from below."""
        done = 0
        self.options.progress(0, self.items)
        stream = self._spans()
        for held in self.rows.scan("", ["mark"], self.highest, strong=True):
            items = next(stream)
            marks = {int(row["id"]): int(row["mark"]) for row in held}
            gone = sorted(marks.keys() - {item.id for item in items})
            if gone:
                self.rows.delete(gone)
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
        """The index's items, span by span of ids as `MilvusClient.scan` goes."""
        stream = self.reader.items()
        ahead = next(stream, None)
        for first in range(0, self.highest + 1, client.SPAN):
            items = []
            while ahead is not None and ahead.id < first + client.SPAN:
                items.append(ahead)
                ahead = next(stream, None)
            yield items

    def _upsert(self, items: Sequence[Item]) -> None:
        """Sends items, in portions that are bounded whatever their metadata."""
        features = self.reader.shards.read(np.array([item.row for item in items], np.int64))
        portion: list[dict[str, Any]] = []
        size = 0
        for item, vector in zip(items, features, strict=True):
            row, weight = _row(item, vector, self.storage)
            if portion and size + weight > PORTION:
                self.rows.upsert(portion)
                portion, size = [], 0
            portion.append(row)
            size += weight
        self.rows.upsert(portion)

    # -- the end

    def finish(self) -> None:
        """Seals, counts, compares. Raises SimsearchError if the collection does not hold what the index does."""
        if self.pushed.sent or self.pushed.deleted:
            self.rows.flush()
        found = self.rows.count(strong=True)
        if found != self.items:
            raise SimsearchError(
                f"{self.rows.address} has {found:,} rows, the index {self.items:,} items",
                hint="is something else writing to it? push again; --replace begins anew",
            )
        self._compare()
        self.highest = int(self.reader.ids()[0][-1]) if self.items else 0
        self.rows.set_properties(self._facts(complete=True))

    def _compare(self) -> None:
        """Reads a sample back, features and all."""
        ids, _ = self.reader.ids()
        chosen = np.random.default_rng(0).choice(ids, min(SAMPLE, len(ids)), replace=False)
        items = [self.reader.item(int(number)) for number in np.sort(chosen)]
        if not items:
            return
        mine = self.reader.shards.read(np.array([item.row for item in items], np.int64))
        rows = self.rows.query(f"id in {[item.id for item in items]}", ["mark"], strong=True)
        marks = {int(row["id"]): int(row["mark"]) for row in rows}
        theirs = self.rows.features([item.id for item in items], strong=True)
        for item, features in zip(items, mine, strict=True):
            if marks.get(item.id) != row_hash(item) or not np.array_equal(theirs.get(item.id), features):  # type: ignore[arg-type]
                raise IndexDamagedError(
                    f"{self.rows.address}: item {item.id} is not as it was sent", hint="--replace begins anew"
                )
        self.pushed.compared = len(items)


def row_hash(item: Item) -> int:
    """63 bits of a hash over all that a row holds; its features are those of its digest."""
    held = [
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
    digest = hashlib.blake2b(json.dumps(held, sort_keys=True).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _row(item: Item, features: NDArray[np.float16], storage: str) -> tuple[dict[str, Any], int]:
    """The row of an item and about how many bytes it is. Raises UsageError for what Milvus cannot hold."""
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
        if length > _CELL:
            raise UsageError(f"the {name} of item {item.id} has {length:,} bytes, Milvus takes {_CELL:,}")
    return row, sum(cells.values()) + features.size * (2 if storage == "float16" else 4) + 256


def _kind(items: int, address: MilvusAddress) -> str:
    """The index for so many items: exact while that is quick."""
    if address.file is not None or items < _MANY:
        return "FLAT"
    return "HNSW" if items < _HUGE else "DISKANN"
