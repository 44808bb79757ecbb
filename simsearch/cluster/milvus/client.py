"""The client of a Milvus collection: the only module that uses pymilvus.

A call that fails is retried with growing pauses until its deadline, if the failure may be temporary, for example if a
server restarts. Failures become errors of `simsearch.errors`. Distances are squared, as Milvus returns them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.cluster.milvus import hints, lite
from simsearch.cluster.milvus.index_kinds import BUILD_PARAMETERS
from simsearch.common.milvus_address import TOKEN, MilvusAddress
from simsearch.errors import (
    IndexNotFoundError,
    MissingExtraError,
    SimsearchError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


LARGEST = 16384
"""Milvus returns at most this number of matches for a search, and of rows for a query."""

SPAN = 8192
"""Number of rows that are read at once without their features."""

ROWS = 256
"""Number of rows that are read at once with their features: 4 MiB for features of 4096 values."""

CONNECT = 4.0
"""Seconds to wait for a connection to a server."""

LITE_PATIENCE = 120.0
"""Time limit in seconds of a call to Milvus Lite, which computes in this process and is always reachable."""

SCALARS = (
    "id",
    "source",
    "path",
    "path_hex",
    "label",
    "labelled",
    "metadata",
    "digest",
    "size",
    "stamp",
    "width",
    "height",
)
"""The fields of a row that describe its item.

