"""The HTTP service as an ASGI app: `simsearch.create_app`.

A search's way: gate (limits, key) -> body -> decode in threads -> batch (network, scan) -> JSON.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import io
import json
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from simsearch.errors import (
    ImageError,
    ImageTooLargeError,
    IndexDamagedError,
    IndexLockedError,
    IndexNotFoundError,
    ItemNotFoundError,
    MissingExtraError,
    SimsearchError,
    UsageError,
)

try:
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.responses import Response
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingExtraError("the HTTP service", "serve") from error

from simsearch import images, reference
from simsearch.batching import Batcher, Job
from simsearch.engine import Engine
from simsearch.gate import Gate, Refused
from simsearch.output import Answer
from simsearch.served import ServedIndex
from simsearch.settings import Settings
from simsearch.telemetry import Metrics
from simsearch.uploads import Uploads

THUMBNAIL_CACHE = 32 << 20
"""Bytes of thumbnails kept in memory."""

_FORMATS = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp",
            "AVIF": "image/avif", "BMP": "image/bmp"}  # fmt: skip
_STATUS: tuple[tuple[type[SimsearchError], int, str], ...] = (
    (ItemNotFoundError, 404, "no_such_item"),
    (ImageTooLargeError, 413, "image_too_large"),
    (ImageError, 422, "bad_image"),
    (IndexLockedError, 503, "index_locked"),
    (IndexNotFoundError, 503, "index_missing"),
    (IndexDamagedError, 503, "index_damaged"),
    (UsageError, 422, "bad_argument"),
    (SimsearchError, 503, "unavailable"),
)


def create_app(engine: Engine | Mapping[str, Engine], **options: Any) -> FastAPI:
    """An ASGI app (FastAPI) that searches an engine, or several by name, with a web page at its root.

    It can be served by itself or mounted: `app.mount("/similar", simsearch.create_app(engine))`.
    options: the fields of `settings.Settings`.
    """
    engines = engine if isinstance(engine, Mapping) else {"default": engine}
    if not engines:
        raise UsageError("there is no index to serve")
    return Service(dict(engines), Settings(**options)).app()


class Service:
    """What the routes share. The first of the engines answers where a request names no index."""

    def __init__(self, engines: dict[str, Engine], settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.indexes = {
            name: ServedIndex(name, engine, self.metrics.reloads.labels(name).inc) for name, engine in engines.items()
        }
        self.batchers = {n: Batcher(i, settings.batch_size, self.metrics) for n, i in self.indexes.items()}
        self.uploads = Uploads()
        self.decoders = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "decode")
        self.draining = False
        self._taken = 0
        self._thumbnails: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def app(self) -> FastAPI:
        app = FastAPI(title="simsearch", version=reference.VERSION, description=reference.ABOUT, docs_url=None,
                      redoc_url=None, openapi_url="/openapi.json", lifespan=self._lifespan)  # fmt: skip
        app.state.service = self
        app.router.redirect_slashes = False
        reference.install(app, self)
        for kind, handler in ((Refused, _refused), (SimsearchError, _ours), (HTTPException, _http),
                              (RequestValidationError, _invalid)):  # fmt: skip
            app.add_exception_handler(kind, handler)  # type: ignore[arg-type]
        if self.settings.cors:
            app.add_middleware(CORSMiddleware, allow_origins=list(self.settings.cors), allow_methods=["*"],
                               allow_headers=["authorization", "content-type", "x-api-key"])  # fmt: skip
        app.add_middleware(Gate, self.settings, self.metrics, _guarded, lambda: self.draining)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        self.decoders.shutdown(wait=True)

    def index(self, request: Request) -> ServedIndex:
        """The index that the request names. Raises Refused."""
        name = request.query_params.get("index") or next(iter(self.indexes))
        if name not in self.indexes:
            raise Refused(404, "no_such_index", f"there is no index called {name[:80]!r}")
        return self.indexes[name]

    async def in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self.decoders, call),
                                      self.settings.timeout)  # fmt: skip

    @contextlib.contextmanager
    def admitted(self) -> Any:
        """Counts a search; one too many is turned away at once."""
        if self._taken >= self.settings.in_flight:
            self.metrics.rejected.inc()
            raise Refused(429, "too_many_requests", "too many searches at once", {"retry-after": "1"})
        self._taken += 1
        self.metrics.in_flight.set(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self.metrics.in_flight.set(self._taken)

    async def search(self, request: Request) -> Response:
        """One search, from a multipart form or a JSON object."""
        start = time.perf_counter()
        served = self.index(request)
        with self.admitted():
            query, name = await _body(request, self.settings)
            self.metrics.phases.labels("body").observe(time.perf_counter() - start)
            try:
                job = await self.in_thread(lambda: self._job(served, query))
                future = asyncio.wrap_future(self.batchers[served.name].submit(job))
                matches = await asyncio.wait_for(future, self.settings.timeout)
            except TimeoutError:
                text = f"no answer within {self.settings.timeout:g} s"
                raise Refused(503, "timeout", text, {"retry-after": "5"}) from None
        took = 1000 * (time.perf_counter() - start)
        if self.settings.relative:
            from dataclasses import replace

            matches = [replace(match, path=match.relative) for match in matches]
        exact = bool(query.get("exact")) or served.engine.exact
        answer = Answer(name, served.engine.meta.model, exact, took, matches)
        request.scope["simsearch.log"] = {"index": served.name, "matches": len(matches)}
        return reply(answer.to_dict())

    def _job(self, served: ServedIndex, query: dict[str, Any]) -> Job:
        """Reads what is searched by; in a thread. Raises SimsearchError."""
        start = time.perf_counter()
        options: dict[str, Any] = {name: query[name] for name in ("max_distance", "dedup", "exact") if name in query}
        options["where"] = query.get("filter") or None
        job = Job(query.get("k", 6), options)  # type: ignore[arg-type]
        crop, engine = query.get("crop"), served.engine
        if "vector" in query:
            job.vector = np.asarray(query["vector"], np.float32).reshape(-1)
            if job.vector.shape != (engine.meta.dimension,) or not np.isfinite(job.vector).all():
                raise UsageError(f"vector must be {engine.meta.dimension} finite numbers")
            if crop is not None:
                raise UsageError("a vector cannot be cropped")
        elif "id" in query and crop is None:
            job.number = query["id"]
        else:
            if "url" in query:
                from simsearch.fetch import fetch

                data = fetch(query["url"], self.settings.max_body, min(10.0, self.settings.timeout))
            elif "id" in query:
                job.number = query["id"]
                data = served.use(lambda engine: engine.read(query["id"]))
            else:
                data = query["image"]
            recipe, job.weights = engine.recipe, engine.meta.weights_sha256
            image = images.decode(data, None if crop else recipe.resize, self.settings.max_pixels).image
            job.pixels = recipe.pixels(images.crop(image, crop) if crop else image)
            job.digest = None if crop else hashlib.sha256(data).digest()
        self.metrics.phases.labels("decode").observe(time.perf_counter() - start)
        job.born = time.perf_counter()
        return job

    async def item(self, request: Request, number: int) -> Response:
        served = self.index(request)

        def find(engine: Engine) -> dict[str, Any]:
            item = engine.item(number)
            path = item.path if self.settings.relative else engine.paths([item])[0]
            return {"id": item.id, "path": path, "label": item.label, "metadata": item.metadata,
                    "width": item.width, "height": item.height, "bytes": item.size}  # fmt: skip

        return reply(await self.in_thread(lambda: served.use(find)))

    async def image(self, request: Request, number: int) -> Response:
        served = self.index(request)
        try:
            data, _ = await self.in_thread(lambda: served.use(lambda e: (e.read(number), None)))
            kind = await self.in_thread(lambda: _kind(data))
        except ImageError as error:
            raise Refused(404, "image_gone", "the item's image cannot be read any more") from error
        headers = {"cache-control": "private, no-cache"}
        if kind is None:  # never let a browser guess
            headers["content-disposition"] = "attachment"
        return Response(data, media_type=kind or "application/octet-stream", headers=headers)

    async def thumbnail(self, request: Request, number: int, size: int) -> Response:
        served = self.index(request)
        digest = await self.in_thread(lambda: served.use(lambda engine: engine.item(number).digest))
        tag = f'"{digest.hex()[:32]}-{size}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        try:
            data = await self.in_thread(lambda: self._thumbnail(served, number, digest, size))
        except ImageError as error:
            raise Refused(404, "image_gone", "the item's image cannot be read any more") from error
        return Response(data, media_type="image/jpeg", headers=headers)

    def _thumbnail(self, served: ServedIndex, number: int, digest: bytes, size: int) -> bytes:
        with self._lock:
            if (known := self._thumbnails.get((digest, size))) is not None:
                self._thumbnails.move_to_end((digest, size))
                return known
        data = served.use(lambda engine: engine.read(number))
        image = images.decode(data, size).image
        image.thumbnail((size, size))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        made = buffer.getvalue()
        if hashlib.sha256(data).digest() == digest:
            with self._lock:
                if (digest, size) not in self._thumbnails:
                    self._thumbnails[digest, size] = made
                    self._held += len(made)
                while self._held > THUMBNAIL_CACHE:
                    self._held -= len(self._thumbnails.popitem(last=False)[1])
        return made

    async def add(self, request: Request) -> Response:
        self._must_write()
        served = self.index(request)
        query, _ = await _body(request, self.settings, write=True)
        number, fresh = await self.in_thread(lambda: self.uploads.add(served.engine, query, self.settings.max_pixels))
        response = await self.item(request, number)
        response.status_code = 201 if fresh else 200
        response.headers["location"] = f"items/{number}"
        return response

    async def remove(self, request: Request, number: int) -> Response:
        self._must_write()
        served = self.index(request)
        await self.in_thread(lambda: self.uploads.remove(served.engine, number))
        return Response(status_code=204)

    def _must_write(self) -> None:
        if not self.settings.writable:
            raise Refused(404, "read_only", "this service does not write; `simsearch serve --writable` would")

    async def listing(self) -> Response:
        def facts() -> list[dict[str, Any]]:
            found = []
            for name, served in self.indexes.items():
                items, generation = served.facts()
                meta = served.engine.meta
                found.append({"name": name, "items": items, "generation": generation, "model": meta.model,
                              "dimension": meta.dimension})  # fmt: skip
            return found

        settings = self.settings
        return reply({"indexes": await self.in_thread(facts), "writable": settings.writable,
                      "urls": settings.allow_urls, "max_body": settings.max_body, "max_k": settings.max_k})  # fmt: skip

    async def ready(self) -> Response:
        if self.draining:
            raise Refused(503, "draining", "the service is about to stop")
        try:
            for served in self.indexes.values():
                await self.in_thread(functools.partial(_proves, served))
        except (SimsearchError, TimeoutError) as error:
            raise Refused(503, "not_ready", "a query does not work yet") from error
        return reply({"status": "ready"})

    async def prometheus(self) -> Response:
        def text() -> bytes:
            for name, served in self.indexes.items():
                with contextlib.suppress(SimsearchError):
                    items, generation = served.facts()
                    self.metrics.items.labels(name).set(items)
                    self.metrics.generation.labels(name).set(generation)
            return self.metrics.text()

        return Response(await self.in_thread(text), media_type="text/plain; version=0.0.4; charset=utf-8")

    def page(self) -> Response:
        return Response(_PAGE, media_type="text/html; charset=utf-8",
                        headers={"content-security-policy": _POLICY, "cache-control": "no-cache"})  # fmt: skip


def reply(value: Any, status: int = 200) -> Response:
    """JSON, ASCII only, since names may hold bytes that are no UTF-8; what JSON has no number for becomes null."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value))
    return Response(text, status, media_type="application/json", headers={"cache-control": "no-store"})


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


