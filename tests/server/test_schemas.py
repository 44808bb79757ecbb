"""The bodies of requests: checked, and described, by one model."""

import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the [test] extra is not installed")

from simsearch.search.options import OPTIONS
from simsearch.server.answers import EXAMPLES
from simsearch.server.middleware import ApiError
from simsearch.server.openapi import add_body, schema_of, search_body
from simsearch.server.schemas import AddRequest, search_request
from simsearch.server.settings import Settings

CROP = 'crop must be x, y, width, height: whole numbers of pixels, or percent such as "50%"'
MODEL = search_request(Settings(max_k=50))


def refusal(model, **given):
    with pytest.raises(ApiError) as caught:
        model.read(given)
    assert (caught.value.status, caught.value.code) == (422, "bad_argument")
    return caught.value.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"id": 1, "k": 0}, "k must be a whole number from 1 to 50"),
        ({"id": 1, "k": 51}, "k must be a whole number from 1 to 50"),
        ({"id": 1, "k": "6"}, "k must be a whole number from 1 to 50"),
        ({"id": 1, "k": True}, "k must be a whole number from 1 to 50"),
        ({"id": 1, "k": None}, "k must be a whole number from 1 to 50"),
        ({"id": 1, "k": 6.0}, "k must be a whole number from 1 to 50"),
        ({"id": -1}, "id must be the id of an item, a whole number"),
        ({"id": 2**63}, "id must be the id of an item, a whole number"),
        ({"vector": [1, "a"]}, "vector must be a list of numbers"),
        ({"vector": [1e30]}, "vector must be a list of numbers"),
        ({"vector": [10**400]}, "vector must be a list of numbers"),
        ({"vector": [float("nan")]}, "vector must be a list of numbers"),
        ({"url": 5}, "url must be text"),
        ({"url": "x" * 4001}, "url must be text"),
        ({"image": "x"}, "image must be a file in a multipart form"),
        ({"id": 1, "max_distance": -1}, "max_distance must be a number that is not negative"),
        ({"id": 1, "max_distance": float("inf")}, "max_distance must be a number that is not negative"),
        ({"id": 1, "crop": [1, 2, 3]}, CROP),
        ({"id": 1, "crop": [1, 2, 3, 2**31]}, CROP),
        ({"id": 1, "filter": ["a"] * 33}, "filter must be a list of at most 32 conditions"),
        ({"id": 1, "filter": "a\0"}, "filter must be a list of at most 32 conditions"),
        ({"id": 1, "filter": ["x" * 1001]}, "filter must be a list of at most 32 conditions"),
        ({"id": 1, "filter": {"a": {}}}, "filter must be a list of at most 32 conditions"),
        ({"id": 1, "filter": {"a": [float("nan")]}}, "filter must be a list of at most 32 conditions"),
        ({"id": 1, "filter": {"a": [1] * 32}}, "filter must be a list of at most 32 conditions"),
        ({"id": 1, "plus": [1] * 65}, "plus must be a list of at most 64 ids of items"),
        ({"id": 1, "minus": [True]}, "minus must be a list of at most 64 ids of items"),
        ({"id": 1, "dedup": 1}, "dedup must be true or false"),
        ({"id": 1, "expand": 65}, "expand must be a whole number from 1 to 64"),
        ({}, "exactly one of image, id, vector and url is needed"),
        ({"id": 1, "vector": [1]}, "exactly one of image, id, vector and url is needed"),
    ],
)
def test_messages(given, message):
    assert refusal(MODEL, **given) == message


@pytest.mark.parametrize(("name", "shown"), [("unknown", "unknown"), ("\ud800", "?"), ("label", "label")])
def test_unknown_names(name, shown):
    message = refusal(MODEL, id=1, **{name: "x"})
    assert message.startswith(f"{shown} is not known here; one of ")
    assert set(message.partition("one of ")[2].split(", ")) == set(MODEL.model_fields)


def test_a_body_that_is_not_an_object():
    with pytest.raises(ApiError, match="the body must be a JSON object"):
        MODEL.read([1])


def test_options_by_their_names_in_python():
    body = MODEL.read(
        {
            "id": 1,
            "filter": "label=cat",
            "crop": [1, 2, 3, 4],
            "plus": [5],
            "exact": True,
            "max_distance": 3,
        }
    )
    assert (body.way, body.matches) == ("id", 6)
    assert body.search_options() == {"where": ["label=cat"], "exact": True, "max_distance": 3.0}
    assert body.query_options() == {"crop": (1, 2, 3, 4), "plus": [5]}
    assert MODEL.read({"id": 1, "k": 50}).matches == 50
    assert MODEL.read({"id": 1}).search_options() == {}


def test_conditions_need_not_be_utf8():
    """Names of files may hold any bytes; JSON writes them as lone surrogates."""
    assert MODEL.read({"id": 1, "filter": ["path=\udcff"]}).search_options() == {"where": ["path=\udcff"]}


def test_uploads():
    given = {"image": b"data", "label": "cat", "metadata": {"year": 2012, "a": None, "b": True, "c": "\udcff"}}
    assert AddRequest.read(given).model_dump(exclude_unset=True) == given
    wrong: tuple[Any, ...] = ([1], {"path": "x"}, {"label": "x"}, {"x": []}, {"x": float("nan")}, {"x": 2**63})
    for metadata in wrong:
        assert refusal(AddRequest, image=b"", metadata=metadata) == "metadata must be an object of texts and numbers"
    for label in ("a\nb", "x" * 201):
        assert refusal(AddRequest, image=b"", label=label) == "label must be a line of text"
    assert refusal(AddRequest, image=b"", k=1) == "k is not known here; one of image, label, metadata"


def test_the_document_describes_the_same_fields():
    content = search_body(MODEL, allow_urls=False)["requestBody"]["content"]
    fields = {option.http_field for option in OPTIONS}
    as_json, as_form = (content[kind]["schema"] for kind in ("application/json", "multipart/form-data"))
    assert set(as_json["properties"]) == {"id", "vector", *fields}
    assert set(as_form["properties"]) == {"image", *fields}
    assert as_json["additionalProperties"] is as_form["additionalProperties"] is False
    assert as_json["oneOf"] == [{"required": ["id"]}, {"required": ["vector"]}]
    k = {"type": "integer", "minimum": 1, "maximum": 50, "default": 6, "description": "Number of matches per query."}
    assert as_json["properties"]["k"] == k
    assert as_form["properties"]["crop"]["type"] == "string"
    assert (
        "url"
        in search_body(MODEL, allow_urls=True)["requestBody"]["content"]["application/json"]["schema"]["properties"]
    )
    upload = add_body()["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert (set(upload["properties"]), upload["required"]) == ({"image", "label", "metadata"}, ["image"])


def test_schemas_are_whole_and_examples_fit():
    for model, example in EXAMPLES.items():
        schema = schema_of(model)
        assert "$ref" not in str(schema) and "title" not in schema
        assert sorted(schema["required"]) == sorted(schema["properties"].keys() - {"notes"})  # only in empty answers
        model.model_validate(example)


def test_pydantic_is_only_for_the_service():
    code = "import sys, simsearch.engine, simsearch.cli.query, simsearch.cli.serve; print('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
