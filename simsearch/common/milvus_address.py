"""Addresses of Milvus collections: `milvus://host:port/collection`, or `milvus:///path/file.db` for Milvus Lite.

Options follow after `?`, joined by `&`:
    consistency=strong  searches see every completed push; the default, `bounded`, may lag by seconds but is much faster
    timeout=SECONDS     how long to try to reach the server
    effort=N            search effort of an approximate index (`ef` of HNSW, `nprobe` of IVF, ...)

A file can hold several collections. `milvus:///path/file.db` is the collection named `simsearch`; the address of
another collection ends with its name, as in `milvus:///path/file.db/collection`. If a server needs a token, it
is read from $SIMSEARCH_MILVUS_TOKEN, so that it does not appear in command lines or logs.
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
"""The default collection of a Milvus Lite file."""

TIMEOUT = 6.0
"""Default time limit for reaching a server, in seconds."""

TOKEN = "SIMSEARCH_MILVUS_TOKEN"
_HINT = "milvus://HOST:PORT/COLLECTION, or milvus:///PATH/FILE.db"


@dataclass(frozen=True)
class MilvusAddress:
    """A parsed address: a collection, its server (host and port) or Milvus Lite file, and options for requests."""

    collection: str
    host: str = ""
    port: int = PORT
    file: Path | None = None
    consistency: str = "bounded"
    timeout: float = TIMEOUT
    effort: int | None = None

    def __str__(self) -> str:
        """Returns the address as text, without its options."""
        if self.file is not None:
            return f"{SCHEME}{self.file}" + ("" if self.collection == COLLECTION else f"/{self.collection}")
        return f"{SCHEME}{self.host}:{self.port}/{self.collection}"

    @property
    def uri(self) -> str:
        """The URL of the server, or the path of the file, as pymilvus takes it."""
        return str(self.file) if self.file is not None else f"http://{self.host}:{self.port}"

    @property
    def server(self) -> str:
        """The server as host:port, or the path of the file, for messages."""
        return str(self.file) if self.file is not None else f"{self.host}:{self.port}"


def is_address(index: str | os.PathLike[str]) -> bool:
    """Returns True if `index` is the address of a collection and not a path."""
    return os.fspath(index).startswith(SCHEME)


def parse_address(text: str) -> MilvusAddress:
    """Parses an address with its options. Raises UsageError for an invalid address or option."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"{text!r} is not a valid address: {error}", hint=_HINT) from None
    if not text.startswith(SCHEME) or parts.fragment or parts.username:
        raise UsageError(f"{text!r} is not the address of a Milvus collection", hint=_HINT)
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
            raise UsageError(f"{text!r}: the option {key}={value} is unknown or has an invalid value", hint=hint)
    path = re.sub("^/+", "/", unquote(parts.path))  # milvus:///$PWD/... has four slashes
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
        what = f"{name!r} is not a valid collection name" if name else "the name of the collection is missing"
        raise UsageError(
            f"{text!r}: {what}", hint="a name has at most 255 letters, digits and _, and does not start with a digit"
        )
    return name
