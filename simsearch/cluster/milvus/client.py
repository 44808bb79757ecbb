"""A Milvus collection and the calls to it: the only module that knows pymilvus.

Every call has a deadline, is tried again with growing pauses where that may help (a server that restarts, a collection
that is being loaded), and fails with an error of ours. Milvus's distances are squared; those given out here are too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.milvus_address import TOKEN, MilvusAddress
from simsearch.errors import (
    IndexLockedError,
    IndexNotFoundError,
    MissingExtraError,
    SimsearchError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


LARGEST = 16384
"""Matches of one search, and rows of one query, that Milvus gives at most."""

SPAN = 8192
"""Ids asked for at once where features are not."""

ROWS = 256
"""Rows asked for at once with their features: 4 MiB at D = 4096."""

CONNECT = 4.0
"""Seconds for a server to take a connection in."""

LITE_PATIENCE = 120.0
"""Seconds for a call to Milvus Lite, which computes in this process and cannot be away."""

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
"""The fields of an item; `labelled` tells no label from an empty one, `path_hex` holds a path that is no UTF-8."""

EFFORT = {
    "HNSW": "ef",
    "HNSW_SQ": "ef",
    "HNSW_PQ": "ef",
    "IVF_FLAT": "nprobe",
    "IVF_SQ8": "nprobe",
    "IVF_PQ": "nprobe",
    "SCANN": "nprobe",
    "DISKANN": "search_list",
    "GPU_CAGRA": "itopk_size",
    "GPU_IVF_FLAT": "nprobe",
    "GPU_IVF_PQ": "nprobe",
}
"""How each approximate index calls the number that trades time for recall in a search."""

KINDS = ("FLAT", "GPU_BRUTE_FORCE", *EFFORT)
EXACT = ("FLAT", "GPU_BRUTE_FORCE")

_TEXT = 65535  # Milvus's limit on a VARCHAR, in bytes
_BUILD = {"HNSW": {"M": 16, "efConstruction": 200}, "GPU_CAGRA": {"intermediate_graph_degree": 64, "graph_degree": 32}}
_AGAIN = (
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
_open_files: dict[Path, int] = {}
_files = threading.Lock()


@dataclass(frozen=True)
class Hit:
    """A found row. squared: Milvus's float32 distance. fields: as in SCALARS. features: (D,) float32 or float16."""

    id: int
    squared: float
    fields: dict[str, Any]
    features: NDArray[Any]


def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError:
        raise MissingExtraError("a Milvus collection", "cluster") from None
    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # their errors become ours; none is to be printed twice
        logging.getLogger(name).setLevel(logging.CRITICAL)
        for child in list(logging.root.manager.loggerDict):
            if child.startswith(name + "."):
                logging.getLogger(child).setLevel(logging.CRITICAL)
    return pymilvus


