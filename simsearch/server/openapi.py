"""Makes the OpenAPI document from the pydantic models of requests (`schemas`) and answers (`answers`)."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from simsearch.images.boxes import PERCENT
from simsearch.installation import __version__
from simsearch.search.options import OPTIONS
from simsearch.server.answers import EXAMPLES, Error
from simsearch.server.schemas import AddRequest, SearchRequest

VERSION = __version__
ABOUT = "Finds the indexed images most like an image. Distances are Euclidean; the nearest images come first."

TAGS = [
    {"name": "search", "description": "Searches by an image, an item or a vector."},
    {"name": "items", "description": "The indexed images."},
    {"name": "duplicates", "description": "Groups of near-identical images, and cleaning them up."},
    {"name": "map", "description": "The items on a plane, similar ones side by side."},
    {"name": "service", "description": "The indexes that are served, and the state of the service."},
]

Schema = dict[str, Any]

_REASONS = {
    400: "The request cannot be read, or comes from another site.",
    401: "The API key is missing or wrong.",
    404: "Something that the request names does not exist.",
    409: "The groups have changed since they were listed.",
    413: "The body or the image is too large.",
    415: "The body has the wrong media type.",
    422: "A value is not valid.",
    429: "Too many requests at once.",
    503: "The service cannot answer now.",
}


def schema_of(model: type[BaseModel]) -> Schema:
    """Returns the JSON schema of a model, with its example.

    References are replaced by the schemas that they name; pydantic's titles and empty defaults are left out.
    """
    whole = model.model_json_schema()
    definitions = whole.pop("$defs", {})

    def without_references(value: Any) -> Any:
        if isinstance(value, list):
            return [without_references(each) for each in value]
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("$ref"), str):
            rest = {key: each for key, each in value.items() if key != "$ref"}
            value = {**definitions[value["$ref"].rpartition("/")[2]], **rest}
        return {key: without_references(each) for key, each in value.items()}

    whole = without_references(whole)
    schema: Schema = _plain({key: value for key, value in whole.items() if key != "description"})
    return {**schema, "examples": [EXAMPLES[model]]} if model in EXAMPLES else schema


def named(document: Schema) -> Schema:
    """Adds names for schemas (for client generators) and tags for operations to the document, and returns it."""
    names = {_key(schema_of(model)): model.__name__ for model in EXAMPLES}
    schemas: dict[str, Schema] = {}
    for model in EXAMPLES:
        schemas |= _definitions(model)

    def name_for(schema: Schema, name: str) -> Schema:
        if ways := _alternatives(schema):
            return {
                "oneOf": [name_for(each, name.replace("Request", f"By{way.title()}")) for way, each in ways.items()]
            }
        schemas.setdefault(name, schema)
        return {"$ref": f"#/components/schemas/{name}"}

    for path, operations in document["paths"].items():
        tag = next((tag["name"] for tag in TAGS if path.startswith(f"/v1/{tag['name']}")), "service")
        tag = "items" if path == "/v1/facets" else tag
        for operation in operations.values():
            operation["tags"] = [tag]
            title = operation["operationId"].title().replace("_", "")
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                suffix = "Form" if kind == "multipart/form-data" else "Request"
                content["schema"] = name_for(content["schema"], title + suffix)
            for answer in operation["responses"].values():
                for content in answer.get("content", {}).values():
                    if name := names.get(_key(content.get("schema", {}))):
                        content["schema"] = {"$ref": f"#/components/schemas/{name}"}
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **schemas}
    return document


def _key(schema: Schema) -> str:
    """Returns a text for comparing schemas. A schema and FastAPI's version of the same schema have the same text.

    FastAPI turns some integers into floats, and leaves nulls out of examples. So all numbers are converted to floats,
    and the examples are left out.
    """
    fields = {name: value for name, value in schema.items() if name != "examples"}
    return json.dumps(json.loads(json.dumps(fields), parse_int=float), sort_keys=True)


def _alternatives(schema: Schema) -> dict[str, Schema]:
    """Splits a schema that requires exactly one of several fields: returns one schema for each of these fields.

    Returns {} for any other schema.
    """
    ways = [each["required"][0] for each in schema.get("oneOf", ())]
    common = {name: field for name, field in schema.get("properties", {}).items() if name not in ways}
    rest = {key: each for key, each in schema.items() if key != "oneOf"}
    return {way: {**rest, "properties": {way: schema["properties"][way], **common}, "required": [way]} for way in ways}


def _definitions(model: type[BaseModel]) -> dict[str, Schema]:
    """Returns a dict from names to schemas: of a model, and of the models that it refers to."""
    whole = model.model_json_schema(ref_template="#/components/schemas/{model}")
    found = {**whole.pop("$defs", {}), model.__name__: whole}
    examples = {each.__name__: [example] for each, example in EXAMPLES.items()}
    return {
        name: {
            **_plain({key: value for key, value in schema.items() if key != "description"}),
            **({"examples": examples[name]} if name in examples else {}),
        }
        for name, schema in found.items()
    }


def _plain(value: Any, named: bool = False) -> Any:
    """Returns a schema, or a part of one, without pydantic's titles and empty defaults.

    named: True if the keys of `value` are names of fields; a field called "title" is kept.
    """
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if named or not (k == "title" or (k == "default" and not v))}
    return {k: _plain(v, named=k == "properties" and not named) for k, v in kept.items()}


def ok(model: type[BaseModel]) -> Schema:
    """Returns the OpenAPI description of a successful JSON response."""
    return {"description": "Done.", "content": {"application/json": {"schema": schema_of(model)}}}


def errors(*codes: int) -> dict[int | str, Schema]:
    """Returns a dict from statuses to the OpenAPI descriptions of error responses."""
    return {code: {**ok(Error), "description": _REASONS[code]} for code in codes}


def responses(model: type[BaseModel], *codes: int) -> dict[int | str, Schema]:
    """Returns a dict from statuses to OpenAPI descriptions: of a successful JSON response, and of error responses."""
    return {200: ok(model), **errors(*codes)}


def binary(*kinds: str) -> dict[int | str, Schema]:
    """Returns the OpenAPI description of a successful response: a file of one of these media types."""
    schema = {"type": "string", "format": "binary"}
    return {200: {"description": "Done.", "content": {kind: {"schema": schema} for kind in kinds}}}


def search_body(model: type[SearchRequest], allow_urls: bool) -> Schema:
    """Returns the OpenAPI description of the body of POST /v1/search, as JSON and as a form.

    model: from `schemas.search_request`. allow_urls: False to leave the field `url` out.
    """
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
    """Returns the schemas that the fields have in a form, where a box is a text such as "10,10,80,60"."""
    boxes = {
        option.http_field: {
            "type": "string",
            "pattern": "^" + ",".join([f"([0-9]{{1,9}}|{PERCENT})"] * 4) + "$",
            "description": fields[option.http_field]["description"],
            "examples": ["10,10,80,60", "0,50%,50%,50%"],
        }
        for option in OPTIONS
        if option.kind == "box"
    }
    return {**fields, **boxes}


def _body(content: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": content}}


def json_body(model: type[BaseModel]) -> Schema:
    """Returns the OpenAPI description of a JSON body."""
    return _body({"application/json": {"schema": schema_of(model)}})


def add_body() -> Schema:
    """Returns the OpenAPI description of the body of POST /v1/items."""
    return _body({"multipart/form-data": {"schema": schema_of(AddRequest)}})


def with_keys(document: Schema) -> Schema:
    """Marks, in the OpenAPI document, the paths that need an API key; returns the document."""
    document.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in document["paths"].items():
        if path.startswith("/v1/") or path == "/metrics":
            for operation in operations.values():
                operation["security"] = [{"bearer": []}, {"header": []}]
    return document
