"""The routes of the HTTP API and their entries in the OpenAPI document."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

from simsearch.server import answers, map_answers, openapi, reference
from simsearch.server import page as server_page
from simsearch.server.browse import ListRequest, Sort
from simsearch.server.cleanup_schemas import CleanUpRequest, IgnoreRequest, Rule, UndoRequest
from simsearch.server.duplicates import Duplicates, GroupsRequest
from simsearch.server.errors import reply
from simsearch.server.items import Items
from simsearch.server.maps import Maps
from simsearch.server.middleware import ApiError
from simsearch.server.openapi import binary, errors, ok, responses
from simsearch.server.schemas import LARGEST_ID, MOST_CONDITION
from simsearch.server.searches import Searches
from simsearch.server.service import SearchService
from simsearch.server.settings import Settings
from simsearch.server.status import Status


def _whole(value: Any) -> Any:
    """Returns a parameter's value unchanged. Raises PydanticKnownError for 1_0, 1.0 and +1, which pydantic accepts."""
    if isinstance(value, str) and not re.fullmatch("-?[0-9]{1,19}", value):
        raise PydanticKnownError("int_parsing")
    return value


PAGE, PAGING = 60, ("limit", "after", "label", "folder", "filter", "sort")
"""The number of items on a page if `limit` is not given, and the query parameters that ask for a page."""

Whole = BeforeValidator(_whole)
Number = Annotated[int, PathParameter(alias="id", ge=0, le=LARGEST_ID, description="The item's id.", examples=[1])]
Index = Annotated[str | None, Query(alias="index", description="Name of the index, if there are several.")]
Count = Annotated[int, Whole, Query(ge=1, le=100, description="Number of items, spread evenly over the index.")]
Numbers = Annotated[
    list[Annotated[int, Whole, Field(ge=0, le=LARGEST_ID)]] | None,
    Query(alias="id", max_length=200, description="Only the items with these ids; unknown ids are left out."),
]
Limit = Annotated[int | None, Whole, Query(ge=1, le=200, description="Number of items on a page.")]
After = Annotated[
    int | None, Whole, Query(ge=0, le=LARGEST_ID, description="The value of `next` on the previous page.")
]
Label = Annotated[str | None, Query(max_length=MOST_CONDITION, description="Only items with this label.")]
Folder = Annotated[str | None, Query(max_length=MOST_CONDITION, description="Only items in or below this folder.")]
Filters = Annotated[
    list[Annotated[str, Field(max_length=MOST_CONDITION)]] | None,
    Query(alias="filter", max_length=32, description="Only items that meet all conditions, such as `year>2000`."),
]
Order = Annotated[Sort, Query(description="The order of the items: by the date of the file, or by id.")]
Size = Annotated[int, Whole, Query(ge=32, le=1024, description="Longer side in pixels.")]

GroupLimit = Annotated[int, Whole, Query(ge=1, le=100, description="Number of groups on a page.")]
AfterGroup = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,18}\.[0-9]{1,18}$", description="The value of `next` on the previous page.")
]
Distance = Annotated[
    float | None,
    Query(
        ge=0,
        allow_inf_nan=False,
        description="Largest distance between linked items; by default measured with changed copies of indexed images.",
    ),
]
Keep = Annotated[Rule, Query(description="The rule that chooses which picture of a group to keep.")]
Again = Annotated[bool, Query(description="Draw another map if the index has changed since the last one was drawn.")]


def install(app: FastAPI, service: SearchService) -> None:
    """Adds all routes to the app."""
    _service_routes(app, Status(service))
    _search(app, Searches(service), service)
    _items(app, Items(service), service.settings.writable)
    _map(app, Maps(service))
    _duplicates(app, Duplicates(service), service.settings)
    app.openapi_schema = openapi.named(app.openapi())
    if service.settings.api_keys:
        app.openapi_schema = openapi.with_keys(app.openapi())


def _service_routes(app: FastAPI, status: Status) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return server_page.page()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return reference.docs(app.openapi())

    @app.get("/docs/plain", include_in_schema=False)
    async def plain_docs() -> Response:
        return reference.plain(app.openapi())

    @app.get("/docs/{name}", include_in_schema=False)
    async def docs_file(name: str) -> Response:
        return reference.file(name)

    @app.get("/health", summary="Health of the process", responses=responses(answers.Health, 400))
    async def health() -> Response:
        return reply({"status": "ok"})

    @app.get("/ready", summary="Readiness: a search works in each index", responses=responses(answers.Ready, 400, 503))
    async def ready() -> Response:
        return await status.ready()

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={
            200: {"description": "Done.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **errors(400, 401, 503),
        },
    )
    async def metrics() -> Response:
        return await status.prometheus()

    @app.get("/v1/indexes", summary="The indexes served", responses=responses(answers.Listing, 400, 401, 503))
    async def indexes() -> Response:
        return await status.listing()


def _search(app: FastAPI, searches: Searches, service: SearchService) -> None:
    body = openapi.search_body(service.search_request, service.settings.allow_urls)

    @app.post(
        "/v1/search",
        summary="The items nearest to an image, an item or a vector",
        openapi_extra=body,
        responses=responses(answers.Answer, 400, 401, 404, 413, 415, 422, 429, 503),
    )
    async def search(request: Request, index: Index = None) -> Response:
        return await searches.search(request)


