"""Permission to read a remote source that an index names.

An index may come from a stranger, and reading `s3://bucket/key` signs a request with the user's credentials. So an
address in an index is not read without the user's permission. A user who names an address as a source permits reading
it and everything below it. `SIMSEARCH_REMOTE=1` and `serve --remote` permit all addresses.

The addresses that a user has named are recorded in the user's cache folder, not in the index: one file for each
address, named by the SHA-256 of the address.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from simsearch.common.atomic_files import atomic_write
from simsearch.common.cache import cache_dir
from simsearch.errors import UsageError

VARIABLE = "SIMSEARCH_REMOTE"
"""The environment variable that permits all remote sources."""

_named: set[str] = set()
"""The addresses that were named in this process; "" stands for all."""


def grant(root: str) -> None:
    """Records that the user has named a source. This permits reading the source, in later processes too."""
    if root in _named:
        return
    _named.add(root)
    path = _record(root)
    if not path.exists():
        with contextlib.suppress(OSError, UsageError):  # without a cache, the permission ends with the process
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, (root + "\n").encode("utf-8", "surrogateescape"), follow_links=False)


def grant_all() -> None:
    """Permits all remote sources in this process."""
    _named.add("")


def is_granted(root: str) -> bool:
    """Returns True if an address may be read: the user has named it, or all addresses are permitted."""
    return "" in _named or os.environ.get(VARIABLE, "") not in {"", "0"} or is_named(root)


def is_named(root: str) -> bool:
    """Returns True if the user has named an address, or a folder above it."""
    place = root
    while "/" in place.partition("://")[2]:
        if place in _named or _record(place).exists():
            return True
        place = place.rpartition("/")[0]
    return place in _named or _record(place).exists()


def check(root: str) -> None:
    """Raises UsageError if an address that an index names may not be read."""
    if not is_granted(root):
        raise UsageError(
            f"the index names the remote source {root}, which you have not named on this machine",
            hint=f'if you trust it, call simsearch.build("{root}", INDEX) or set {VARIABLE}=1',
            shell_hint=f"if you trust it, use `simsearch build {root} -i INDEX`, `serve --remote`, or set {VARIABLE}=1",
        )


def _record(root: str) -> Path:
    digest = hashlib.sha256(root.encode("utf-8", "surrogateescape")).hexdigest()
    return cache_dir() / "remote" / "named" / digest