async def _body(request: Request, settings: Settings, write: bool = False) -> tuple[dict[str, Any], str]:
    """What is searched by, or to be added: checked values by name, and what to call the query. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            form = await request.form(max_files=1, max_fields=64, max_part_size=1 << 16)
        except (HTTPException, ValueError, UnicodeError) as error:
            raise Refused(400, "bad_form", f"the form cannot be read: {getattr(error, 'detail', error)}") from error
        try:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise Refused(422, "bad_argument", "the form has no file called image")
            data, name = await image.read(), (image.filename or "image")[:200]
            texts: dict[str, Any] = {}
            for field, value in form.multi_items():
                if field != "image":
                    if not isinstance(value, str):
                        raise Refused(422, "bad_argument", f"{field[:80]} is a file, not text")
                    texts.setdefault(field, []).append(value)
        finally:
            await form.close()
        given = reference.from_form(texts, write) | {"image": data}
    elif kind == "application/json" and not write:
        try:
            given = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise Refused(400, "bad_json", "the body is not JSON") from error
        name = ""
    else:
        wanted = "multipart/form-data" + ("" if write else " or application/json")
        raise Refused(415, "unsupported_media_type", f"the body must be {wanted}, not {kind[:80] or 'without a type'}")
    checked = reference.checked(given, settings, write)
    return checked, name or next((f"{n}:{checked[n]}" for n in ("id", "url") if n in checked), "vector")


def _kind(data: bytes) -> str | None:
    """The media type of an image's bytes, if it is one that browsers show."""
    from PIL import Image

    if not images.looks_like_image(data[:32]):
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _FORMATS.get(image.format or "")
    except Exception:  # hostile bytes make Pillow raise nearly anything
        return None


