"""The answers of the HTTP API as pydantic models, with an example of each for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from simsearch.server.schemas import LARGEST_ID

Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Item(BaseModel):
    id: Annotated[int, Field(ge=0, le=LARGEST_ID)]
    path: Annotated[str, Field(description="The path of the image file, on the machine that made the index.")]
    label: str | None
    metadata: dict[str, Any]


class Item(_Item):
    width: Count
    height: Count
    bytes: Count
    modified: Annotated[str | None, Field(description="When the file was last changed, in UTC, if it is known.")]


class Match(_Item):
    rank: Annotated[int, Field(ge=1)]
    distance: Annotated[NotNegative, Field(description="Euclidean.")]
    image_url: Annotated[str, Field(description="The image's file; relative to the service's address.")]
    thumbnail_url: Annotated[str, Field(description="A small JPEG of it; relative to the service's address.")]
    similarity: Annotated[
        NotNegative,
        Field(
            le=1,
            description="1 at distance 0, 0.5 at the usual distance to a nearest neighbour, 0 at that of random ones.",
        ),
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
    total: Annotated[Count, Field(description="How many items meet the conditions.")]
    next: Annotated[int | None, Field(description="Give it as `after` for the next page; null at the end.")]


class Value(BaseModel):
    value: str | float | bool
    items: Count


class FieldFacet(BaseModel):
    name: str
    items: Count
    least: Annotated[float | None, Field(description="If all values are numbers.")]
    most: float | None
    values: Annotated[list[Value], Field(description="The most frequent ones.")]


class Facets(BaseModel):
    items: Count
    complete: Annotated[bool, Field(description="False if not all items of a large index were counted.")]
    labels: list[Value]
    folders: list[Value]
    fields: Annotated[list[FieldFacet], Field(description="Of the metadata.")]


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
_DETAILS = {
    **_ITEM,
    "metadata": {"year": 2012},
    "width": 640,
    "height": 480,
    "bytes": 81234,
    "modified": "2012-12-03T18:30:00Z",
}
_URLS = {"image_url": "/v1/items/7/image", "thumbnail_url": "/v1/items/7/thumbnail"}
_MATCH = {"rank": 1, **_ITEM, **_URLS, "distance": 9.1, "similarity": 0.71, "metadata": {}}
EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    Item: _DETAILS,
    Items: {"items": [_DETAILS], "total": 240, "next": 7},
    Facets: {
        "items": 1200,
        "complete": True,
        "labels": [{"value": "cat", "items": 240}],
        "folders": [{"value": "2012/december", "items": 31}],
        "fields": [
            {"name": "year", "items": 1200, "least": 1999, "most": 2012, "values": [{"value": 2012, "items": 31}]}
        ],
    },
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
