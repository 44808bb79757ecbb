"""What a request brings: read from a multipart form or a JSON object, and checked."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from simsearch.reference import FEEDBACK, FIELDS, LARGEST_ID
from simsearch.server.middleware import Refused
from simsearch.settings import Settings

_TEXTS = FIELDS["filter"]["maxItems"] + 2 * FEEDBACK + len(FIELDS)
"""The most texts in a form: as many as make sense, each field that may not be repeated once."""


async def read(request: Request, settings: Settings, write: bool = False) -> tuple[dict[str, Any], str]:
    """What is searched by, or to be added: checked values by name, and what to call the query. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            form = await request.form(max_files=1, max_fields=_TEXTS, max_part_size=1 << 16)
        except (HTTPException, ValueError, UnicodeError) as error:
            raise Refused(400, "bad_form", f"the form cannot be read: {getattr(error, 'detail', error)}") from error
        try:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise Refused(422, "bad_argument", "the form has no file called image")
            data, name = await image.read(), (image.filename or "image")[:200]
            texts: dict[str, Any] = {}
            for field, value in form.multi_items():
                if field != "image":
                    if not isinstance(value, str):
                        raise Refused(422, "bad_argument", f"{field[:80]} is a file, not text")
                    texts.setdefault(field, []).append(value)
        finally:
            await form.close()
        given = _from_form(texts, write) | {"image": data}
    elif kind == "application/json" and not write:
        try:
            given = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise Refused(400, "bad_json", "the body is not JSON") from error
        name = ""
    else:
        wanted = "multipart/form-data" + ("" if write else " or application/json")
        raise Refused(415, "unsupported_media_type", f"the body must be {wanted}, not {kind[:80] or 'without a type'}")
    checked = _checked(given, settings, write)
    return checked, name or next((f"{n}:{checked[n]}" for n in ("id", "url") if n in checked), "vector")


def _from_form(texts: dict[str, list[str]], write: bool) -> dict[str, Any]:
    """The text fields of a form as the values that JSON would have. Raises Refused."""
    values: dict[str, Any] = {}
    for name, given in texts.items():
        if len(given) > 1 and name not in {"filter", "plus", "minus"}:
            raise _bad(name, "is given more than once")
        text = given[0]
        try:
            if name == "filter":
                values[name] = given
            elif name in {"plus", "minus"}:
                values[name] = [_integer(part) for part in given]
            elif name in {"k", "expand"}:
                values[name] = _integer(text)
            elif name == "max_distance":
                values[name] = float(text.replace("_", "x"))
            elif name == "crop":
                values[name] = [_integer(part) for part in text.strip("[]").split(",")]
            elif name == "metadata" and write:
                values[name] = json.loads(text)
            elif name in {"dedup", "exact", "flip"}:
                values[name] = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            else:
                values[name] = text
        except (ValueError, KeyError, RecursionError):
            raise _bad(name, "cannot be read") from None
    return values


def _integer(text: str) -> int:
    """A whole number in plain digits: Python's 1_000 and other scripts' digits are not JSON's. Raises ValueError."""
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return int(text)


def _checked(given: Any, settings: Settings, write: bool) -> dict[str, Any]:
    """Values of the right types within their bounds; no unknown name. Raises Refused."""
    if not isinstance(given, dict):
        raise Refused(422, "bad_argument", "the body must be a JSON object")
    ways = {"image", "id", "vector", "url"}
    known = {"image", "label", "metadata"} if write else ways | FIELDS.keys()
    for name in given:
        if name not in known:
            raise _bad(str(name)[:80], "is not known here")
    if len(ways & given.keys()) != 1:
        raise Refused(422, "bad_argument", "exactly one of image, id, vector and url is needed")
    if "image" in given and not isinstance(given["image"], bytes):
        raise _bad("image", "must be a file in a multipart form")
    if isinstance(given.get("filter"), str):
        given["filter"] = [given["filter"]]
    tests: dict[str, tuple[Any, str]] = {
        "k": (lambda v: _whole(v) and 1 <= v <= settings.max_k, f"must be a whole number from 1 to {settings.max_k}"),
        "id": (lambda v: _whole(v) and 0 <= v <= LARGEST_ID, "must be the whole number of an item"),
        "max_distance": (lambda v: _number(v) and v >= 0, "must be a number that is not negative"),
        "crop": (lambda v: isinstance(v, list) and len(v) == 4 and all(_whole(n) and 0 <= n < 2**31 for n in v),
                 "must be four whole numbers: x, y, width, height"),
        "filter": (lambda v: isinstance(v, list) and len(v) <= 32
                   and all(isinstance(s, str) and len(s) <= 1000 and "\0" not in s for s in v),
                   "must be a list of at most 32 conditions"),
        "plus": (_numbers_of_items, f"must be a list of at most {FEEDBACK} numbers of items"),
        "minus": (_numbers_of_items, f"must be a list of at most {FEEDBACK} numbers of items"),
        "vector": (lambda v: isinstance(v, list) and all(_number(n) and abs(n) < 1e30 for n in v),
                   "must be a list of numbers"),
        "url": (lambda v: isinstance(v, str) and len(v) <= 4000, "must be text"),
        "dedup": (lambda v: isinstance(v, bool), "must be true or false"),
        "exact": (lambda v: isinstance(v, bool), "must be true or false"),
        "flip": (lambda v: isinstance(v, bool), "must be true or false"),
        "expand": (lambda v: _whole(v) and 1 <= v <= FEEDBACK, f"must be a whole number from 1 to {FEEDBACK}"),
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


def _numbers_of_items(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= FEEDBACK and all(_whole(n) and 0 <= n <= LARGEST_ID for n in value)


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
