"""The OpenAPI document: schemas of requests and responses, from pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from simsearch.search.options import OPTIONS
from simsearch.server.schemas import LARGEST_ID, AddRequest, SearchRequest
from simsearch.version import __version__

VERSION = __version__
ABOUT = "Finds the indexed images most like an image. Distances are Euclidean and do not decrease."

Schema = dict[str, Any]
Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Item(BaseModel):
    id: Annotated[int, Field(ge=0, le=LARGEST_ID)]
    path: Annotated[str, Field(description="Can be opened on the machine that made the index.")]
    label: str | None
    metadata: dict[str, Any]


class Item(_Item):
    width: Count
    height: Count
    bytes: Count


class Match(_Item):
    rank: Annotated[int, Field(ge=1)]
    distance: Annotated[NotNegative, Field(description="Euclidean.")]
    similarity: Annotated[
        NotNegative, Field(le=1, description="The share of random pairs of images that are farther apart.")
    ]


class Answer(BaseModel):
    query: str
    model: str
    metric: Literal["euclidean"]
    exact: bool
    took_ms: NotNegative
    matches: list[Match]


class Items(BaseModel):
    items: list[Item]


class Index(BaseModel):
    name: str
    items: Count
    generation: int
    model: str
    dimension: Count
    median_distance: Annotated[NotNegative, Field(description="Between two random images.")]


class Listing(BaseModel):
    indexes: list[Index]
    writable: bool
    urls: bool
    max_body: Count
    max_k: Count


class Health(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    status: Literal["ready"]


class ErrorDetails(BaseModel):
    code: Annotated[str, Field(description="For programs.")]
    message: Annotated[str, Field(description="For people.")]


class Error(BaseModel):
    error: ErrorDetails


_ITEM = {"id": 7, "path": "/photos/cat/1.jpg", "label": "cat"}
_DETAILS = {**_ITEM, "metadata": {"year": 2012}, "width": 640, "height": 480, "bytes": 81234}
_MATCH = {"rank": 1, **_ITEM, "distance": 9.1, "similarity": 0.998, "metadata": {}}
EXAMPLES: dict[type[BaseModel], Schema] = {
    Item: _DETAILS,
    Items: {"items": [_DETAILS]},
    Answer: {
        "query": "cat.jpg",
        "model": "alexnet",
        "metric": "euclidean",
        "exact": True,
        "took_ms": 12.5,
        "matches": [_MATCH],
    },
    Listing: {
        "indexes": [
            {
                "name": "photos",
                "items": 1200,
                "generation": 3,
                "model": "alexnet",
                "dimension": 4096,
                "median_distance": 31.2,
            }
        ],
        "writable": False,
        "urls": False,
        "max_body": 33554432,
        "max_k": 1000,
    },
    Health: {"status": "ok"},
    Ready: {"status": "ready"},
    Error: {"error": {"code": "bad_argument", "message": "k must be a whole number from 1 to 1000"}},
}
_REASONS = {
    400: "The request cannot be read, or comes from another site.",
    401: "The API key is missing or wrong.",
    404: "It does not exist.",
    413: "The body or the image is too large.",
    415: "The body has the wrong media type.",
    422: "A value is not valid.",
    429: "Too many searches at once.",
    503: "The service cannot answer now.",
}


def schema_of(model: type[BaseModel]) -> Schema:
    """Returns a model's JSON schema without references, without pydantic's titles and without empty defaults."""
    whole = model.model_json_schema()
    definitions = whole.pop("$defs", {})

    def plain(value: Any, named: bool = False) -> Any:
        """Simplifies a part of a schema. named: the keys of the dict are names of fields."""
        if isinstance(value, list):
            return [plain(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value and not named:
            value = {**definitions[value["$ref"].rpartition("/")[2]], **{k: v for k, v in value.items() if k != "$ref"}}
        kept = {k: v for k, v in value.items() if named or not (k == "title" or (k == "default" and not v))}
        return {k: plain(v, named=k == "properties" and not named) for k, v in kept.items()}

    schema: Schema = plain({key: value for key, value in whole.items() if key != "description"})
    return {**schema, "examples": [EXAMPLES[model]]} if model in EXAMPLES else schema


def ok(model: type[BaseModel]) -> Schema:
    """Returns a successful JSON response."""
    return {"description": "Done.", "content": {"application/json": {"schema": schema_of(model)}}}


def errors(*codes: int) -> dict[int | str, Schema]:
    """Returns error responses by status."""
    return {code: {**ok(Error), "description": _REASONS[code]} for code in codes}


def responses(model: type[BaseModel], *codes: int) -> dict[int | str, Schema]:
    """Returns a successful JSON response, and error responses."""
    return {200: ok(model), **errors(*codes)}


def binary(*kinds: str) -> dict[int | str, Schema]:
    """Returns a successful response with a file of one of these media types."""
    schema = {"type": "string", "format": "binary"}
    return {200: {"description": "Done.", "content": {kind: {"schema": schema} for kind in kinds}}}


def search_body(model: type[SearchRequest], allow_urls: bool) -> Schema:
    """Returns the body of POST /v1/search, as JSON or as a form. model: of `schemas.search_request`."""
    whole = schema_of(model)
    fields: Schema = whole["properties"]
    image = fields.pop("image")
    ways = {way: fields.pop(way) for way in SearchRequest.WAYS if way in fields}
    if not allow_urls:
        del ways["url"]
    as_json = {**whole, "properties": {**ways, **fields}, "oneOf": [{"required": [way]} for way in ways]}
    as_form = {**whole, "properties": {"image": image, **_form_fields(fields)}, "required": ["image"]}
    return _body(
        {
            "application/json": {"schema": as_json, "example": {"id": 1, "k": 6, "filter": ["label=cat"]}},
            "multipart/form-data": {"schema": as_form},
        }
    )


def _form_fields(fields: Schema) -> Schema:
    """Returns the fields as a form has them: boxes are texts."""
    boxes = {
        option.http_field: {
            "type": "string",
            "pattern": r"^\d+,\d+,\d+,\d+$",
            "description": fields[option.http_field]["description"],
            "examples": ["10,10,80,60"],
        }
        for option in OPTIONS
        if option.kind == "box"
    }
    return {**fields, **boxes}


def _body(content: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": content}}


def add_body() -> Schema:
    """Returns the body of POST /v1/items."""
    return _body({"multipart/form-data": {"schema": schema_of(AddRequest)}})


def with_keys(document: Schema) -> Schema:
    """Adds API keys to the OpenAPI document."""
    document.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in document["paths"].items():
        if path.startswith("/v1/") or path == "/metrics":
            for operation in operations.values():
                operation["security"] = [{"bearer": []}, {"header": []}]
    return document
