"""The bodies of requests that clean up duplicates, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from simsearch.server.schemas import Body, ItemId

Rule = Literal["largest", "oldest", "newest", "shortest-path"]
"""The rules for the picture to keep in a group, with the names that `duplicates --keep` uses."""

MOST_GROUPS, MOST_ITEMS = 1000, 200
"""The most groups in a request, and the most items of a group in each of the lists `keep` and `go`."""

GroupName = Annotated[
    str, Field(pattern="^[0-9a-f]{32}$", description="The name of a group: `group` in the list of duplicates.")
]
_Items = Annotated[list[ItemId], Field(min_length=1, max_length=MOST_ITEMS)]
_Distance = Annotated[
    float | None,
    Field(ge=0, allow_inf_nan=False, description="The `max_distance` that the groups were listed with."),
]


class Choice(BaseModel):
    """For one group, the items to keep and the items to move away; its other items are left alone."""

    model_config = ConfigDict(strict=True, extra="forbid")

    group: GroupName
    keep: Annotated[_Items, Field(description="Ids of the items to keep.")]
    go: Annotated[_Items, Field(description="Ids of the items to move away.")]


class CleanUpRequest(Body):
    """The body of POST /v1/duplicates/clean-up: for each group, the items to keep and the items to move away."""

    must_be: ClassVar[dict[str, str]] = {
        "groups": f"must be a list of 1 to {MOST_GROUPS} objects with a group,"
        f" and 1 to {MOST_ITEMS} ids in keep and in go",
        "action": "must be move or trash",
        "max_distance": "must be a number that is not negative",
        "dry_run": "must be true or false",
    }

    groups: Annotated[list[Choice], Field(min_length=1, max_length=MOST_GROUPS)]
    action: Annotated[
        Literal["move", "trash"] | None,
        Field(description="The action the client expects. The request is refused if this service takes another one."),
    ] = None
    max_distance: _Distance = None
    dry_run: Annotated[bool, Field(description="False to move the files; True to only return the plan.")] = True

    @classmethod
    def _check_together(cls, given: dict[str, Any]) -> None:
        groups = given.get("groups")
        named = [each for each in groups if isinstance(each, dict)] if isinstance(groups, list) else []
        names = [each["group"] for each in named if isinstance(each.get("group"), str)]
        if len(set(names)) < len(names):
            raise PydanticCustomError("twice", "groups has the same group more than once")
        for each in named:
            keep, go = each.get("keep"), each.get("go")
            if not isinstance(keep, list) or not isinstance(go, list):
                continue
            items = [number for number in [*keep, *go] if isinstance(number, int)]
            if len(set(items)) < len(items):
                raise PydanticCustomError("twice", "groups has a group whose keep and go name an item twice")


class UndoRequest(Body):
    """The body of POST /v1/duplicates/restore: the clean-up to undo."""

    must_be: ClassVar[dict[str, str]] = {"journal": "must be the journal of a clean-up"}

    journal: Annotated[
        str,
        Field(max_length=100, description="The clean-up's `journal`, as in the answer of GET /v1/duplicates/clean-up."),
    ]


class IgnoreRequest(Body):
    """The body of POST /v1/duplicates/ignore: groups to mark as not duplicates, or to list again."""

    must_be: ClassVar[dict[str, str]] = {
        "groups": f"must be a list of 1 to {MOST_GROUPS} groups",
        "ignored": "must be true or false",
        "max_distance": "must be a number that is not negative",
    }

    groups: Annotated[list[GroupName], Field(min_length=1, max_length=MOST_GROUPS)]
    ignored: Annotated[
        bool, Field(description="True to mark the groups as not duplicates, False to list them again.")
    ] = True
    max_distance: _Distance = None
