"""The HTTP contract: routes, the checks of what they are given, and how OpenAPI describes both."""

from __future__ import annotations

import html
import json
import math
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, Response

import simsearch
from simsearch.gate import Refused
from simsearch.settings import Settings

if TYPE_CHECKING:
    from simsearch.server import Service

VERSION = simsearch.__version__
ABOUT = "Finds the indexed images most like an image. Distances are Euclidean and do not decrease."
LARGEST_ID = 2**63 - 1

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["code", "message"],
    "properties": {"code": {"type": "string"}, "message": {"type": "string"}}}}}  # fmt: skip
_REASONS = {400: "The request cannot be read.", 401: "The API key is missing or wrong.", 404: "There is no such thing.",
            413: "The body or the image is too large.", 415: "The body is of another type.",
            422: "A value cannot be used.", 429: "Too many searches at once.", 503: "Not now."}  # fmt: skip
_ITEM = {"id": {"type": "integer"}, "path": {"type": "string"}, "label": {"type": ["string", "null"]},
         "metadata": {"type": "object"}}  # fmt: skip
_MATCH = {"type": "object", "required": ["rank", "id", "path", "label", "distance", "similarity", "metadata"],
          "properties": {"rank": {"type": "integer"}, **_ITEM, "distance": {"type": "number", "minimum": 0},
                         "similarity": {"type": "number", "minimum": 0, "maximum": 1}}}  # fmt: skip
_ANSWER = {"type": "object", "required": ["query", "model", "metric", "exact", "took_ms", "matches"],
           "properties": {"query": {"type": "string"}, "model": {"type": "string"}, "metric": {"const": "euclidean"},
                          "exact": {"type": "boolean"}, "took_ms": {"type": "number"},
                          "matches": {"type": "array", "items": _MATCH}}}  # fmt: skip
_EXAMPLE = {"query": "cat.jpg", "model": "alexnet", "metric": "euclidean", "exact": True, "took_ms": 12.5, "matches": [
    {"rank": 1, "id": 7, "path": "/photos/cat/1.jpg", "label": "cat", "distance": 9.1, "similarity": 0.998,
     "metadata": {}}]}  # fmt: skip
_FIELDS: dict[str, dict[str, Any]] = {
    "k": {"type": "integer", "minimum": 1, "default": 6, "description": "Matches wanted."},
    "filter": {"type": "array", "items": {"type": "string"}, "description": "Conditions as on the command line.",
               "examples": [["label=cat"]]},
    "crop": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 4, "maxItems": 4,
             "description": "x, y, width, height of the upright image, in pixels."},
    "max_distance": {"type": "number", "minimum": 0, "description": "Only matches at most this far."},
    "dedup": {"type": "boolean", "description": "One match for each group of near-identical ones."},
    "exact": {"type": "boolean", "description": "Do not search approximately."},
}  # fmt: skip


Number = Annotated[int, PathParameter(alias="id", ge=0, le=LARGEST_ID, description="An item.")]
Index = Annotated[str | None, Query(alias="index", description="Which index, where there are several.")]
Size = Annotated[int, Query(ge=32, le=1024, description="Pixels of the longer side.")]


def from_form(texts: dict[str, list[str]], write: bool) -> dict[str, Any]:
    """The text fields of a form as the values that JSON would have. Raises Refused."""
    values: dict[str, Any] = {}
    for name, given in texts.items():
        if name == "filter":
            values[name] = given
            continue
        if len(given) > 1:
            raise _bad(name, "is given more than once")
        text = given[0]
        try:
            if name == "k":
                values[name] = int(text)
            elif name == "max_distance":
                values[name] = float(text)
            elif name == "crop":
                values[name] = [int(part) for part in text.strip("[]").split(",")]
            elif name == "metadata" and write:
                values[name] = json.loads(text)
            elif name in {"dedup", "exact"}:
                values[name] = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            else:
                values[name] = text
        except (ValueError, KeyError, RecursionError):
            raise _bad(name, "cannot be read") from None
    return values


