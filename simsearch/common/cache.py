"""The cache folder, for files that can be regenerated at any time."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def cache_dir() -> Path:
    """Returns `$SIMSEARCH_CACHE`, else `$XDG_CACHE_HOME/simsearch`, else `~/.cache/simsearch`."""
    if own := os.environ.get("SIMSEARCH_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "simsearch"


def cached_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """Returns the path of the folder `name` in the cache. If the folder is missing, `fill` creates its content.

    `fill` gets the path of a temporary folder, which is renamed when `fill` is done. So readers never see an incomplete
    folder, and if two processes fill the folder at once, the result of the first is kept. If the cache is not writable,
    the function returns a temporary folder, which is deleted when the process ends.
    Raises OSError if no temporary folder can be created either.
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
        if not target.is_dir():  # if it exists, another process has filled it first
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
