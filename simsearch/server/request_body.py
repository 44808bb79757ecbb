"""Reads the body of a request, a multipart form or a JSON object, into a model of `schemas`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from simsearch.common import outside_json
from simsearch.images import boxes
from simsearch.search.options import LISTS, OPTIONS
from simsearch.server.middleware import ApiError
from simsearch.server.schemas import AddRequest, Body, SearchRequest
from simsearch.server.settings import Settings

Model = TypeVar("Model", bound=Body)
Texts = dict[str, list[str]]

MOST_TEXTS = sum(option.most or 0 for option in OPTIONS if option.kind in LISTS) + len(OPTIONS)
"""The most text fields in a form: every list at its longest, and each other field once."""


SHOWN = 5
"""The most fields of a form that an error message names."""


async def read_search(request: Request, model: type[SearchRequest], settings: Settings) -> tuple[SearchRequest, str]:
    """Reads the body of a search; returns it, and a name for its query such as "cat.jpg" or "id:7". Raises ApiError."""
    kind = _media_type(request)
    if kind == "multipart/form-data":
        texts, data, name = await _read_form(request)
        values = {field: _option_value(field, given) for field, given in texts.items()}
        return model.read({**values, "image": data}), name
    if kind != "application/json":
        raise _unsupported("multipart/form-data or application/json", kind)
    body = model.read(await _json(request))
    if body.way == "url" and not settings.allow_urls:
        raise ApiError(422, "urls_off", "this service does not fetch URLs; `simsearch serve --allow-urls` does")
    return body, "vector" if body.way == "vector" else f"{body.way}:{getattr(body, body.way)}"


async def read_json(request: Request, model: type[Model]) -> Model:
    """Reads a JSON object. Raises ApiError if it is not valid, or if the media type of the body is not JSON.

    Other media types are refused because browsers let pages of any site send them to this service.
    """
    kind = _media_type(request)
    if kind != "application/json":
        raise _unsupported("application/json", kind)
    return model.read(await _json(request))


async def _json(request: Request) -> Any:
    try:
        return outside_json.parse(await request.body())
    except ValueError as error:
        reason = "" if isinstance(error, json.JSONDecodeError | UnicodeError) else f": {error}"
        raise ApiError(400, "bad_json", f"the body is not JSON{reason}") from error


async def read_upload(request: Request) -> AddRequest:
    """Reads a form with an image to add. Raises ApiError."""
    kind = _media_type(request)
    if kind != "multipart/form-data":
        raise _unsupported("multipart/form-data", kind)
    texts, data, _ = await _read_form(request)
    values: dict[str, Any] = {}
    for field, given in texts.items():
        text = _single(field, given)
        values[field] = _parsed(outside_json.parse, text) if field == "metadata" else text
    return AddRequest.read({**values, "image": data})


def _media_type(request: Request) -> str:
    """Returns the media type of the body, in lower case. Raises ApiError if the headers say that it is compressed."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise ApiError(415, "unsupported_media_type", "the body must not be compressed")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(wanted: str, kind: str) -> ApiError:
    message = f"the body must be {wanted}, not {kind[:80] or 'without a type'}"
    return ApiError(415, "unsupported_media_type", message)


async def _read_form(request: Request) -> tuple[Texts, bytes, str]:
    """Reads a form; returns the texts of each field, and the bytes and the file name of its image. Raises ApiError."""
    try:
        form = await request.form(max_files=1, max_fields=MOST_TEXTS, max_part_size=1 << 16)
    except (HTTPException, ValueError, UnicodeError) as error:
        raise ApiError(400, "bad_form", f"the form cannot be read: {getattr(error, 'detail', error)}") from error
    try:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise ApiError(422, "bad_argument", _no_image(form))
        data, name = await image.read(), (image.filename or "image")[:200]
        texts: Texts = {}
        for field, value in form.multi_items():
            if field != "image":
                if not isinstance(value, str):
                    raise ApiError(422, "bad_argument", f"{field[:80]} is a file, not text")
                texts.setdefault(field, []).append(value)
        return texts, data, name
    finally:
        await form.close()


def _no_image(form: FormData) -> str:
    """Returns the message about a form without an image; the message says what the form has instead."""
    if "image" in form:
        return "the field image is text, not a file; curl sends a file with -F image=@PATH"
    names = [name[:40].encode("utf-8", "replace").decode() for name in dict.fromkeys(form)]
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return "the form has no file called image" + (f", only {shown}" if names else "")


def _option_value(field: str, texts: list[str]) -> Any:
    """Returns the value of a form's field: for a search option, the value that a JSON request would have.

    For any other field, returns the text itself.

    texts: all texts given for the field. Raises ApiError for more than one text if the field takes one value.
    """
    kind = next((option.kind for option in OPTIONS if option.http_field == field), None)
    if kind == "conditions":
        return texts
    if kind == "images":
        return [_parsed(_integer, text) for text in texts]
    text = _single(field, texts)
    return text if kind is None else _parsed(_FROM_TEXT[kind], text)


def _single(field: str, texts: list[str]) -> str:
    if len(texts) > 1:
        raise ApiError(422, "bad_argument", f"{field[:80]} is given more than once")
    return texts[0]


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    """Returns `parse(text)`, or the text itself if it cannot be parsed; the schema then reports the error."""
    try:
        return parse(text)
    except (ValueError, KeyError, RecursionError):
        return text


def _integer(text: str) -> int:
    """Parses a whole number. Raises ValueError, also for 1_000 and digits of other scripts, which `int` accepts."""
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return int(text)


def _box(text: str) -> list[boxes.Length]:
    return list(boxes.read_box(text.strip("[]").replace('"', "")))


_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "integer": _integer,
    "number": lambda text: float(text.replace("_", "x")),
    "box": _box,
    "flag": lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
}