class MilvusClient:
    """A connection to the place of a collection, which need not exist yet. Safe for many threads.

    patience: seconds to go on trying; writing: whether a file of Milvus Lite may be made. Raises UnavailableError,
    MissingExtraError, IndexNotFoundError for a file that is not there, IndexLockedError for one in use elsewhere.
    """

    def __init__(self, address: MilvusAddress, *, writing: bool = False) -> None:
        self.address, self.name = address, address.collection
        self.patience = address.timeout if address.file is None else LITE_PATIENCE
        library = _pymilvus()
        if address.file is not None:
            _check_file(address.file, writing)
        self.closed = False
        try:
            self._client: Any = library.MilvusClient(
                uri=address.uri, token=os.environ.get(TOKEN, ""), timeout=min(CONNECT, address.timeout)
            )
        except Exception as error:
            raise self._away(error) from error
        if address.file is not None:
            with _files:
                _open_files[address.file] = _open_files.get(address.file, 0) + 1

    def close(self) -> None:
        """Ends the connection; a file is given back when nothing in this process uses it any more."""
        if self.closed:
            return
        self.closed = True
        self._client.close()
        if self.address.file is not None:
            with _files:
                _open_files[self.address.file] -= 1
                if not _open_files[self.address.file]:
                    from milvus_lite.server_manager import server_manager_instance

                    server_manager_instance.release_server(str(self.address.file))

    def check_open(self) -> None:
        if self.closed:
            raise UsageError(f"the index {self.address} has been closed")

    # -- calls

    def ask(self, what: str, **arguments: Any) -> Any:
        """Calls a method of pymilvus's client, again and again while that may help. Raises SimsearchError."""
        self.check_open()
        deadline, pause = time.monotonic() + self.patience, 0.1
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                return getattr(self._client, what)(timeout=left, **arguments)
            except Exception as error:
                if not self._retryable(error):
                    raise SimsearchError(f"{self.address}: Milvus refuses: {_told(error)}") from error
                if time.monotonic() + pause > deadline:
                    raise self._away(error) from error
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _retryable(self, error: Exception) -> bool:
        import grpc

        told = _told(error).lower()
        if "cannot parse" in told or "invalid" in told:
            return False
        whole = str(error).lower()  # of a server that starts: a stack, and only at its end the reason
        return isinstance(error, grpc.RpcError) or any(word in whole for word in (*_AGAIN, "stack trace: "))

    def _away(self, error: Exception) -> SimsearchError:
        message = f"no answer from Milvus at {self.address.server}: {_told(error)}"
        return UnavailableError(message, hint="is it running there? an address may end in ?timeout=SECONDS")

    # -- the collection

    def exists(self) -> bool:
        return bool(self.ask("has_collection", collection_name=self.name))

    def describe(self) -> dict[str, Any]:
        """What Milvus says of the collection: `properties`, `fields`, ... Raises IndexNotFoundError."""
        if not self.exists():
            hint = f"make it: simsearch push {self.address} -i INDEX"
            raise IndexNotFoundError(f"there is no collection {self.name} at {self.address.server}", hint=hint)
        return dict(self.ask("describe_collection", collection_name=self.name))

    def create(
        self, dimension: int, storage: str, kind: str, parameters: dict[str, Any], facts: dict[str, str]
    ) -> None:
        """Makes the collection with its indexes, and loads it. kind: one of KINDS. facts: its properties."""
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
        index.add_index("features", index_type=kind, metric_type="L2", params={**_BUILD.get(kind, {}), **parameters})
        # An item is looked up by its file's digest whenever a query is a file: both kinds of Milvus index text, each
        # by its own name.
        index.add_index("digest", index_type="INVERTED" if self.address.file is not None else "Trie")
        self.ask(
            "create_collection", collection_name=self.name, schema=schema, consistency_level="Bounded", properties=facts
        )
        try:
            self.ask("create_index", collection_name=self.name, index_params=index)
            self.ask("load_collection", collection_name=self.name)
        except BaseException:
            with contextlib.suppress(SimsearchError):
                self.drop()
            raise

    def load(self) -> None:
        """Makes it searchable, if it is not; waits for it."""
        self.ask("load_collection", collection_name=self.name)

    def set_properties(self, facts: dict[str, str]) -> None:
        self.ask("alter_collection_properties", collection_name=self.name, properties=facts)

    def index(self) -> dict[str, Any]:
        """The index of the features: `index_type`, and what it was built with."""
        return dict(self.ask("describe_index", collection_name=self.name, index_name="features"))

    def version(self) -> str:
        """Of the server, or "lite"."""
        return "lite" if self.address.file is not None else str(self._client.get_server_version())

    def drop(self) -> None:
        self.ask("drop_collection", collection_name=self.name)

    # -- rows

    def upsert(self, rows: list[dict[str, Any]]) -> None:
        self.ask("upsert", collection_name=self.name, data=rows)

    def delete(self, ids: Sequence[int]) -> None:
        self.ask("delete", collection_name=self.name, filter=f"id in {[int(number) for number in ids]}")

    def flush(self) -> None:
        """Seals what was written, so that it is indexed."""
        self.ask("flush", collection_name=self.name)

    def count(self, where: str = "", *, strong: bool = False) -> int:
        """The number of rows that meet a condition."""
        found = self._query(where, ["count(*)"], strong)
        return int(found[0]["count(*)"])

    def query(self, where: str, fields: Sequence[str], *, strong: bool = False) -> list[dict[str, Any]]:
        """The rows that meet a condition, at most LARGEST; in no order."""
        return [dict(row) for row in self._query(where, list(fields), strong)]

    def scan(self, where: str, fields: Sequence[str], highest: int, *, strong: bool = False) -> Iterator[list[Any]]:
        """All rows that meet a condition, some at a time, by id; `highest`: no id is higher."""
        for first in range(0, highest + 1, SPAN):
            within = f"id >= {first} and id < {first + SPAN}"
            rows = self.query(f"{within} and ({where})" if where else within, ["id", *fields], strong=strong)
            yield sorted(rows, key=lambda row: int(row["id"]))

    def features(self, ids: Sequence[int], *, strong: bool = False) -> dict[int, NDArray[np.float16]]:
        """The (D,) float16 features of items, by id; one that is not there is left out."""
        found = {}
        for start in range(0, len(ids), ROWS):
            part = [int(number) for number in ids[start : start + ROWS]]
            for row in self.query(f"id in {part}", ["id", "features"], strong=strong):
                found[int(row["id"])] = _vector(row["features"]).astype(np.float16)
        return found

    def search(self, queries: NDArray[np.float32], width: int, where: str, effort: dict[str, Any]) -> list[list[Hit]]:
        """The `width` rows nearest to each of (nq, D) queries, with their fields and features."""
        found = self.ask(
            "search",
            collection_name=self.name,
            data=list(queries),
            limit=width,
            filter=where,
            output_fields=[*SCALARS, "features"],
            search_params={"metric_type": "L2", "params": effort},
            **self._level(False),
        )
        return [[_hit(hit) for hit in hits] for hits in found]

    def _query(self, where: str, fields: list[str], strong: bool) -> Any:
        return self.ask("query", collection_name=self.name, filter=where, output_fields=fields, **self._level(strong))

    def _level(self, strong: bool) -> dict[str, str]:
        strong = strong or self.address.consistency == "strong"
        return {"consistency_level": "Strong" if strong else "Bounded"}


