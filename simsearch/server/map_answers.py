"""The answers about maps as pydantic models, with an example of each; see `simsearch.server.answers`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

Count = Annotated[int, Field(ge=0)]


class MapField(BaseModel):
    name: Annotated[str, Field(description="`cluster`, `label`, or the name of a metadata field.")]
    kind: Literal["category", "number"]
    names: Annotated[list[str], Field(description="If `kind` is category: the categories, most frequent first.")] = []
    codes: Annotated[
        list[int | None],
        Field(description="For each item, the position of its category in `names`; null for no category."),
    ] = []
    values: Annotated[
        list[float | None], Field(description="If `kind` is number: the value of each item; null for no value.")
    ] = []
    notes: Annotated[list[str], Field(description="For each cluster, where its name comes from.")] = []


class Map(BaseModel):
    items: Annotated[
        Count,
        Field(
            description="Number of items on the map that have not been removed or changed since it was drawn. `ids`, "
            "`x`, `y` and `paths` have one entry for each."
        ),
    ]
    added: Annotated[Count, Field(description="Items that were added or changed since the map was drawn.")]
    removed: Annotated[Count, Field(description="Items that were removed or changed since the map was drawn.")]
    redraws: Annotated[bool, Field(description="True if this service can draw the map again.")]
    facts: Annotated[dict[str, str], Field(description="How the map was made, as texts to display.")]
    ids: Annotated[list[int], Field(description="The ids of the items, ascending.")]
    x: list[float]
    y: list[float]
    folder: Annotated[str, Field(description="The beginning that the paths of all items share.")]
    paths: Annotated[list[str], Field(description="The path of each item, without the beginning in `folder`.")]
    fields: Annotated[list[MapField], Field(description="The fields to colour the map by; the clusters come first.")]
    representatives: Annotated[
        list[int],
        Field(description="Positions of items in `ids`, ordered so that the first n cover the map evenly, for any n."),
    ]


class MapProgress(BaseModel):
    step: Literal["neighbours", "layout", "names"]
    done: Count
    total: Annotated[Count, Field(description="The value of `done` at the end of the step; 0 if not known yet.")]


MAP_EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    Map: {
        "items": 2,
        "added": 0,
        "removed": 1,
        "redraws": True,
        "facts": {"pictures": "3", "positions": "t-SNE of exact neighbours, seed 0", "names": "labels"},
        "ids": [7, 31],
        "x": [-12.5, 40.25],
        "y": [3.125, -7.75],
        "folder": "/photos/",
        "paths": ["cat/1.jpg", "dog/2.jpg"],
        "fields": [
            {
                "name": "cluster",
                "kind": "category",
                "names": ["cat", "dog"],
                "codes": [0, 1],
                "notes": ["90% of the labels", ""],
            },
            {"name": "year", "kind": "number", "values": [2012, None]},
        ],
        "representatives": [1, 0],
    },
    MapProgress: {"step": "layout", "done": 120, "total": 750},
}
