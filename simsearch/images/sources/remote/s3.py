"""Reads buckets of S3 and of compatible servers with the library s3fs.

Credentials, region, profile and endpoint are those of the AWS command line: `AWS_*` in the environment, `~/.aws`, or
the role of a cloud machine. Without credentials, requests are not signed; public buckets permit this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from simsearch.errors import MissingExtraError, UsageError
from simsearch.images.sources.remote.addresses import bucket_and_key
from simsearch.images.sources.remote.store import (
    CONNECT_SECONDS,
    READ_SECONDS,
    REQUESTS,
    DeniedError,
    MissingError,
    RemoteObject,
    Store,
    TransientError,
)

ANONYMOUS = "SIMSEARCH_ANONYMOUS"
"""The environment variable that turns off the signing of requests, even if there are credentials."""

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

NO_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, as for the AWS command line"

_TRANSIENT = {
    "BandwidthLimitExceeded",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_CREDENTIALS = {
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_MISSING = {"404", "NoSuchKey", "NoSuchVersion"}


class S3Store(Store):
    """The objects below `s3://bucket/prefix`. Raises MissingExtraError if s3fs is not installed."""

    def __init__(self, root: str, *, quick: bool = False) -> None:
        super().__init__(root, quick=quick)
        self._bucket, self._prefix = bucket_and_key(root)
        self._anonymous = os.environ.get(ANONYMOUS, "") not in {"", "0"}
        try:
            import s3fs  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(f"reading {root}", "remote") from error
        self._files = self._connect()

    def _connect(self) -> Any:
        import s3fs

        config: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "max_pool_connections": REQUESTS,
            "retries": {"total_max_attempts": 1},  # `Store` tries again
        }
        if any(os.environ.get(name) for name in ENDPOINTS):  # few other servers accept bucket.host as a name
            config["s3"] = {"addressing_style": "path"}
        files = s3fs.S3FileSystem(
            anon=self._anonymous, config_kwargs=config, use_listings_cache=False, skip_instance_cache=True
        )
        files.retries = 1
        return files

    def server(self) -> str:
        given = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
        return urlsplit(given).netloc.rpartition("@")[2] or "S3"

    def denied_hint(self) -> str | None:
        return NO_CREDENTIALS if self._anonymous else "listing the bucket needs the permission s3:ListBucket"

    def _objects(self, within: str) -> Iterator[RemoteObject]:
        start = "/".join(part for part in (self._prefix, within) if part)
        token: str | None = None
        cut = len(self._prefix) + 1 if self._prefix else 0
        while True:
            page = self._attempt(lambda token=token: self._page(start + "/" if start else "", token))  # type: ignore[misc]
            for found in page.get("Contents", ()):
                identity = str(found.get("ETag") or found.get("LastModified") or "")
                yield RemoteObject(found["Key"][cut:], int(found["Size"]), identity)
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated"):
                return
            if not following or following == token:
                raise TransientError(f"{self.server()} cut the listing short")
            token = following

    def _page(self, prefix: str, token: str | None) -> Any:
        more = {"ContinuationToken": token} if token else {}
        return self._call(self._request, "list_objects_v2", Prefix=prefix, **more)

    def _info(self, path: str) -> RemoteObject:
        found = self._call(self._request, "head_object", Key=self._key(path))
        identity = str(found.get("ETag") or found.get("LastModified") or "")
        return RemoteObject(path, int(found["ContentLength"]), identity)

    def _read(self, path: str, start: int | None, end: int | None, most: int) -> bytes:
        part = {} if start is None or end is None else {"Range": f"bytes={start}-{end - 1}"}
        data: bytes = self._call(self._body, most, Key=self._key(path), **part)
        return data

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    async def _request(self, method: str, **arguments: Any) -> Any:
        return await self._files._call_s3(method, Bucket=self._bucket, **arguments)

    async def _body(self, most: int, **arguments: Any) -> bytes:
        answer = await self._request("get_object", **arguments)
        data = bytearray()
        async with answer["Body"] as body:
            while len(data) <= most and (part := await body.read(1 << 20)):
                data += part
        return bytes(data)

    def _call(self, request: Any, *arguments: Any, **named: Any) -> Any:
        """Runs a coroutine in fsspec's thread.

        Raises the exceptions that the module `store` defines, or UsageError for bad credentials.
        """
        from botocore.exceptions import BotoCoreError, NoCredentialsError
        from fsspec.asyn import sync

        files = self._files
        try:
            return sync(files.loop, request, *arguments, timeout=self._seconds, **named)
        except NoCredentialsError:
            with self._lock:
                if self._files is files:
                    self._anonymous = True
                    self._files = self._connect()
            return self._call(request, *arguments, **named)
        except BotoCoreError as error:
            raise self._of_library(error) from error
        except Exception as error:  # s3fs raises OSErrors; their cause is botocore's exception
            answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
            if isinstance(answer, dict):
                raise self._of_answer(answer) from error
            raise self._of_connection(error) from error

    def _of_answer(self, answer: dict[str, Any]) -> Exception:
        """Returns the exception to raise for a response of S3 that has an error code."""
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
        if code in _CREDENTIALS:
            return UsageError(f"{self.root}: {self.server()} refuses the credentials: {code}", hint=NO_CREDENTIALS)
        if code in _TRANSIENT or status in {408, 429} or status >= 500:
            return TransientError(f"{self.server()} answered {code or status}")
        if code == "NoSuchBucket":
            return MissingError(f"there is no bucket {self._bucket}")
        if code in _MISSING or status == 404:
            return MissingError("no such object")
        if status in {401, 403}:
            suffix = "; no credentials were found" if self._anonymous else ""
            named = "" if code in {"AccessDenied", "403", "Forbidden"} else f" ({code})"
            return DeniedError(f"access denied{named}{suffix}")
        return DeniedError(f"{self.server()} answered {code or status}")

    def _of_library(self, error: Exception) -> Exception:
        """Returns the exception to raise for an exception of botocore."""
        from botocore import exceptions

        connection = exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError
        if isinstance(error, (*connection, exceptions.ResponseStreamingError)):
            return self._of_connection(error)
        if isinstance(error, (exceptions.FlexibleChecksumError, exceptions.ChecksumError)):
            return TransientError("the received data does not match its checksum")
        if "parse" in type(error).__name__.lower() or isinstance(error, exceptions.ParamValidationError):
            return DeniedError(" ".join(str(error).split()))
        return UsageError(f"{self.root}: {' '.join(str(error).split())}", hint=NO_CREDENTIALS)

    def _of_connection(self, error: BaseException) -> TransientError:
        name = type(error).__name__
        if ("Connect" in name and "Timeout" not in name) or isinstance(error, ConnectionError):
            return TransientError(f"no answer from {self.server()}", connection=True)
        if "Timeout" in name:
            return TransientError(f"{self.server()} took too long", connection=True)
        return TransientError(f"{self.server()} broke off the connection: {name}")
