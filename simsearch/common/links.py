"""Paths as people see them: as URLs of files, and relative where that is shorter."""

from __future__ import annotations

import os
from pathlib import Path


def file_link(path: str) -> str | None:
    """Returns the URL of a file that can be opened by itself; None for a member of an archive and other queries."""
    return Path(path).absolute().as_uri() if os.path.isfile(path) else None


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
