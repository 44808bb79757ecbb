"""The HTTP contract as OpenAPI describes it; `bodies` checks by it, `routes` answers by it."""

from __future__ import annotations

from typing import Any

import simsearch
from simsearch.settings import Settings

VERSION = simsearch.__version__
ABOUT = "Finds the indexed images most like an image. Distances are Euclidean and do not decrease."
LARGEST_ID = 2**63 - 1
FEEDBACK = 64
"""The most items that a search may be told to be like, and as many to be unlike."""

Schema = dict[str, Any]


def _object(properties: Schema, example: Any = None) -> Schema:
    """An object that has all of these properties."""
    schema: Schema = {"type": "object", "required": list(properties), "properties": properties}
    return schema if example is None else {**schema, "examples": [example]}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {**_COUNT, "maximum": LARGEST_ID}
_ITEM: Schema = {
    "id": _NUMBER,
    "path": {**_TEXT, "description": "Opens as it is, where the index was made."},
    "label": {"type": ["string", "null"]},
    "metadata": {"type": "object"},
}
_MATCH: Schema = {
    "rank": {"type": "integer", "minimum": 1},
    **_ITEM,
    "distance": {"type": "number", "minimum": 0, "description": "Euclidean."},
    "similarity": {"type": "number", "minimum": 0, "maximum": 1,
                   "description": "The share of random pairs of images that are farther apart."},
}  # fmt: skip

HEALTH = _object({"status": {"const": "ok"}}, {"status": "ok"})
READY = _object({"status": {"const": "ready"}}, {"status": "ready"})
ITEM = _object(
    {**_ITEM, "width": _COUNT, "height": _COUNT, "bytes": _COUNT},
    {"id": 7, "path": "/photos/cat/1.jpg", "label": "cat", "metadata": {"year": 2012}, "width": 640, "height": 480,
     "bytes": 81234},
)  # fmt: skip
ITEMS = _object({"items": {"type": "array", "items": ITEM}}, {"items": ITEM["examples"]})
ANSWER = _object(
    {"query": _TEXT, "model": _TEXT, "metric": {"const": "euclidean"}, "exact": {"type": "boolean"},
     "took_ms": {"type": "number", "minimum": 0}, "matches": {"type": "array", "items": _object(_MATCH)}},
    {"query": "cat.jpg", "model": "alexnet", "metric": "euclidean", "exact": True, "took_ms": 12.5, "matches": [
        {"rank": 1, "id": 7, "path": "/photos/cat/1.jpg", "label": "cat", "distance": 9.1, "similarity": 0.998,
         "metadata": {}}]},
)  # fmt: skip
LISTING = _object(
    {"indexes": {"type": "array", "items": _object({
        "name": _TEXT, "items": _COUNT, "generation": {"type": "integer"}, "model": _TEXT, "dimension": _COUNT,
        "median_distance": {"type": "number", "minimum": 0, "description": "Of two random pictures."}})},
     "writable": {"type": "boolean"}, "urls": {"type": "boolean"}, "max_body": _COUNT, "max_k": _COUNT},
    {"indexes": [{"name": "photos", "items": 1200, "generation": 3, "model": "alexnet-distilled", "dimension": 4096,
                  "median_distance": 31.2}],
     "writable": False, "urls": False, "max_body": 33554432, "max_k": 1000},
)  # fmt: skip
ERROR = _object(
    {"error": _object({"code": {**_TEXT, "description": "For programs."},
                       "message": {**_TEXT, "description": "For people."}})},
    {"error": {"code": "bad_argument", "message": "k must be a whole number from 1 to 1000"}},
)  # fmt: skip
_REASONS = {400: "The request cannot be read, or comes from where it may not.", 401: "The API key is missing or wrong.",
            404: "There is no such thing.", 413: "The body or the image is too large.",
            415: "The body is of another type.", 422: "A value cannot be used.", 429: "Too many searches at once.",
            503: "Not now."}  # fmt: skip

