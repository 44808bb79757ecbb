"""Where derived files that can always be made again are kept between runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def cache_dir() -> Path:
    """`$SIMSEARCH_CACHE`, else `$XDG_CACHE_HOME/simsearch`, else `~/.cache/simsearch`."""
    if own := os.environ.get("SIMSEARCH_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "simsearch"


def cached_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """The cached folder `name`; where it is missing, `fill` writes it under another name and it is moved into place.

    So a reader never sees half a folder, and of two processes that fill it at once one wins. Where the cache cannot
    be written at all, the folder is a temporary one, removed at exit. Raises OSError where that cannot be either.
    """
    target = cache_dir() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
    except OSError:
        return _temporary(fill)
    try:
        fill(partial)
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # not merely another process that was first
            shutil.rmtree(partial, ignore_errors=True)
            return _temporary(fill)
        shutil.rmtree(partial, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _temporary(fill: Callable[[Path], None]) -> Path:
    import atexit

    path = Path(tempfile.mkdtemp(prefix="simsearch-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    fill(path)
    return path
