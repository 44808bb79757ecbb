"""Addresses of remote sources and objects: `s3://bucket/key`, `gs://bucket/key`, `https://host/folder/file`.

The root of a source has no slash at its end. Addresses of objects in buckets are not percent-encoded. Addresses on web
servers are percent-encoded, but paths relative to a root are not. This module imports nothing heavy, because every
command that takes a path uses it.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from simsearch.errors import UsageError

BUCKETS = ("s3", "gs")
WEB = ("http", "https")

KIND, ZIP_KIND, TAR_KIND = "remote", "remote-zip", "remote-tar"
"""`Source.kind` of remote folders, .zip files and .tar files."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PLAIN = "/!$&'()*+,;=:@~"
"""Characters of a name that are not percent-encoded in the path of a URL."""


def scheme_of(name: str) -> str | None:
    """Returns the scheme of an address in lower case; None for a path on disk."""
    found = _SCHEME.match(name)
    return found[1].lower() if found else None


def is_remote(name: str) -> bool:
    """Returns True for an address of a remote source or object."""
    return scheme_of(name) in (*BUCKETS, *WEB)


def is_kind(kind: str) -> bool:
    """Returns True if a `Source.kind` is the kind of a remote source."""
    return kind in (KIND, ZIP_KIND, TAR_KIND)


def normalized(name: str) -> str:
    """Returns an address in the form that a source's root has. Raises UsageError for an address that cannot be used."""
    scheme = scheme_of(name)
    if scheme not in (*BUCKETS, *WEB):
        raise UsageError(
            f"{name!r} has an unknown scheme", hint="a remote source begins with s3://, gs://, https:// or http://"
        )
    rest = name.partition("://")[2]
    host, _, path = rest.partition("/")
    if scheme in BUCKETS:
        if not _BUCKET.fullmatch(host):
            raise UsageError(f"{name!r} names no bucket", hint=f"write {scheme}://BUCKET or {scheme}://BUCKET/PREFIX")
        return f"{scheme}://{host}/{path}".rstrip("/")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        secret, _ = parts.username or parts.password, parts.port
    except ValueError:
        raise UsageError(f"{name!r} is not a valid address") from None
    if secret is not None or "@" in parts.netloc:
        raise UsageError(
            f"an address with a user or password cannot be a source: {scheme}://{parts.hostname}{parts.path}",
            hint="an index would store user and password, for all its readers to see",
        )
    if parts.query or parts.fragment:
        raise UsageError(
            f"an address with ? or # cannot be a source: {scheme}://{parts.netloc}{parts.path}",
            hint="an index would store the part after ? or #, which may be a secret signature",
        )
    if not parts.hostname:
        raise UsageError(f"{name!r} names no host")
    path = quote(unquote(parts.path, errors="surrogateescape"), safe=_PLAIN, errors="surrogateescape")
    return f"{scheme}://{parts.netloc.lower()}{path}".rstrip("/")


def bucket_and_key(address: str) -> tuple[str, str]:
    """Splits an address such as `s3://bucket/key` into the bucket and the key."""
    bucket, _, key = address.partition("://")[2].partition("/")
    return bucket, key


def joined(root: str, path: str) -> str:
    """Returns the address of an object. path: relative to the root, not percent-encoded."""
    if scheme_of(root) in WEB:
        path = quote(path, safe=_PLAIN, errors="surrogateescape")
    return f"{root}/{path}"


def relative_to(address: str, root: str) -> str:
    """Returns the path of an object relative to `root`, not percent-encoded. address: begins with `root`."""
    path = address[len(root) + 1 :]
    return unquote(path, errors="surrogateescape") if scheme_of(root) in WEB else path


def has_odd_parts(path: str) -> bool:
    """Returns True for a path with `.`, `..` or empty parts, which a web server would resolve to another place."""
    return any(part in {"", ".", ".."} for part in path.split("/"))
