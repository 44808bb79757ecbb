"""Reads buckets of Google Cloud Storage with the library gcsfs.

Google's libraries find the credentials: in the file that `GOOGLE_APPLICATION_CREDENTIALS` names, from an earlier
`gcloud auth application-default login`, or from the service account of a cloud machine. Without credentials, requests
are not signed; public buckets permit this.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from simsearch.errors import MissingExtraError, UsageError
from simsearch.images.sources.remote.addresses import bucket_and_key
from simsearch.images.sources.remote.s3 import ANONYMOUS
from simsearch.images.sources.remote.store import (
    CONNECT_SECONDS,
    DeniedError,
    MissingError,
    RemoteObject,
    Store,
    TransientError,
)

EMULATOR = "STORAGE_EMULATOR_HOST"
"""The environment variable that names another server (an emulator), which needs no credentials."""

PAGE = 1000
"""Number of objects on one page of a listing."""

FIELDS = "name,size,md5Hash,crc32c,generation,etag"


class GcsStore(Store):
    """The objects below `gs://bucket/prefix`.

    Raises MissingExtraError if gcsfs is not installed, UsageError if the credentials cannot be used.
    """

    def __init__(self, root: str, *, quick: bool = False) -> None:
        super().__init__(root, quick=quick)
        self._attempts = 1 if quick else 2  # gcsfs itself tries six times, with growing waits
        self._bucket, self._prefix = bucket_and_key(root)
        try:
            import gcsfs
        except ImportError as error:
            raise MissingExtraError(f"reading {root}", "remote") from error
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # gcsfs logs the errors that it raises
        anonymous = os.environ.get(ANONYMOUS, "") not in {"", "0"} or bool(os.environ.get(EMULATOR))
        try:
            self._files = gcsfs.GCSFileSystem(
                token="anon" if anonymous else None,
                access="read_only",
                requests_timeout=self._seconds,
                timeout=CONNECT_SECONDS,
                use_listings_cache=False,
                skip_instance_cache=True,
            )
        except Exception as error:  # Google's libraries raise many kinds of exceptions
            raise UsageError(
                f"{root}: the credentials of Google Cloud cannot be used: {type(error).__name__}",
                hint="set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
            ) from error

    def server(self) -> str:
        given = os.environ.get(EMULATOR, "")
        return urlsplit(given).netloc or given or "Google Cloud Storage"

    def denied_hint(self) -> str | None:
        return "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"

    def _objects(self, within: str) -> Iterator[RemoteObject]:
        start = "/".join(part for part in (self._prefix, within) if part)
        cut = len(self._prefix) + 1 if self._prefix else 0
        token: str | None = None
        while True:
            page = self._attempt(lambda token=token: self._page(start + "/" if start else "", token))  # type: ignore[misc]
            for found in page.get("items", ()):
                yield _remote_object(found["name"][cut:], found)
            following = page.get("nextPageToken")
            if not following:
                return
            if following == token:
                raise TransientError(f"{self.server()} cut the listing short")
            token = following

    def _page(self, prefix: str, token: str | None) -> Any:
        return self._call(
            "b/{}/o",
            self._bucket,
            json_out=True,
            prefix=prefix or None,
            pageToken=token,
            maxResults=PAGE,
            fields=f"nextPageToken,items({FIELDS})",
        )

    def _info(self, path: str) -> RemoteObject:
        return _remote_object(path, self._call("b/{}/o/{}", self._bucket, self._key(path), json_out=True))

    def _read(self, path: str, start: int | None, end: int | None, most: int) -> bytes:
        part = {} if start is None or end is None else {"Range": f"bytes={start}-{end - 1}"}
        _, data = self._call("b/{}/o/{}", self._bucket, self._key(path), headers=part, alt="media")
        return bytes(data)

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _call(self, *arguments: Any, **named: Any) -> Any:
        """Makes a GET request in fsspec's thread, and returns the response.

        arguments, named: those of `GCSFileSystem._call` after the HTTP method.
        Raises the exceptions that the module `store` defines, or UsageError for bad credentials.
        """
        from fsspec.asyn import sync

        try:
            return sync(self._files.loop, self._files._call, "GET", *arguments, timeout=self._seconds, **named)
        except FileNotFoundError as error:
            listing = "prefix" in named
            raise MissingError(f"there is no bucket {self._bucket}" if listing else "no such object") from error
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        code, name, text = str(getattr(error, "code", "")), type(error).__name__, str(error)
        status = int(code) if code.isdecimal() else 0
        if status in {408, 429} or status >= 500:
            return TransientError(f"{self.server()} answered {status}")
        if status == 403 or text.startswith("Forbidden"):
            return DeniedError("access denied")
        if status == 401 or "Anonymous caller" in text:
            return DeniedError("access denied; no credentials were found, or they are not accepted")
        if "RefreshError" in name or "DefaultCredentialsError" in name:
            return UsageError(f"{self.root}: the credentials of Google Cloud are refused", hint=self.denied_hint())
        if status:
            return DeniedError(f"{self.server()} answered {status}")
        connection = isinstance(error, ConnectionError) or "Connect" in name or "Timeout" in name
        return TransientError(
            f"no answer from {self.server()}" if connection else f"{self.server()} broke off the connection: {name}",
            connection=connection,
        )


def _remote_object(path: str, found: dict[str, Any]) -> RemoteObject:
    """Converts Google's description of an object to a `RemoteObject`.

    The identity is a checksum, because that does not change if only the object's metadata change. If there is no
    checksum, the identity is the generation (Google's number for a version of an object), the ETag, or the time.
    """
    for name in ("md5Hash", "crc32c", "generation", "etag"):
        if found.get(name):
            return RemoteObject(path, int(found.get("size", 0)), f"{name} {found[name]}")
    return RemoteObject(path, int(found.get("size", 0)), str(found.get("updated", "")))
