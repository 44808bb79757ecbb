"""What goes back over HTTP: JSON, and every error as `{"error": {"code", "message"}}` with its status."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from simsearch.errors import (
    ImageError,
    ImageTooLargeError,
    IndexDamagedError,
    IndexLockedError,
    IndexNotFoundError,
    IndexReplacedError,
    ItemNotFoundError,
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
"""The first kind that an error is of decides; a test fails where one is missing."""


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


def install(app: FastAPI) -> None:
    """Makes all errors that routes raise into answers."""
    for kind, handler in (
        (ApiError, _refused),
        (SimsearchError, _ours),
        (HTTPException, _http),
        (RequestValidationError, _invalid),
    ):
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]


def _answer(refused: ApiError) -> Response:
    return Response(refused.body(), refused.status, refused.headers, "application/json")


async def _refused(request: Request, error: ApiError) -> Response:
    return _answer(error)


async def _ours(request: Request, error: SimsearchError) -> Response:
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    message = str(error)
    if status == 503:  # of the service's own trouble, the log knows more than a stranger should
        locked = code == "index_locked"
        message = "another process is writing to the index" if locked else "the index cannot be used at the moment"
    return _answer(ApiError(status, code, message, {"retry-after": "2"} if status == 503 else None))


async def _http(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return _answer(ApiError(error.status_code, code, str(error.detail), dict(error.headers or {})))


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    return _answer(ApiError(422, "bad_argument", f"{first['loc'][-1]}: {first['msg']}"))