labelled: false if the item has no label, true for an empty label. path_hex: a path that is not UTF-8, in hexadecimal.
"""

_TEXT = 65535  # Milvus's limit on a VARCHAR, in bytes
_RETRYABLE_WORDS = (
    "not loaded",
    "not fully loaded",
    "unavailable",
    "no available",
    "offline",
    "not healthy",
    "rate limit",
    "not ready",
    "channel",
    "timeout",
    "deadline",
    "connect",
    "closing",
    "node not match",
    "service not",
    "recovering",
)


@dataclass(frozen=True)
class Hit:
    """A row found by a search.

    squared_distance: computed by Milvus in float32. fields: a dict from each name in SCALARS to its value.
    features: (D,) float32 or float16.
    """

    id: int
    squared_distance: float
    fields: dict[str, Any]
    features: NDArray[Any]


def _pymilvus() -> Any:
    """Imports pymilvus and silences its loggers. Raises MissingExtraError."""
    try:
        import pymilvus
    except ImportError:
        raise MissingExtraError("a Milvus collection", "cluster") from None
    for name in (
        "pymilvus",
        "milvus_lite",
        "grpc._server",
    ):  # an error is raised as a SimsearchError; a logger must not print it too
        logging.getLogger(name).setLevel(logging.CRITICAL)
        for child in list(logging.root.manager.loggerDict):
            if child.startswith(name + "."):
                logging.getLogger(child).setLevel(logging.CRITICAL)
    return pymilvus


class MilvusClient:
    """A client of one collection, which need not exist yet. Safe for several threads.

    writing: True to create the Milvus Lite file of the address if it does not exist. The attribute `patience` is the
    time limit of a call in seconds.
    Raises UnavailableError, MissingExtraError, and for a file of Milvus Lite the errors of `lite.check_file`.
    """

    def __init__(self, address: MilvusAddress, *, writing: bool = False) -> None:
        self.address, self.name = address, address.collection
        self.patience = address.timeout if address.file is None else LITE_PATIENCE
        library = _pymilvus()
        if address.file is not None:
            lite.check_file(address.file, writing)
        self.closed = False
        try:
            self._client: Any = library.MilvusClient(
                uri=address.uri, token=os.environ.get(TOKEN, ""), timeout=min(CONNECT, address.timeout)
            )
        except Exception as error:
            raise self._unavailable(error) from error
        if address.file is not None:
            lite.acquire(address.file)

    def close(self) -> None:
        """Closes the connection. The last client of a Milvus Lite file also closes the file."""
        if self.closed:
            return
        self.closed = True
        self._client.close()
        if self.address.file is not None:
            lite.release(self.address.file)

    def check_open(self) -> None:
        """Raises UsageError if the client has been closed."""
        if self.closed:
            raise UsageError(f"the index {self.address} has been closed")

    # -- calls

    def call(self, method: str, **arguments: Any) -> Any:
        """Calls a pymilvus method; retries temporary failures for `patience` seconds. Raises SimsearchError."""
        self.check_open()
        deadline, pause = time.monotonic() + self.patience, 0.1
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                return getattr(self._client, method)(timeout=left, **arguments)
            except Exception as error:
                if not self._retryable(error):
                    raise SimsearchError(f"{self.address}: error of Milvus: {_reason(error)}") from error
                if time.monotonic() + pause > deadline:
                    raise self._unavailable(error) from error
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _retryable(self, error: Exception) -> bool:
        import grpc

        reason = _reason(error).lower()
        if "cannot parse" in reason or "invalid" in reason:
            return False
        whole = str(error).lower()  # a server that starts sends a stack trace, with the reason at its end
        return isinstance(error, grpc.RpcError) or any(word in whole for word in (*_RETRYABLE_WORDS, "stack trace: "))

    def _unavailable(self, error: Exception) -> SimsearchError:
        message = f"no answer from Milvus at {self.address.server}: {_reason(error)}"
        return UnavailableError(message, hint="is it running? to wait longer, add ?timeout=SECONDS to the address")

    # -- the collection

    def exists(self) -> bool:
        """Returns True if the collection exists."""
        return bool(self.call("has_collection", collection_name=self.name))

    def describe(self) -> dict[str, Any]:
        """Returns Milvus's description of the collection: `properties`, `fields`, ... Raises IndexNotFoundError."""
        if not self.exists():
            message = f"there is no collection {self.name} at {self.address.server}"
            raise IndexNotFoundError(message, **hints.make_one(self.address))
        return dict(self.call("describe_collection", collection_name=self.name))

    def create(
        self, dimension: int, storage: str, kind: str, parameters: dict[str, Any], facts: dict[str, str]
    ) -> None:
        """Creates the collection with its indexes, and loads it.

        dimension: the number of values in a feature vector. storage: their type, "float16" or "float32".
        kind: the kind of index for the features, one of `index_kinds.KINDS`. parameters: for building this index.
        facts: the properties of the collection.
        """
        types = _pymilvus().DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.INT64, is_primary=True)
        for name in ("source", "size", "stamp", "width", "height", "mark"):
            schema.add_field(name, types.INT64)
        for name, length in (("path", _TEXT), ("path_hex", _TEXT), ("label", _TEXT), ("digest", 64)):
            schema.add_field(name, types.VARCHAR, max_length=length)
        schema.add_field("labelled", types.BOOL)
        schema.add_field("metadata", types.JSON)
        vector = types.FLOAT16_VECTOR if storage == "float16" else types.FLOAT_VECTOR
        schema.add_field("features", vector, dim=dimension)
        index = self._client.prepare_index_params()
        index.add_index(
            "features", index_type=kind, metric_type="L2", params={**BUILD_PARAMETERS.get(kind, {}), **parameters}
        )
        # A query by a file looks for an item with the file's digest. The server and Milvus Lite name an index of text
        # differently.
        index.add_index("digest", index_type="INVERTED" if self.address.file is not None else "Trie")
        self.call(
            "create_collection", collection_name=self.name, schema=schema, consistency_level="Bounded", properties=facts
        )
        try:
            self.call("create_index", collection_name=self.name, index_params=index)
            self.call("load_collection", collection_name=self.name)
        except BaseException:
            with contextlib.suppress(SimsearchError):
                self.drop()
            raise

    def load(self) -> None:
        """Loads the collection, so that it can be searched, and waits until it is loaded."""
        self.call("load_collection", collection_name=self.name)

    def set_properties(self, facts: dict[str, str]) -> None:
        """Sets properties of the collection to new values."""
        self.call("alter_collection_properties", collection_name=self.name, properties=facts)

    def index(self) -> dict[str, Any]:
        """Returns Milvus's description of the index of the features: `index_type`, and its build parameters."""
        return dict(self.call("describe_index", collection_name=self.name, index_name="features"))

    def version(self) -> str:
        """Returns the server's version, or "lite"."""
        return "lite" if self.address.file is not None else str(self._client.get_server_version())

    def drop(self) -> None:
        """Deletes the collection."""
        self.call("drop_collection", collection_name=self.name)

    # -- rows

    def upsert(self, rows: list[dict[str, Any]]) -> None:
        """Inserts rows; a row replaces the row that has the same id."""
        self.call("upsert", collection_name=self.name, data=rows)

    def delete(self, ids: Sequence[int]) -> None:
        """Deletes the rows with these ids."""
        self.call("delete", collection_name=self.name, filter=f"id in {[int(number) for number in ids]}")

    def flush(self) -> None:
        """Makes Milvus store all rows that were written, so that it can index them."""
        self.call("flush", collection_name=self.name)

    def count(self, where: str = "", *, strong: bool = False) -> int:
        """Counts the rows that meet the condition `where`. strong: True to include all writes before the call."""
        found = self._query(where, ["count(*)"], strong)
        return int(found[0]["count(*)"])

    def query(self, where: str, fields: Sequence[str], *, strong: bool = False) -> list[dict[str, Any]]:
        """Returns `fields` of at most LARGEST rows that meet `where`, in no certain order. strong: see `count`."""
        return [dict(row) for row in self._query(where, list(fields), strong)]

    def scan(self, where: str, fields: Sequence[str], highest: int, *, strong: bool = False) -> Iterator[list[Any]]:
        """Yields the rows that meet `where`, sorted by id: a list per SPAN ids up to `highest`. strong: see `count`."""
        for first in range(0, highest + 1, SPAN):
            within = f"id >= {first} and id < {first + SPAN}"
            rows = self.query(f"{within} and ({where})" if where else within, ["id", *fields], strong=strong)
            yield sorted(rows, key=lambda row: int(row["id"]))

    def features(self, ids: Sequence[int], *, strong: bool = False) -> dict[int, NDArray[np.float16]]:
        """Returns a dict from ids to features, (D,) float16; unknown ids are left out. strong: see `count`."""
        found = {}
        for start in range(0, len(ids), ROWS):
            part = [int(number) for number in ids[start : start + ROWS]]
            for row in self.query(f"id in {part}", ["id", "features"], strong=strong):
                found[int(row["id"])] = _vector(row["features"]).astype(np.float16)
        return found

    def search(
        self, queries: NDArray[np.float32], width: int, where: str, parameters: dict[str, Any]
    ) -> list[list[Hit]]:
        """Finds the `width` rows nearest to each of (nq, D) queries, with their fields and features.

        where: a Milvus expression, or "" for all rows. parameters: see `index_kinds.search_parameters`.
        """
        found = self.call(
            "search",
            collection_name=self.name,
            data=list(queries),
            limit=width,
            filter=where,
            output_fields=[*SCALARS, "features"],
            search_params={"metric_type": "L2", "params": parameters},
            **self._consistency(False),
        )
        return [[_hit(hit) for hit in hits] for hits in found]

    def _query(self, where: str, fields: list[str], strong: bool) -> Any:
        return self.call(
            "query", collection_name=self.name, filter=where, output_fields=fields, **self._consistency(strong)
        )

    def _consistency(self, strong: bool) -> dict[str, str]:
        strong = strong or self.address.consistency == "strong"
        return {"consistency_level": "Strong" if strong else "Bounded"}


def _hit(hit: Any) -> Hit:
    fields = dict(hit["entity"])
    features = _vector(fields.pop("features"))
    fields["id"] = int(hit["id"])
    return Hit(int(hit["id"]), float(hit["distance"]), fields, features)


def _vector(value: Any) -> NDArray[Any]:
    """Returns the features of a row as an array, (D,). Milvus gives float16 as bytes, and float32 as numbers."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], bytes):
        value = value[0]
    return np.frombuffer(value, "<f2") if isinstance(value, bytes) else np.asarray(value, np.float32)


def _reason(error: Exception) -> str:
    """Returns the message of an error of pymilvus or gRPC, in one line."""
    if callable(details := getattr(error, "details", None)):
        return str(details() or error).strip().partition("\n")[0]
    lines = str(getattr(error, "message", "") or error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip() if "stack trace: " in lines[0] else lines[0]