def checked(given: Any, settings: Settings, write: bool) -> dict[str, Any]:
    """Values of the right types within their bounds; no unknown name. Raises Refused."""
    if not isinstance(given, dict):
        raise Refused(422, "bad_argument", "the body must be a JSON object")
    ways = {"image", "id", "vector", "url"}
    known = {"image", "label", "metadata"} if write else ways | _FIELDS.keys()
    for name in given:
        if name not in known:
            raise _bad(str(name)[:80], "is not known here")
    if len(ways & given.keys()) != 1:
        raise Refused(422, "bad_argument", "exactly one of image, id, vector and url is needed")
    if "image" in given and not isinstance(given["image"], bytes):
        raise _bad("image", "must be a file in a multipart form")
    tests: dict[str, tuple[Any, str]] = {
        "k": (lambda v: _whole(v) and 1 <= v <= settings.max_k, f"must be a whole number from 1 to {settings.max_k}"),
        "id": (lambda v: _whole(v) and 0 <= v <= LARGEST_ID, "must be the whole number of an item"),
        "max_distance": (lambda v: _number(v) and v >= 0, "must be a number that is not negative"),
        "crop": (lambda v: isinstance(v, list) and len(v) == 4 and all(_whole(n) and 0 <= n < 2**31 for n in v),
                 "must be four whole numbers: x, y, width, height"),
        "filter": (lambda v: isinstance(v, list) and len(v) <= 32
                   and all(isinstance(s, str) and len(s) <= 1000 and "\0" not in s for s in v),
                   "must be a list of at most 32 conditions"),
        "vector": (lambda v: isinstance(v, list) and all(_number(n) and abs(n) < 1e30 for n in v),
                   "must be a list of numbers"),
        "url": (lambda v: isinstance(v, str) and len(v) <= 4000, "must be text"),
        "dedup": (lambda v: isinstance(v, bool), "must be true or false"),
        "exact": (lambda v: isinstance(v, bool), "must be true or false"),
        "label": (lambda v: isinstance(v, str) and len(v) <= 200 and v.isprintable(), "must be a line of text"),
        "metadata": (lambda v: isinstance(v, dict) and all(_plain(n, x) for n, x in v.items()),
                     "must be an object of texts and numbers"),
    }  # fmt: skip
    for name, value in given.items():
        if name in tests and not tests[name][0](value):
            raise _bad(name, tests[name][1])
    if "url" in given and not settings.allow_urls:
        raise Refused(422, "urls_off", "this service fetches no URLs; `simsearch serve --allow-urls` would")
    if "crop" in given:
        given["crop"] = tuple(given["crop"])
    return dict(given)


def _bad(name: str, what: str) -> Refused:
    return Refused(422, "bad_argument", f"{name} {what}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _plain(name: str, value: Any) -> bool:
    return name not in {"path", "label"} and (isinstance(value, str | bool | None) or (
        _number(value) and abs(value) < 2**63))  # fmt: skip


def install(app: FastAPI, service: Service) -> None:
    """Adds all routes to the app."""
    write = service.settings.writable

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return service.page()

    @app.get("/health", summary="Whether the process answers", responses=_responses({"status": "ok"}))
    async def health() -> Response:
        return Response('{"status": "ok"}', media_type="application/json")

    @app.get("/ready", summary="Whether a real query works", responses=_responses({"status": "ready"}, 503))
    async def ready() -> Response:
        return await service.ready()

    @app.get("/metrics", summary="Figures for Prometheus",
             responses={200: {"content": {"text/plain": {}}}, **_errors(401)})  # fmt: skip
    async def metrics() -> Response:
        return await service.prometheus()

    @app.get("/v1/indexes", summary="The indexes served", responses=_responses({"indexes": []}, 401, 503))
    async def indexes() -> Response:
        return await service.listing()

    body = _search_body(service.settings)
    codes = (400, 401, 404, 413, 415, 422, 429, 503)

    @app.post("/v1/search", summary="The items nearest to an image, an item or a vector", openapi_extra=body,
              responses={200: _ok(_ANSWER, _EXAMPLE), **_errors(*codes)})  # fmt: skip
    async def search(request: Request, index: Index = None) -> Response:
        return await service.search(request)

    item = {"type": "object", "required": ["id", "path", "label", "metadata"], "properties": _ITEM}

    @app.get("/v1/items/{id}", summary="One item", responses={200: _ok(item, None), **_errors(401, 404, 422, 503)})
    async def one(request: Request, number: Number, index: Index = None) -> Response:
        return await service.item(request, number)

    picture = {200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}

    @app.get("/v1/items/{id}/image", summary="An item's image file", responses={
        200: {"content": {"image/*": {}, "application/octet-stream": {}}}, **_errors(401, 404, 422, 503)})  # fmt: skip
    async def image(request: Request, number: Number, index: Index = None) -> Response:
        return await service.image(request, number)

    @app.get("/v1/items/{id}/thumbnail", summary="A small JPEG of an item", responses={
        200: {"content": {"image/jpeg": picture[200]["content"]["image/*"]}}, 304: {"description": "Unchanged."},
        **_errors(401, 404, 422, 503)})  # fmt: skip
    async def thumbnail(request: Request, number: Number, size: Size = 256, index: Index = None) -> Response:
        return await service.thumbnail(request, number, size)

    @app.post("/v1/items", summary="Adds an image", include_in_schema=write, openapi_extra=_add_body(),
              responses={201: _ok(item, None), **_errors(*codes)})  # fmt: skip
    async def add(request: Request, index: Index = None) -> Response:
        return await service.add(request)

    @app.delete("/v1/items/{id}", summary="Takes an item out", include_in_schema=write, status_code=204,
                responses=_errors(401, 404, 422, 503))  # fmt: skip
    async def remove(request: Request, number: Number, index: Index = None) -> Response:
        return await service.remove(request, number)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_docs(app.openapi()))


