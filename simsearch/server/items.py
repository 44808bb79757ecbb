"""The HTTP handlers for items: a single item, lists of items, image files, thumbnails, adding and removing."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import IO, Any

from fastapi import Request
from fastapi.responses import Response

from simsearch.engine import Engine
from simsearch.errors import ImageError, ImageTooLargeError, ItemNotFoundError
from simsearch.server import thumbnails
from simsearch.server.browse import ListRequest
from simsearch.server.errors import reply
from simsearch.server.files import FileResponse, file_size
from simsearch.server.middleware import ApiError
from simsearch.server.reloading import ReloadableIndex
from simsearch.server.request_body import read_upload
from simsearch.server.service import SearchService
from simsearch.storage.reader import Item, modified


class Items:
    """Shows items, adds and removes them."""

    def __init__(self, service: SearchService) -> None:
        self.service = service

    async def item(self, request: Request, number: int) -> Response:
        """Answers with the JSON fields of the item with the id `number`."""
        served = self.service.index(request)
        return reply((await self.service.in_thread(lambda: self._item_values(served, [number])))[0])

    async def listed(self, request: Request, wanted: ListRequest) -> Response:
        """Answers with a page of items, as `wanted` describes it."""
        served = self.service.index(request)
        page = await self.service.in_thread(
            lambda: served.run(lambda engine: self.service.browser.page(engine, wanted))
        )
        found = await self.service.in_thread(lambda: self._item_values(served, page.ids, lenient=True))
        notes = {} if page.total else await self.service.notes(served, wanted.conditions())
        return reply({"items": found, "total": page.total, "next": page.next, **notes})

    async def some(self, request: Request, numbers: list[int]) -> Response:
        """Answers with the items that have these ids; ids that do not exist are left out."""
        served = self.service.index(request)
        found = await self.service.in_thread(lambda: self._item_values(served, numbers, lenient=True))
        return reply({"items": found, "total": len(found), "next": None})

    async def facets(self, request: Request) -> Response:
        """Answers with the labels, folders and metadata fields of the items, and the number of items of each."""
        served = self.service.index(request)
        return reply(await self.service.in_thread(lambda: served.run(self.service.browser.facets)))

    async def items(self, request: Request, count: int) -> Response:
        """Answers with `count` items, spread evenly over the index."""
        served = self.service.index(request)
        found = await self.service.in_thread(lambda: self._item_values(served, thumbnails.spread(served, count)))
        return reply({"items": found, "total": (await self.service.in_thread(served.facts))[0], "next": None})

    def _item_values(self, served: ReloadableIndex, numbers: list[int], lenient: bool = False) -> list[dict[str, Any]]:
        def find(engine: Engine) -> list[dict[str, Any]]:
            items = []
            with engine.reading() as reader:
                for number in numbers:
                    with contextlib.suppress(*(ItemNotFoundError,) if lenient else ()):
                        items.append(reader.item(number))
            paths = [item.path for item in items] if self.service.settings.relative else engine.paths(items)
            return [values_of(item, path) for item, path in zip(items, paths, strict=True)]

        return served.run(find)

    async def image(self, request: Request, number: int) -> Response:
        """Answers with the image file of the item `number`; files that browsers cannot show are sent as attachments."""
        served = self.service.index(request)
        with _image_gone_as_404():
            file, kind = await self.service.in_lane(lambda lane: thumbnails.file(served, number, lane), True)
        # Bytes to count as memory: a file from an archive has been unpacked into memory or a temporary file.
        held = file_size(file) if isinstance(file, io.BytesIO) or not isinstance(file.name, str) else 0
        try:
            self.service.received.add(held)
        except ApiError:
            self._release(file, held)
            raise
        headers = {"cache-control": "private, no-cache"}
        if kind is None:
            headers["content-disposition"] = "attachment"
        done = functools.partial(self._release, file, held)
        return FileResponse(file, kind or "application/octet-stream", headers, self.service.readers, done)

    def _release(self, file: IO[bytes], held: int) -> None:
        file.close()
        self.service.received.add(-held)

    async def thumbnail(self, request: Request, number: int, size: int) -> Response:
        """Answers with a small JPEG of the picture of the item `number`, at most `size` pixels wide and high."""
        served = self.service.index(request)
        digest = await self.service.in_thread(lambda: thumbnails.digest(served, number))
        tag = f'"{digest.hex()[:32]}-{size}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        with _image_gone_as_404():
            data = await self.service.in_lane(
                lambda lane: self.service.thumbnails.get(served, number, digest, size, lane), True
            )
        return Response(data, media_type="image/jpeg", headers=headers)

    async def add(self, request: Request) -> Response:
        """Adds an image to the index."""
        check_writable(self.service, "GET, HEAD")
        served = self.service.index(request)
        upload = (await read_upload(request)).model_dump(exclude_unset=True)
        largest = self.service.settings.max_pixels
        number, fresh = await self.service.in_lane(
            lambda lane: served.run_once(lambda engine: self.service.uploads.add(engine, upload, largest, lane)), False
        )
        response = await self.item(request, number)
        response.status_code = 201 if fresh else 200
        response.headers["location"] = f"items/{number}"
        return response

    async def remove(self, request: Request, number: int) -> Response:
        """Removes the item with the id `number` from the index."""
        check_writable(self.service, "GET, HEAD")
        served = self.service.index(request)
        await self.service.in_thread(
            lambda: served.run_once(lambda engine: self.service.uploads.remove(engine, number))
        )
        return Response(status_code=204)


def check_writable(service: SearchService, allowed: str) -> None:
    """Raises ApiError if the service may not change its indexes. allowed: the Allow header of the error."""
    if not service.settings.writable:
        message = "this service is read-only; `simsearch serve --writable` is not"
        raise ApiError(405, "read_only", message, {"allow": allowed})


def values_of(item: Item, path: str) -> dict[str, Any]:
    """Returns the JSON fields of an item. path: the path to show, absolute or relative."""
    date = modified(item.stamp)
    return {
        "id": item.id,
        "path": path,
        "label": item.label,
        "metadata": item.metadata,
        "width": item.width,
        "height": item.height,
        "bytes": item.size,
        "modified": date.strftime("%Y-%m-%dT%H:%M:%SZ") if date else None,
    }


@contextlib.contextmanager
def _image_gone_as_404() -> Iterator[None]:
    """In the `with` block, turns an ImageError, except ImageTooLargeError, into an ApiError with status 404."""
    try:
        yield
    except ImageTooLargeError:
        raise
    except ImageError as error:
        raise ApiError(404, "image_gone", f"the item's image cannot be shown: {error}") from error