def _proves(served: ServedIndex) -> None:
    """Computes and answers one real query. Raises SimsearchError."""
    served.engine.features([np.zeros((64, 64, 3), np.uint8)])
    served.check()


def _guarded(path: str) -> bool:
    return path.startswith(("/v1/", "/metrics")) or path == "/v1"


def _answer(refused: Refused) -> Response:
    return Response(refused.body(), refused.status, refused.headers, "application/json")


async def _refused(request: Request, error: Refused) -> Response:
    return _answer(error)


async def _ours(request: Request, error: SimsearchError) -> Response:
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    message = str(error) if status not in {503} else {"index_locked": "another process is writing to the index"}.get(
        code, "the index cannot be used at the moment")  # fmt: skip
    return _answer(Refused(status, code, message, {"retry-after": "2"} if status == 503 else None))


async def _http(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return _answer(Refused(error.status_code, code, str(error.detail), dict(error.headers or {})))


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    return _answer(Refused(422, "bad_argument", f"{first['loc'][-1]}: {first['msg']}"))


def _policy(page: str) -> str:
    """The page's content-security policy: nothing runs or is loaded but what is in it and comes from here."""

    def digest(tag: str) -> str:
        inner = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; img-src 'self' blob: data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
_POLICY = _policy(_PAGE)
