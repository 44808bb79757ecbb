"""Paths as people see them: as URLs of files, and relative where that is shorter."""

from __future__ import annotations

import os
from pathlib import Path

from simsearch.errors import UsageError


def file_link(path: str) -> str | None:
    """Returns the URL of a file that can be opened by itself; None for a member of an archive and other queries."""
    return Path(path).absolute().as_uri() if os.path.isfile(path) else None


def item_link(service: str, number: int) -> str:
    """Returns the URL of an item's picture in a service; `http://host:8000/?index=NAME` is one of several indexes.

    Raises UsageError if `service` is no http(s) URL.
    """
    from urllib.parse import urlsplit, urlunsplit  # every start of the program would pay for it

    try:
        parts = urlsplit(service)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{service!r} is not the address of a service", hint="http://HOST:PORT, as `serve` prints it")
    path = f"{parts.path.rstrip('/')}/v1/items/{number}/image"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def shortest(path: str) -> str:
    """Returns an absolute path relative to the current folder if that is shorter; other paths as they are."""
    if not os.path.isabs(path):
        return path
    try:
        relative = os.path.relpath(path)
    except OSError:  # the current folder is gone
        return path
    relative = os.path.join(os.curdir, relative) if relative.startswith("-") else relative
    return relative if len(relative) < len(path) else path
