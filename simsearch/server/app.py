"""The HTTP service as an ASGI app: `simsearch.create_app`.

A request passes the middlewares (response headers, access log, authentication, body limit). Then a route from `routes`
calls a handler, which is in `searches`, `items`, `duplicates`, `maps` or `status`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Unpack

from simsearch.errors import MissingExtraError, UsageError

try:
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
    from fastapi import FastAPI
    from fastapi.middleware.cors import CORSMiddleware
except ImportError as error:
    raise MissingExtraError("the HTTP service", "serve") from error

from simsearch.engine import Engine
from simsearch.server import errors, openapi, routes
from simsearch.server.body_limit import BodyLimit
from simsearch.server.middleware import AccessLog, Authentication, ResponseHeaders
from simsearch.server.service import SearchService
from simsearch.server.settings import AppOptions, Settings


def create_app(engine: Engine | Mapping[str, Engine], **options: Unpack[AppOptions]) -> FastAPI:
    """Creates a FastAPI app that serves open indexes: an HTTP API for searches, and a web page at its root.

    The app can be served by itself or mounted: `app.mount("/similar", simsearch.create_app(engine))`.
    engine: an open index, or a dict from names to open indexes; the caller closes them.
    options: the fields of `settings.Settings`.
    Raises UsageError for an option that cannot be used, MissingExtraError if a package of the extra [serve] is missing.
    """
    engines = engine if isinstance(engine, Mapping) else {"default": engine}
    if not engines:
        raise UsageError("there is no index to serve")
    for each in engines.values():
        if not isinstance(each, Engine):
            raise UsageError(
                f"{each!r} is not an engine", hint="give an engine from simsearch.open, or a dict of engines"
            )
    settings = Settings.from_keywords(options)
    service = SearchService(dict(engines), settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="simsearch",
        version=openapi.VERSION,
        description=openapi.ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
    )
    app.state.service = service
    app.router.redirect_slashes = False
    routes.install(app, service)
    errors.install(app)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["*"],
            allow_headers=["authorization", "content-type", "x-api-key"],
        )
    # The middleware added last is the first that a request passes.
    app.add_middleware(BodyLimit, settings, service.received)
    app.add_middleware(Authentication, settings, _needs_key)
    app.add_middleware(AccessLog, service.metrics)
    app.add_middleware(ResponseHeaders, closing=lambda: service.draining)
    return app


def _needs_key(path: str) -> bool:
    """Returns True if a request for a path needs an API key. Not called if the settings have no API keys."""
    return path.startswith(("/v1/", "/metrics")) or path == "/v1"
