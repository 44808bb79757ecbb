"""Converts paths to URLs or to shorter relative paths, and ids of items to URLs, for display."""

from __future__ import annotations

import os
from pathlib import Path

from simsearch.errors import UsageError


def file_link(path: str) -> str | None:
    """Returns the `file:` URL of a path; None if there is no file at the path, for example for an archive's member."""
    return Path(path).absolute().as_uri() if os.path.isfile(path) else None


def item_link(service: str, number: int) -> str:
    """Returns the URL of an item's picture on an HTTP service.

    number: the item's id.
    service: the service's URL. For a service with several indexes, `http://host:8000/?index=NAME` names the index.
    Raises UsageError if `service` is not an http(s) URL.
    """
    from urllib.parse import urlsplit, urlunsplit  # at the top, the import would slow down every start

    try:
        parts = urlsplit(service)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{service!r} is not the address of a service", hint="http://HOST:PORT, as `serve` prints it")
    path = f"{parts.path.rstrip('/')}/v1/items/{number}/image"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def shortest(path: str) -> str:
    """Returns an absolute path as a path relative to the current folder, if that is shorter; other paths unchanged."""
    if not os.path.isabs(path):
        return path
    try:
        relative = os.path.relpath(path)
    except OSError:  # the current folder is gone
        return path
    relative = os.path.join(os.curdir, relative) if relative.startswith("-") else relative
    return relative if len(relative) < len(path) else path
