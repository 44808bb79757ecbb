"""Reads files on web servers. Their URLs come from an index, not the user, so only public IP addresses are accepted."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from simsearch.errors import ImageError
from simsearch.images import urls
from simsearch.images.decode import LARGE_BYTES
from simsearch.images.sources.remote.addresses import has_odd_parts, joined
from simsearch.images.sources.remote.store import DeniedError, MissingError, RemoteObject, Store

SECONDS = 20.0
"""Time limit (seconds) for reading a file, from looking up the host to the last byte."""


class PublicWebStore(Store):
    """The files below `https://host/folder`. They can be read, but not listed; see `urls.fetch_public`."""

    def server(self) -> str:
        return urlsplit(self.root).netloc

    def _objects(self, within: str) -> Iterator[RemoteObject]:
        raise DeniedError("this web server has not been named as a source on this machine")

    def _info(self, path: str) -> RemoteObject:
        return RemoteObject(path, None, "")

    def _read(self, path: str, start: int | None, end: int | None, most: int) -> bytes:
        if start is not None:
            raise DeniedError("archives are only read from web servers named as a source on this machine")
        if has_odd_parts(path):
            raise MissingError
        try:
            return urls.fetch(joined(self.root, path), LARGE_BYTES, SECONDS, public_only=True)
        except ValueError as error:  # UsageError and ImageError
            raise ImageError(str(error)) from error
