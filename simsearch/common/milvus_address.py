"""Where a Milvus collection is: `milvus://host:port/collection`, or `milvus:///path/file.db` for Milvus Lite in a file.

After a `?` may follow, joined by `&`, `consistency=strong` (a search sees every push that has ended; the default,
`bounded`, may lag by some seconds and is much faster), `timeout=SECONDS`, how long to try before the server counts as
away, and `effort=N`, what an approximate index spends on a search (`ef` of HNSW, `nprobe` of IVF, ...). A file may hold
several collections: `milvus:///path/file.db/collection`. The token of a server that wants one is taken from
$SIMSEARCH_MILVUS_TOKEN, so that it stands in no command line and no log.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from simsearch.errors import UsageError

SCHEME = "milvus://"
PORT = 19530
COLLECTION = "simsearch"
"""The collection in a file where the address names none."""

TIMEOUT = 6.0
"""Seconds to try until a server counts as away."""

TOKEN = "SIMSEARCH_MILVUS_TOKEN"
_HINT = "milvus://HOST:PORT/COLLECTION, or milvus:///PATH/FILE.db"


@dataclass(frozen=True)
class MilvusAddress:
    """host and port of a server, or the file of Milvus Lite; the collection in it; how to ask."""

    collection: str
    host: str = ""
    port: int = PORT
    file: Path | None = None
    consistency: str = "bounded"
    timeout: float = TIMEOUT
    effort: int | None = None

    def __str__(self) -> str:
        """The address, without what only says how to ask."""
        if self.file is not None:
            return f"{SCHEME}{self.file}" + ("" if self.collection == COLLECTION else f"/{self.collection}")
        return f"{SCHEME}{self.host}:{self.port}/{self.collection}"

    @property
    def uri(self) -> str:
        """As pymilvus wants it."""
        return str(self.file) if self.file is not None else f"http://{self.host}:{self.port}"

    @property
    def server(self) -> str:
        """As a person wants it."""
        return str(self.file) if self.file is not None else f"{self.host}:{self.port}"


def is_address(index: str | os.PathLike[str]) -> bool:
    """Whether an index is given by the address of a collection, not by a path."""
    return os.fspath(index).startswith(SCHEME)


def parse_address(text: str) -> MilvusAddress:
    """Reads an address. Raises UsageError."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"{text!r} is no address: {error}", hint=_HINT) from None
    if not text.startswith(SCHEME) or parts.fragment or parts.username:
        raise UsageError(f"{text!r} is no address of a Milvus collection", hint=_HINT)
    settings: dict[str, Any] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key == "consistency" and value in {"bounded", "strong"}:
            settings[key] = value
        elif key == "timeout" and re.fullmatch(r"\d+(\.\d+)?", value) and float(value) > 0:
            settings[key] = float(value)
        elif key == "effort" and re.fullmatch(r"[1-9]\d{0,4}", value):
            settings[key] = int(value)
        else:
            hint = "consistency=strong|bounded, timeout=SECONDS, effort=N"
            raise UsageError(f"{text!r}: {key}={value} cannot be used", hint=hint)
    path = re.sub("^/+", "/", unquote(parts.path))  # milvus:///$PWD/... has four
    if not host:
        found = re.fullmatch(r"(/.*\.db)(?:/([^/]*))?", path)
        if not found:
            raise UsageError(f"{text!r} names neither a server nor a .db file", hint=_HINT)
        name = found[2] if found[2] is not None else COLLECTION
        return MilvusAddress(_name(name, text), file=Path(found[1]), **settings)
    if ":" in host:
        host = f"[{host}]"
    name = _name(path.removeprefix("/"), text)
    return MilvusAddress(name, host, PORT if port is None else port, **settings)


def _name(name: str, text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        what = f"{name!r} is no name of a collection" if name else "the collection is not named"
        raise UsageError(f"{text!r}: {what}", hint="letters, digits and _, no digit first")
    return name