def _items(app: FastAPI, handlers: Items, write: bool) -> None:
    reading = errors(400, 401, 404, 422, 503)

    @app.get(
        "/v1/items",
        summary="A page of items (limit), the named ones (id), or some spread evenly over the index (count)",
        responses={**responses(answers.Items), **reading},
    )
    async def items(
        request: Request,
        count: Count = 12,
        numbers: Numbers = None,
        limit: Limit = None,
        after: After = None,
        label: Label = None,
        folder: Folder = None,
        filters: Filters = None,
        sort: Order = "newest",
        index: Index = None,
    ) -> Response:
        paging = [name for name in PAGING if name in request.query_params]
        if len(request.query_params.keys() & {"id", "count"}) + bool(paging) > 1:
            text = f"id, count and a page exclude each other; a page has {', '.join(PAGING)}"
            raise ApiError(422, "bad_argument", text)
        if numbers:
            return await handlers.some(request, numbers)
        if not paging:
            return await handlers.items(request, count)
        wanted = ListRequest(limit or PAGE, after, tuple(filters or ()), label, folder, sort)
        return await handlers.listed(request, wanted)

    @app.get(
        "/v1/facets",
        summary="The labels, folders and fields of the items, to choose conditions from",
        responses={**responses(answers.Facets), **reading},
    )
    async def facets(request: Request, index: Index = None) -> Response:
        return await handlers.facets(request)

    @app.get("/v1/items/{id:int}", summary="One item", responses={**responses(answers.Item), **reading})
    async def item(request: Request, number: Number, index: Index = None) -> Response:
        return await handlers.item(request, number)

    @app.get(
        "/v1/items/{id:int}/image",
        summary="An item's image file",
        response_class=Response,
        responses={**binary("image/*", "application/octet-stream"), **reading},
    )
    async def image(request: Request, number: Number, index: Index = None) -> Response:
        return await handlers.image(request, number)

    @app.get(
        "/v1/items/{id:int}/thumbnail",
        summary="A small JPEG of an item",
        response_class=Response,
        responses={**binary("image/jpeg"), 304: {"description": "Unchanged."}, **reading},
    )
    async def thumbnail(request: Request, number: Number, size: Size = 256, index: Index = None) -> Response:
        return await handlers.thumbnail(request, number, size)

    @app.post(
        "/v1/items",
        summary="Adds an image",
        include_in_schema=write,
        openapi_extra=openapi.add_body(),
        status_code=201,
        responses={
            **responses(answers.Item, 400, 401, 404, 413, 415, 422, 503),
            201: {**ok(answers.Item), "description": "Added; 200 if the index has it already."},
        },
    )
    async def add(request: Request, index: Index = None) -> Response:
        return await handlers.add(request)

    @app.delete(
        "/v1/items/{id:int}",
        summary="Removes an item",
        include_in_schema=write,
        status_code=204,
        responses={204: {"description": "Done."}, **reading},
    )
    async def remove(request: Request, number: Number, index: Index = None) -> Response:
        return await handlers.remove(request, number)


def _map(app: FastAPI, handlers: Maps) -> None:
    @app.get(
        "/v1/map",
        name="map",
        summary="The map of an index: where its items lie on a plane, and their clusters",
        responses={
            **responses(map_answers.Map, 400, 401, 404, 422, 429, 503),
            202: {**ok(map_answers.MapProgress), "description": "It is being drawn; ask again."},
            304: {"description": "Unchanged."},
        },
    )
    async def map_(request: Request, again: Again = False, index: Index = None) -> Response:
        return await handlers.map(request, again)


def _duplicates(app: FastAPI, handlers: Duplicates, settings: Settings) -> None:
    changing = errors(400, 401, 404, 409, 413, 415, 422, 503)
    running: dict[int | str, openapi.Schema] = {
        202: {**ok(answers.RunProgress), "description": "Under way; the list of clean-ups shows its end."}
    }

    @app.get(
        "/v1/duplicates",
        summary="A page of groups of near-identical items, the largest first",
        responses={
            **responses(answers.DuplicateGroups, 400, 401, 404, 422, 429, 503),
            202: {**ok(answers.Progress), "description": "They are being looked for; ask again."},
        },
    )
    async def duplicates(
        request: Request,
        limit: GroupLimit = 20,
        after: AfterGroup = None,
        max_distance: Distance = None,
        keep: Keep = "largest",
        index: Index = None,
    ) -> Response:
        return await handlers.listed(request, GroupsRequest(limit, after, max_distance, keep))

    @app.get(
        "/v1/duplicates/clean-up",
        summary="The last clean-ups",
        include_in_schema=settings.allow_cleanup,
        responses=responses(answers.CleanUps, 400, 401, 404, 422, 503),
    )
    async def clean_ups(request: Request, index: Index = None) -> Response:
        return await handlers.clean_ups(request)

    @app.post(
        "/v1/duplicates/clean-up",
        summary="Moves duplicates away, or says what would be done",
        include_in_schema=settings.allow_cleanup,
        openapi_extra=openapi.json_body(CleanUpRequest),
        responses={**responses(answers.CleanUp), **running, **errors(429), **changing},
    )
    async def clean_up(request: Request, index: Index = None) -> Response:
        return await handlers.clean_up(request)

    @app.post(
        "/v1/duplicates/restore",
        summary="Undoes a clean-up",
        include_in_schema=settings.allow_cleanup,
        openapi_extra=openapi.json_body(UndoRequest),
        responses={**responses(answers.Undone), **running, **errors(429), **changing},
    )
    async def restore(request: Request, index: Index = None) -> Response:
        return await handlers.restore(request)

    @app.post(
        "/v1/duplicates/ignore",
        summary="Marks groups as not duplicates, or lists them again",
        include_in_schema=settings.writable,
        openapi_extra=openapi.json_body(IgnoreRequest),
        responses={**responses(answers.Ignored), **changing},
    )
    async def ignore(request: Request, index: Index = None) -> Response:
        return await handlers.ignore(request)
