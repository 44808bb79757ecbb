"""The answers of the HTTP API as pydantic models, with an example of each for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from simsearch.server.map_answers import MAP_EXAMPLES
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
    distance: Annotated[
        NotNegative, Field(description="Euclidean distance of the item's features to those of the query.")
    ]
    image_url: Annotated[str, Field(description="URL of the image file, relative to the service's address.")]
    thumbnail_url: Annotated[
        str, Field(description="URL of a small JPEG of the image, relative to the service's address.")
    ]
    similarity: Annotated[
        NotNegative,
        Field(
            le=1,
            description="1 at distance 0, 0.5 at the usual distance between nearest neighbours, and 0 at or beyond the "
            "usual distance between random images.",
        ),
    ]


Notes = Annotated[
    list[str],
    Field(description="If nothing was found: a sentence about each condition that no item meets, with suggestions."),
]


class Answer(BaseModel):
    query: str
    model: str
    metric: Literal["euclidean"]
    exact: bool
    took_ms: NotNegative
    matches: list[Match]
    notes: Notes = []


class Items(BaseModel):
    items: list[Item]
    total: Annotated[Count, Field(description="How many items meet the conditions.")]
    next: Annotated[int | None, Field(description="The value of `after` for the next page; null on the last page.")]
    notes: Notes = []


class Value(BaseModel):
    value: str | float | bool
    items: Count


class FieldFacet(BaseModel):
    name: str
    items: Count
    least: Annotated[float | None, Field(description="The smallest value if all values are numbers, else null.")]
    most: Annotated[float | None, Field(description="The largest value if all values are numbers, else null.")]
    values: Annotated[list[Value], Field(description="The most frequent values.")]


class Facets(BaseModel):
    items: Count
    complete: Annotated[bool, Field(description="False if not all items of a large index were counted.")]
    labels: list[Value]
    folders: list[Value]
    fields: Annotated[list[FieldFacet], Field(description="The fields of the items' metadata.")]


class Duplicate(Item):
    distance: Annotated[NotNegative, Field(description="Distance to the first item of the group.")]
    keep: Annotated[bool, Field(description="True for the item to keep, chosen by the rule in the parameter `keep`.")]
    is_copy: Annotated[
        bool,
        Field(
            description="True for a copy of the group's first item. False for an item that is linked to the first item "
            "only through other items of the group; a clean-up does not move it."
        ),
    ]
    fixed: Annotated[str | None, Field(description="Why this service cannot move the item's file; null if it can.")]


class DuplicateGroup(BaseModel):
    group: Annotated[str, Field(description="The group's name, which changes with every change of the group.")]
    size: Annotated[int, Field(ge=2, description="The number of items of the group; at most 200 are listed.")]
    items: Annotated[list[Duplicate], Field(description="The items of the group; the item to keep comes first.")]


class DuplicateGroups(BaseModel):
    groups: list[DuplicateGroup]
    total: Annotated[Count, Field(description="How many groups there are.")]
    items: Annotated[Count, Field(description="How many items all groups have together.")]
    next: Annotated[str | None, Field(description="The value of `after` for the next page; null on the last page.")]
    max_distance: Annotated[
        NotNegative,
        Field(
            description="The largest distance between two linked items: the parameter `max_distance` or, without it, a "
            "measured limit. Pairs a little beyond a measured limit are also linked if their pixels agree."
        ),
    ]
    copies: Annotated[
        dict[str, float], Field(description="For each change, such as JPEG 50, the share of changed copies recognized.")
    ]
    complete: Annotated[bool, Field(description="False if not all pairs of a large index were compared.")]
    keep: str


class Progress(BaseModel):
    done: Annotated[Count, Field(description="Number of items or files handled so far.")]
    total: Annotated[Count, Field(description="Number of all items or files; 0 if not known yet.")]


class RunProgress(Progress):
    journal: str


class CleanedItem(BaseModel):
    id: Annotated[int, Field(ge=0, le=LARGEST_ID)]
    path: str | None
    action: Literal["keep", "leave", "move", "trash"]
    reason: Annotated[str | None, Field(description="Why the file is left where it is.")]
    target: Annotated[str | None, Field(description="The path that the file is moved to.")]


class CleanUp(BaseModel):
    dry_run: bool
    action: Literal["move", "trash"]
    files: Annotated[Count, Field(description="Files that were moved away, or that a dry run would move away.")]
    bytes: Count
    removed: Annotated[Count, Field(description="Items that were removed from the index.")]
    items: list[CleanedItem]
    journal: Annotated[str | None, Field(description="The clean-up's name for POST /v1/duplicates/restore.")]
    command: Annotated[
        str | None, Field(description="The shell command that undoes the clean-up, on the machine of the service.")
    ]


class PastCleanUp(BaseModel):
    journal: str
    at: str
    action: str
    files: Count
    away: Annotated[Count, Field(description="Files that are not back at their original paths.")]
    running: bool
    command: str


class CleanUps(BaseModel):
    action: Annotated[
        Literal["move", "trash"] | None, Field(description="What a clean-up does; null if this service moves no files.")
    ]
    clean_ups: Annotated[list[PastCleanUp], Field(description="The last 20 clean-ups, the newest first.")]


class Problem(BaseModel):
    path: str
    reason: str


class Undone(BaseModel):
    journal: str
    files: Annotated[Count, Field(description="Files that were put back.")]
    untouched: Annotated[Count, Field(description="Files that were at their original paths already.")]
    indexed: Annotated[Count, Field(description="Items that are in the index again; the next build adds the others.")]
    problems: list[Problem]


class Ignored(BaseModel):
    groups: list[str]
    ignored: bool


class Index(BaseModel):
    name: str
    items: Count
    generation: int
    model: str
    dimension: Count
    median_distance: Annotated[NotNegative, Field(description="Median distance between two random images.")]


class Listing(BaseModel):
    indexes: list[Index]
    writable: bool
    cleanup: Annotated[
        Literal["move", "trash"] | None, Field(description="What a clean-up does; null if this service moves no files.")
    ]
    move_to: Annotated[str | None, Field(description="The folder that duplicates are moved to.")]
    urls: bool
    max_body: Count
    max_k: Count


class Health(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    status: Literal["ready"]


class ErrorDetails(BaseModel):
    code: Annotated[str, Field(description="One word that names the error, for programs.")]
    message: Annotated[str, Field(description="One sentence about the error, for people.")]


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
_GROUP = "9f86d081884c7d659a2feaa0c55ad015"
_JOURNAL = "simsearch-cleanup-20260102-030405-1a2b3c4d.jsonl"
_COMMAND = f"simsearch restore /indexes/photos.journals/{_JOURNAL}"
_DUPLICATE = {**_DETAILS, "distance": 0.0, "keep": True, "is_copy": True, "fixed": None}
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
    DuplicateGroups: {
        "groups": [
            {
                "group": _GROUP,
                "size": 2,
                "items": [_DUPLICATE, {**_DUPLICATE, "id": 31, "distance": 2.5, "keep": False}],
            }
        ],
        "total": 1,
        "items": 2,
        "next": None,
        "max_distance": 6.8,
        "copies": {"JPEG 50": 0.94},
        "complete": True,
        "keep": "largest",
    },
    Progress: {"done": 5120, "total": 40000},
    **MAP_EXAMPLES,
    RunProgress: {"done": 12, "total": 400, "journal": _JOURNAL},
    CleanUp: {
        "dry_run": False,
        "action": "move",
        "files": 1,
        "bytes": 81234,
        "removed": 1,
        "items": [
            {"id": 7, "path": "/photos/cat/1.jpg", "action": "keep", "reason": None, "target": None},
            {
                "id": 31,
                "path": "/photos/cat/2.jpg",
                "action": "move",
                "reason": None,
                "target": "/duplicates/cat/2.jpg",
            },
        ],
        "journal": _JOURNAL,
        "command": _COMMAND,
    },
    CleanUps: {
        "action": "move",
        "clean_ups": [
            {
                "journal": _JOURNAL,
                "at": "2026-01-02T03:04:05+00:00",
                "action": "move",
                "files": 1,
                "away": 1,
                "running": False,
                "command": _COMMAND,
            }
        ],
    },
    Undone: {"journal": _JOURNAL, "files": 1, "untouched": 0, "indexed": 1, "problems": []},
    Ignored: {"groups": [_GROUP], "ignored": True},
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
        "cleanup": None,
        "move_to": None,
        "urls": False,
        "max_body": 33554432,
        "max_k": 1000,
    },
    Health: {"status": "ok"},
    Ready: {"status": "ready"},
    Error: {"error": {"code": "bad_argument", "message": "k must be a whole number from 1 to 1000"}},
}
