"""The bodies of requests as pydantic models, which validate them and describe them in the OpenAPI document.

The fields of a search are made from the table of search options, so a new option needs nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from simsearch.images import boxes
from simsearch.search import options
from simsearch.search.options import OPTIONS, SearchOption, SearchOptions
from simsearch.server.middleware import ApiError
from simsearch.server.settings import Settings

LARGEST_ID = 2**63 - 1
MOST_URL, MOST_CONDITION, MOST_LABEL = 4000, 1000, 200
"""The most characters of a URL, of a condition and of a label."""

ItemId = Annotated[int, Field(ge=0, le=LARGEST_ID)]
Component = Annotated[float, Field(gt=-1e30, lt=1e30, allow_inf_nan=False)]


def unknown(name: str, known: Sequence[str]) -> str:
    """Returns an error message for an unknown name, with the most similar known name or all known names."""
    shown = name[:80].encode("utf-8", "replace").decode()
    return f"{shown} is not known here; {options.hint(shown, known, http=True)}"


class Body(BaseModel):
    """The body of a request. Values are not converted: neither "1" nor true is a whole number.

    must_be: for each field, the end of the error message "FIELD must be ...", that is, without the field's name.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    must_be: ClassVar[dict[str, str]] = {}

    @classmethod
    def read(cls, given: Any) -> Self:
        """Returns the model for the values of a body. Raises ApiError if they are not valid."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["loc"]:
            message = f"{first['loc'][0]} {cls.must_be[str(first['loc'][0])]}"
        else:
            message = "the body must be a JSON object" if first["type"] == "model_type" else first["msg"]
        raise ApiError(422, "bad_argument", message)

    @model_validator(mode="before")
    @classmethod
    def _check(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name in given:  # only the first one: pydantic would collect an error for each
                if name not in cls.model_fields:
                    message = unknown(str(name), list(cls.model_fields)).replace("{", "{{").replace("}", "}}")
                    raise PydanticCustomError("unknown", cast(Any, message))
            cls._check_together(given)
        return given

    @classmethod
    def _check_together(cls, given: dict[str, Any]) -> None:
        """Checks fields that depend on each other; a subclass overrides this. Raises PydanticCustomError."""


class SearchRequest(Body):
    """The body of POST /v1/search: one of image, id, vector and url, and the options that `search_request` adds.

    image: the bytes of the file in a form. url: accepted only if the service fetches URLs.
    """

    WAYS: ClassVar[tuple[str, ...]] = ("image", "id", "vector", "url")
    must_be: ClassVar[dict[str, str]] = {
        "image": "must be a file in a multipart form",
        "id": "must be the id of an item, a whole number",
        "vector": "must be a list of numbers",
        "url": "must be text",
    }

    image: Annotated[bytes, Field(json_schema_extra={"format": "binary"})] = b""
    id: Annotated[ItemId, Field(description="An item's id; the item itself is not among the matches.")] = 0
    vector: Annotated[list[Component], FailFast(), Field(description="A feature vector to search by.")] = []
    url: Annotated[str, Field(max_length=MOST_URL, json_schema_extra={"format": "uri"})] = ""

    @classmethod
    def _check_together(cls, given: dict[str, Any]) -> None:
        if len(given.keys() & set(cls.WAYS)) != 1:
            raise PydanticCustomError("ways", "exactly one of image, id, vector and url is needed")

    @property
    def way(self) -> str:
        """The name of the field that holds the query, one of `WAYS`."""
        return next(name for name in self.WAYS if name in self.model_fields_set)

    @property
    def matches(self) -> int:
        """The number of matches to return, k."""
        return int(self._options()["k"])

    def search_options(self) -> SearchOptions:
        """Returns the options of the search itself: all except k and the options in `query_options`."""
        changing = {option.name for option in OPTIONS if option.changes_query}
        given = {name: value for name, value in self._options().items() if name not in {*changing, "k"}}
        return cast(SearchOptions, given)

    def query_options(self) -> dict[str, Any]:
        """Returns the options that are applied to the query before the search, such as `crop`."""
        changing = {option.name for option in OPTIONS if option.changes_query}
        return {name: value for name, value in self._options().items() if name in changing}

    def _options(self) -> dict[str, Any]:
        """Returns a dict from Python names to values, for the options that were given or have a default."""
        return {
            option.name: getattr(self, option.http_field)
            for option in OPTIONS
            if option.http_field in self.model_fields_set or option.default is not None
        }


def search_request(settings: Settings) -> type[SearchRequest]:
    """Makes a subclass of `SearchRequest` with a field for each search option. settings: its `max_k` limits k."""
    fields: dict[str, Any] = {}
    must_be = dict(SearchRequest.must_be)
    for option in OPTIONS:
        most = settings.max_k if option.name == "k" else option.most
        kind, must_be[option.http_field] = _field(option, most)
        described = Field(option.default, description=option.http_help or option.help)
        fields[option.http_field] = kind, described
    made = create_model("SearchRequest", __base__=SearchRequest, **fields)
    made.must_be = must_be
    return made


def _field(option: SearchOption, most: int | None) -> tuple[Any, str]:
    """Returns the type of an option's value in a request, and the end of the error message "FIELD must be ...".

    most: the largest value of a whole number, or the most elements of a list.
    """
    match option.kind:
        case "integer":
            bounds = Field(ge=option.minimum, le=most)
            return Annotated[int, bounds], f"must be a whole number from {option.minimum} to {most}"
        case "number":
            number = Annotated[float, Field(ge=option.minimum, le=option.maximum, allow_inf_nan=False)]
            if option.maximum is not None:
                return number, f"must be a number from {option.minimum} to {option.maximum}"
            return number, "must be a number that is not negative"
        case "flag":
            return bool, "must be true or false"
        case "box":
            pixels = Annotated[int, Field(ge=0, le=2**31 - 1)]
            side = pixels | Annotated[str, Field(pattern=f"^{boxes.PERCENT}$")]
            box = Annotated[list[side], FailFast(), Field(min_length=4, max_length=4), AfterValidator(tuple)]
            return box, f"must be {boxes.FORM}"
        case "images":
            ids = Annotated[list[ItemId], FailFast(), Field(max_length=most)]
            return ids, f"must be a list of at most {most} ids of items"
        case "conditions":
            return _conditions(most or 1), f"must be a list of at most {most} conditions"


def _conditions(most: int) -> Any:
    """Returns the type of filter conditions: a text, a list of texts, or an object that maps fields to values.

    In an object, a field may have a list of values. A text need not be valid UTF-8, because it may be compared
    with a file name, which need not be valid UTF-8 either.
    most: the largest number of conditions.
    """

    def check(value: Any) -> list[str] | dict[str, Any]:
        if isinstance(value, dict):
            given = [each for values in value.values() for each in (values if isinstance(values, list) else [values])]
            checked(list(value))
            checked([each for each in given if isinstance(each, str)])
            if len(given) + len(value) > most or not all(isinstance(v, str | None) or is_number(v) for v in given):
                raise ValueError
            return value
        return checked([value] if isinstance(value, str) else value)

    def checked(found: Any) -> list[str]:
        if not isinstance(found, list) or len(found) > most:
            raise ValueError
        if any(not isinstance(text, str) or len(text) > MOST_CONDITION or "\0" in text for text in found):
            raise ValueError
        return found

    condition = {"type": "string", "maxLength": MOST_CONDITION}
    value = {"type": ["string", "number", "boolean", "null"], "maxLength": MOST_CONDITION}
    values = {"anyOf": [value, {"type": "array", "maxItems": most, "items": value}]}
    schema = {
        "type": ["array", "string", "object"],
        "maxItems": most,
        "maxLength": MOST_CONDITION,
        "items": condition,
        "maxProperties": most // 2,
        "additionalProperties": values,
        "examples": [["label=cat"], {"label": ["cat", "dog"]}],
    }
    return Annotated[list[str] | dict[str, Any], PlainValidator(check), WithJsonSchema(schema)]


def is_number(value: Any) -> bool:
    """Returns True for a finite number that is not too large for SQLite."""
    return isinstance(value, int | float) and abs(value) < 2**63


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _plain_values(value: Any) -> dict[str, Any]:
    """Returns metadata if it is an object of texts, numbers, booleans and nulls; else raises ValueError.

    The names "path" and "label" are refused, since every item has a path and a label besides its metadata.
    """
    if not isinstance(value, dict) or {"path", "label"} & value.keys():
        raise ValueError
    for each in value.values():
        if not (is_number(each) or isinstance(each, str | None)):
            raise ValueError
    return value


class AddRequest(Body):
    """The body of POST /v1/items: an image to add, with its label and metadata."""

    must_be: ClassVar[dict[str, str]] = {
        "image": "must be a file in a multipart form",
        "label": "must be a line of text",
        "metadata": "must be an object of texts and numbers",
    }

    image: Annotated[bytes, Field(json_schema_extra={"format": "binary"})]
    label: Annotated[str, Field(max_length=MOST_LABEL), AfterValidator(_line)] = ""
    metadata: Annotated[
        dict[str, Any],
        PlainValidator(_plain_values),
        WithJsonSchema(
            {
                "type": "string",
                "contentMediaType": "application/json",
                "description": "An object of texts and numbers.",
                "examples": ['{"year": 2012}'],
            }
        ),
    ] = {}