def _hit(hit: Any) -> Hit:
    fields = dict(hit["entity"])
    features = _vector(fields.pop("features"))
    fields["id"] = int(hit["id"])
    return Hit(int(hit["id"]), float(hit["distance"]), fields, features)


def _vector(value: Any) -> NDArray[Any]:
    """float16 features come as bytes, float32 ones as numbers."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], bytes):
        value = value[0]
    return np.frombuffer(value, "<f2") if isinstance(value, bytes) else np.asarray(value, np.float32)


def _told(error: Exception) -> str:
    """What pymilvus or gRPC says, in one line."""
    if callable(details := getattr(error, "details", None)):
        return str(details() or error).strip().partition("\n")[0]
    lines = str(getattr(error, "message", "") or error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip() if "stack trace: " in lines[0] else lines[0]


def _check_file(file: Path, writing: bool) -> None:
    try:
        import milvus_lite  # noqa: F401
    except ImportError:
        # It asks for faiss-cpu, whose files would take the place of faiss-gpu's.
        raise MissingExtraError("Milvus Lite", "cluster", packages="--no-deps milvus-lite pyarrow") from None
    if not writing and not file.exists():
        hint = f"make it: simsearch push milvus://{file} -i INDEX"
        raise IndexNotFoundError(f"there is no file {file}", hint=hint)
    if not file.parent.is_dir():
        raise UsageError(f"{file} cannot be made: its folder does not exist")
    if file.exists() and not file.is_dir():
        raise UsageError(f"{file} was not made by Milvus Lite 3", hint="name another file")
    with _files:
        if _open_files.get(file) or not (file / "LOCK").exists():
            return
        with (file / "LOCK").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                message = f"another process has {file} open"
                raise IndexLockedError(message, hint="a file serves one process, a server many") from None