FIELDS: dict[str, Schema] = {
    "k": {"type": "integer", "minimum": 1, "default": 6, "description": "Matches wanted."},
    "filter": {"type": ["array", "string"], "maxItems": 32, "maxLength": 1000,
               "items": {"type": "string", "maxLength": 1000},
               "description": "Conditions as on the command line; one may stand alone.", "examples": [["label=cat"]]},
    "plus": {"type": "array", "maxItems": FEEDBACK, "items": _NUMBER, "description": "Items to be like as well."},
    "minus": {"type": "array", "maxItems": FEEDBACK, "items": _NUMBER, "description": "Items to be unlike."},
    "crop": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
             "minItems": 4, "maxItems": 4, "description": "x, y, width, height of the upright image, in pixels."},
    "max_distance": {"type": "number", "minimum": 0, "description": "Only matches at most this far."},
    "dedup": {"type": "boolean", "description": "One match for each group of near-identical ones."},
    "exact": {"type": "boolean", "description": "Do not search approximately."},
    "flip": {"type": "boolean", "description": "A mirrored picture counts as the same."},
    "expand": {"type": "integer", "minimum": 1, "maximum": FEEDBACK,
               "description": "Search again by the mean of the query and so many of its first matches."},
}  # fmt: skip


def ok(schema: Schema) -> Schema:
    """A successful answer in JSON."""
    return {"description": "Done.", "content": {"application/json": {"schema": schema}}}


def errors(*codes: int) -> dict[int | str, Schema]:
    """The answers with these statuses."""
    return {code: {**ok(ERROR), "description": _REASONS[code]} for code in codes}


def responses(schema: Schema, *codes: int) -> dict[int | str, Schema]:
    """A successful answer in JSON, and errors."""
    return {200: ok(schema), **errors(*codes)}


def binary(*kinds: str) -> dict[int | str, Schema]:
    """A successful answer that is a file of one of these media types."""
    schema = {"type": "string", "format": "binary"}
    return {200: {"description": "Done.", "content": {kind: {"schema": schema} for kind in kinds}}}


def search_body(settings: Settings) -> Schema:
    """What POST /v1/search takes."""
    fields = {**FIELDS, "k": {**FIELDS["k"], "maximum": settings.max_k}}
    ways: Schema = {
        "id": {**_NUMBER, "description": "An item, itself left out."},
        "vector": {"type": "array", "items": {"type": "number"}, "description": "Features."},
    }
    if settings.allow_urls:
        ways["url"] = {"type": "string", "format": "uri", "maxLength": 4000}
    as_form = {**fields, "crop": {"type": "string", "pattern": r"^\d+,\d+,\d+,\d+$", "description": "x,y,width,height",
                                  "examples": ["10,10,80,60"]}}  # fmt: skip
    closed = {"type": "object", "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {
        "application/json": {"schema": {**closed, "properties": {**ways, **fields},
                                        "oneOf": [{"required": [way]} for way in ways]},
                             "example": {"id": 1, "k": 6, "filter": ["label=cat"]}},
        "multipart/form-data": {"schema": {**closed, "required": ["image"], "properties": {
            "image": {"type": "string", "format": "binary"}, **as_form}}}}}}  # fmt: skip


def add_body() -> Schema:
    """What POST /v1/items takes."""
    properties = {"image": {"type": "string", "format": "binary"}, "label": {"type": "string", "maxLength": 200},
                  "metadata": {"type": "string", "contentMediaType": "application/json",
                               "description": "An object of texts and numbers.",
                               "examples": ['{"year": 2012}']}}  # fmt: skip
    schema = {"type": "object", "required": ["image"], "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def with_keys(document: Schema) -> Schema:
    """The OpenAPI document of a service that asks for a key."""
    document.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in document["paths"].items():
        if path.startswith("/v1/") or path == "/metrics":
            for operation in operations.values():
                operation["security"] = [{"bearer": []}, {"header": []}]
    return document