def _ok(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"description": "Done.", "content": {"application/json": content}}


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    example = {"error": {"code": "bad_argument", "message": "k must be a whole number from 1 to 1000"}}
    return {c: {**_ok(_ERROR, example), "description": _REASONS[c]} for c in codes}


def _responses(example: dict[str, Any], *codes: int) -> dict[int | str, dict[str, Any]]:
    return {200: _ok({"type": "object", "required": list(example)}, example), **_errors(*codes)}


def _search_body(settings: Settings) -> dict[str, Any]:
    fields = {**_FIELDS, "k": {**_FIELDS["k"], "maximum": settings.max_k}}
    ways: dict[str, Any] = {
        "id": {"type": "integer", "minimum": 0, "description": "An item, itself left out."},
        "vector": {"type": "array", "items": {"type": "number"}, "description": "Features."},
    }
    if settings.allow_urls:
        ways["url"] = {"type": "string", "format": "uri"}
    as_form = {**fields, "crop": {"type": "string", "description": "x,y,width,height", "examples": ["10,10,80,60"]}}
    closed = {"type": "object", "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {
        "application/json": {"schema": {**closed, "properties": {**ways, **fields},
                                        "oneOf": [{"required": [way]} for way in ways]},
                             "example": {"id": 1, "k": 6, "filter": ["label=cat"]}},
        "multipart/form-data": {"schema": {**closed, "required": ["image"], "properties": {
            "image": {"type": "string", "format": "binary"}, **as_form}}}}}}  # fmt: skip


def _add_body() -> dict[str, Any]:
    properties = {"image": {"type": "string", "format": "binary"}, "label": {"type": "string", "maxLength": 200},
                  "metadata": {"type": "string", "description": "A JSON object."}}  # fmt: skip
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": properties,
                        "additionalProperties": False,
                    }
                }
            },
        }
    }


def _docs(document: dict[str, Any]) -> str:
    """The OpenAPI document as a page that asks for nothing else."""
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            codes = ", ".join(operation.get("responses", {}))
            shown = html.escape(json.dumps(operation.get("requestBody", {}), indent=1))
            body = f"<pre>{shown}</pre>" if "requestBody" in operation else ""
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                         f"<p>{html.escape(operation.get('summary', ''))}. Answers {codes}.</p>{body}")  # fmt: skip
    return ('<!doctype html><html lang="en"><meta charset="utf-8"><title>simsearch: HTTP</title>'
            f'<h1>simsearch {VERSION}</h1><p>{html.escape(ABOUT)} <a href="openapi.json">openapi.json</a></p>'
            + "".join(parts) + "</html>")  # fmt: skip
