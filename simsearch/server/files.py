"""Responses that read a file only as fast as the client receives it, so that slow clients take little memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import IO, TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

CHUNK = 1 << 16
"""Bytes that are read at a time, about as many as uvicorn buffers."""


class FileResponse(Response):
    """A response with the content of an open file. The file is closed when the response ends.

    pool: threads for reading. done: called when the response has ended.
    """

    def __init__(
        self,
        file: IO[bytes],
        media_type: str,
        headers: dict[str, str],
        pool: Executor,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self._file, self._pool, self._done = file, pool, done
        self._size = file_size(file)
        super().__init__(None, 200, {**headers, "content-length": str(self._size)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope.get("simsearch.method") != "HEAD":
                await self._send_content(receive, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._file.close()
            self._done()

    async def _send_content(self, receive: Receive, send: Send) -> None:
        """Sends the content. Raises ClientDisconnect if the client leaves, or the file becomes shorter meanwhile."""
        loop = asyncio.get_running_loop()
        left = asyncio.ensure_future(_disconnected(receive))
        try:
            rest = self._size
            while rest and not left.done():
                chunk = await loop.run_in_executor(self._pool, self._file.read, min(CHUNK, rest))
                if not chunk:
                    break
                rest -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if rest:
                raise ClientDisconnect
        finally:
            left.cancel()


def file_size(file: IO[bytes]) -> int:
    """Returns the size of an open file in bytes, and rewinds it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
