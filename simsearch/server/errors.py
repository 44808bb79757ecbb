"""Makes JSON responses; an error becomes `{"error": {"code", "message"}}` with the HTTP status for its class."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from simsearch.errors import (
    ImageError,
    ImageTooLargeError,
    IndexDamagedError,
    IndexLockedError,
    IndexNotFoundError,
    IndexReplacedError,
    ItemNotFoundError,
    MissingExtraError,
    SimsearchError,
    UsageError,
)
from simsearch.server.middleware import ApiError

_STATUS: tuple[tuple[type[SimsearchError], int, str], ...] = (
    (ItemNotFoundError, 404, "no_such_item"),
    (ImageTooLargeError, 413, "image_too_large"),
    (ImageError, 422, "bad_image"),
    (IndexLockedError, 503, "index_locked"),
    (IndexNotFoundError, 503, "index_missing"),
    (IndexReplacedError, 503, "index_replaced"),
    (IndexDamagedError, 503, "index_damaged"),
    (UsageError, 422, "bad_argument"),
    (SimsearchError, 503, "unavailable"),
)
"""HTTP status and code for each error class; the first class that matches is used. A test fails if one is missing."""


_DUE = {
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "literal_error": "one of {expected}",
    "string_too_long": "at most {max_length} characters long",
    "missing": "given",
}
"""For each type of pydantic error, the end of the text "PARAMETER must be ..."; the error's context fills {ge} etc."""


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a JSON response. Infinities and NaN become null.

    Characters outside ASCII are escaped, because file names that are not UTF-8 could not be encoded otherwise.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value))
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(text, status, media_type="application/json", headers=headers)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def install(app: FastAPI) -> None:
    """Adds handlers to the app that turn errors of the routes into responses."""
    for kind, handler in (
        (ApiError, _api_error),
        (SimsearchError, _simsearch_error),
        (HTTPException, _http_error),
        (RequestValidationError, _validation_error),
    ):
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]


def _respond(error: ApiError) -> Response:
    return Response(error.body(), error.status, error.headers, "application/json")


async def _api_error(request: Request, error: ApiError) -> Response:
    return _respond(error)


async def _simsearch_error(request: Request, error: SimsearchError) -> Response:
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    message = str(error)
    if code == "bad_argument" and error.hint and not isinstance(error, MissingExtraError):
        message = f"{message}; {error.hint}"
    if status == 503:  # a client must not learn paths from the service's own failures
        locked = code == "index_locked"
        message = "another process is writing to the index" if locked else "the index cannot be used at the moment"
    return _respond(ApiError(status, code, message, {"retry-after": "2"} if status == 503 else None))


async def _http_error(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    message = str(error.detail)
    if error.status_code == 405:
        headers["allow"] = ", ".join(_methods(request))
        message = f"{request.method[:20]} is not possible at {request.url.path[:80]}; possible: {headers['allow']}"
    if error.status_code == 404:
        root = request.scope.get("root_path", "")
        message = f"there is nothing at {request.url.path[:80]}; {root}/docs lists the addresses"
    return _respond(ApiError(error.status_code, code, message, headers))


def _methods(request: Request) -> list[str]:
    """Returns the HTTP methods that the request's path allows, for the error if a request uses another method.

    Starlette's own error lists only the methods of the first route at this path.
    """
    found: set[str] = set()
    for route in request.app.routes:
        offered = getattr(route, "methods", None) or set()
        # A route that changes the index is hidden if the service may not change it.
        hidden = not getattr(route, "include_in_schema", True) and "GET" not in offered
        if not hidden and route.matches(request.scope)[0] is not Match.NONE:
            found |= offered
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    due = _DUE.get(first["type"])
    rest = " must be " + due.format(**first.get("ctx", {})) if due else f": {first['msg']}"
    return _respond(ApiError(422, "bad_argument", f"{first['loc'][-1]}{rest}"))


def draining() -> ApiError:
    """Returns the error for a request that cannot be answered because the service stops."""
    return ApiError(503, "draining", "the service is about to stop")
