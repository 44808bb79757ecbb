"""The service as its clients meet it: requests, refusals, keys, hosts and errors."""

import ipaddress
import re
import threading
from typing import Any

import pytest

import simsearch
from simsearch.errors import SimsearchError, UsageError
from simsearch.images.urls import is_public
from tests.helpers.client import Client, code, png, upload

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")
import asyncio  # noqa: E402

BAD = [
    ({"id": 999}, 404),
    ({"id": 2**63}, 422),
    ({"id": -1}, 422),
    ({"id": "1"}, 422),
    ({"id": True}, 422),
    ({}, 422),
    ({"id": 1, "vector": [1]}, 422),
    ({"vector": [1, 2]}, 422),
    ({"vector": ["a"]}, 422),
    ({"id": 1, "k": 0}, 422),
    ({"id": 1, "k": 10**9}, 422),
    ({"id": 1, "filter": ["nonsense"]}, 422),
    ({"id": 1, "max_distance": -1}, 422),
    ({"id": 1, "crop": [0, 0, 0, 0]}, 422),
    ({"id": 1, "crop": [0, 0, 99, 99]}, 422),
    ({"id": 1, "unknown": 1}, 422),
    ({"id": 1, "flip": 1}, 422),
    ({"id": 1, "expand": 0}, 422),
    ({"id": 1, "expand": 65}, 422),
    ({"id": 1, "filter": "nonsense"}, 422),
    ({"id": 1, "filter": {"label": {}}}, 422),
    ({"id": 1, "filter": {"nowhere": 1}}, 422),
    ({"id": 1, "filter": ["bytes<10MB"]}, 422),
    ({"url": "http://127.0.0.1/"}, 422),
    ({"image": "x"}, 422),
    ([1], 422),
]


@pytest.mark.parametrize(("body", "status"), BAD)
def test_bad_arguments(client, body, status):
    assert client("POST", "/v1/search", json=body).status_code == status


def test_bad_bodies(client):
    post = lambda **options: code(client("POST", "/v1/search", **options))  # noqa: E731
    assert post(files=upload(b"not an image")) == (422, "bad_image")
    assert post(files=upload(b"")) == (422, "bad_image")
    assert post(files=upload(png((64, 64))[:45])) == (422, "bad_image")
    assert post(files=upload(bytes(50 << 20))) == (413, "too_large")
    assert post(content=b"{", headers={"content-type": "application/json"}) == (400, "bad_json")
    assert post(content=b"[" * 100_000, headers={"content-type": "application/json"})[0] == 400
    assert post(content=bytes(2 << 20), headers={"content-type": "application/json"}) == (413, "too_large")
    assert post(content=b"x", headers={"content-type": "text/plain"}) == (415, "unsupported_media_type")
    assert post(content=b"x", headers={"content-type": "multipart/form-data"})[0] == 400
    assert post(content=b"x", headers={"content-type": "multipart/form-data; boundary=a"})[0] in {400, 422}


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": 1, "id": 2}',
        b'{"id": 1, "filter": {"a": 1, "a": 2}}',
        b'{"id": 1, "max_distance": NaN}',
        b'{"id": 1, "max_distance": 1e999}',
        b'{"vector": [-Infinity]}',
        b'{"id": 1, "filter": ' + b"[" * 70 + b"]" * 70 + b"}",
        '{"id": 1}'.encode("utf-16"),
        b'{"id": 1} {"id": 2}',
        b"",
    ],
)
def test_json_that_is_refused(client, body):
    """Programs read it differently, or not at all."""
    assert code(client("POST", "/v1/search", content=body, headers={"content-type": "application/json"})) == (
        400,
        "bad_json",
    )


def test_a_bomb_is_refused(engine):
    client = Client(simsearch.create_app(engine, max_pixels=10_000))
    assert code(client("POST", "/v1/search", files=upload(png((200, 200))))) == (413, "image_too_large")


def test_a_chunked_body_and_a_slow_one(engine):
    client = Client(simsearch.create_app(engine, max_body=1000, body_timeout=0.05))

    async def endless():
        while True:
            yield b"x" * 100

    async def slow():
        yield b"{"
        await asyncio.sleep(5)

    headers = {"content-type": "application/json"}
    assert code(client("POST", "/v1/search", content=endless(), headers=headers)) == (413, "too_large")
    assert code(client("POST", "/v1/search", content=slow(), headers=headers)) == (400, "body_too_slow")


def test_the_openapi_document(engine):
    document = Client(simsearch.create_app(engine))("GET", "/openapi.json").json()
    operations = {f"{method} {path}" for path, found in document["paths"].items() for method in found}
    assert operations == {
        "get /health",
        "get /ready",
        "get /metrics",
        "get /v1/indexes",
        "post /v1/search",
        "get /v1/duplicates",
        "get /v1/facets",
        "get /v1/items",
        "get /v1/items/{id}",
        "get /v1/items/{id}/image",
        "get /v1/items/{id}/thumbnail",
        "get /v1/map",
    }
    for path, found in document["paths"].items():
        for operation in found.values():
            for status, answer in operation["responses"].items():
                assert answer["description"]
                schema = answer.get("content", {}).get("application/json", {}).get("schema")
                if schema is not None:
                    schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
                    assert schema["examples"], f"{path} {status} has no example"
                if int(status) >= 400:
                    assert schema["required"] == ["error"], f"{path} {status}"
    writing = Client(simsearch.create_app(engine, writable=True, api_keys="k"))("GET", "/openapi.json").json()
    assert {"post", "get"} == set(writing["paths"]["/v1/items"])
    assert writing["paths"]["/v1/search"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert "security" not in writing["paths"]["/health"]["get"]


def test_schemas_have_names_and_routes_tags(engine):
    app = simsearch.create_app(engine, writable=True, allow_urls=True)
    document = Client(app)("GET", "/openapi.json").json()
    assert set(document["components"]["schemas"]) >= {
        *("SearchById", "SearchByVector", "SearchByUrl", "SearchForm", "AddForm"),
        *("Answer", "Match", "Item", "Items", "Listing", "Index", "Error", "ErrorDetails"),
    }
    named = document["components"]["schemas"]

    def references(value):
        if isinstance(value, dict):
            found = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return found + [each for inner in value.values() for each in references(inner)]
        return [each for inner in value for each in references(inner)] if isinstance(value, list) else []

    assert {name.rpartition("/")[2] for name in references(document)} <= set(named)
    tags = {tag["name"] for tag in document["tags"]}
    for operations in document["paths"].values():
        for operation in operations.values():
            assert set(operation["tags"]) < tags
            assert operation["operationId"].isidentifier()
    search = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert [each["$ref"].rpartition("/")[2] for each in search["oneOf"]] == [
        "SearchById",
        "SearchByVector",
        "SearchByUrl",
    ]
    assert named["SearchById"]["required"] == ["id"]
    assert "vector" not in named["SearchById"]["properties"]


def test_matches_have_urls(engine):
    from fastapi import FastAPI

    app = simsearch.create_app({"a": engine, "b & c": engine})
    outer = FastAPI()
    outer.mount("/similar", simsearch.create_app(engine))
    for client, path in ((Client(app), "/v1/search"), (Client(outer), "/similar/v1/search")):
        for query in ("", "?index=b%20%26%20c") if client.app is app else ("",):
            match = client("POST", path + query, json={"id": 1, "k": 1}).json()["matches"][0]
            found = client("GET", match["image_url"])
            assert found.content == engine.read(match["id"])
            assert client("GET", match["thumbnail_url"]).headers["content-type"] == "image/jpeg"
            assert ("index=" in match["image_url"]) == bool(query)


@pytest.mark.parametrize(
    ("sent", "near"),
    [
        ({"json": {"id": 1, "max_distanse": 3}}, "max_distance"),
        ({"json": {"id": 1, "Filter": "label=cat"}}, "filter"),
        ({"json": {"idd": 1, "id": 1}}, "id"),
        ({"json": {"id": 1}, "params": {"indx": "default"}}, "index"),
    ],
)
def test_did_you_mean(client, sent, near):
    found = client("POST", "/v1/search", **sent)
    assert code(found) == (422, "bad_argument")
    assert found.json()["error"]["message"].endswith(f"is not known here; did you mean {near}?")


def test_reference_loads_nothing_from_elsewhere(client):
    pytest.importorskip("fastapi_offline", reason="the [serve] extra is not whole")
    page = client("GET", "/docs")
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(each for each in addresses if not each.startswith("data:")) == [
        "docs/plain",
        "docs/swagger-ui-bundle.js",
        "docs/swagger-ui.css",
    ]
    assert "http" not in page.headers["content-security-policy"]
    for path in ("/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/plain"):
        assert client("GET", path).status_code == 200
    for path in ("/docs/redoc.standalone.js", "/docs/..%2f__init__.py", "/docs/x"):
        assert client("GET", path).status_code == 404


def test_reference_without_swagger(client, monkeypatch):
    from simsearch.server import reference

    monkeypatch.setattr(reference, "_folder", lambda: None)
    assert "<h2>" in client("GET", "/docs").text
    assert 'href="openapi.json"' in client("GET", "/docs").text
    assert 'href="../openapi.json"' in client("GET", "/docs/plain").text
    assert client("GET", "/docs/swagger-ui.css").status_code == 404


def test_keys(engine):
    client = Client(simsearch.create_app(engine, api_keys=("secret", "other")))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "secre"}, {"authorization": "secret"}):
        assert code(client("GET", "/v1/items/1", headers=headers)) == (401, "unauthorized")
        assert client("GET", "/metrics", headers=headers).status_code == 401
    assert client("GET", "/v1/items/1", headers={"authorization": "Bearer other"}).status_code == 200
    assert client("GET", "/v1/items/1", headers={"x-api-key": "secret"}).status_code == 200
    assert client("GET", "/health").status_code == client("GET", "/ready").status_code == 200


def test_hosts_and_other_sites(engine):
    client = Client(simsearch.create_app(engine, hosts=("127.0.0.1",)))
    assert client("GET", "/health", headers={"host": "127.0.0.1:8000"}).status_code == 200
    assert code(client("GET", "/health", headers={"host": "evil.example"})) == (400, "bad_host")
    assert code(client("POST", "/v1/search", json={"id": 1}, headers={"origin": "http://evil.example"})) == (
        400,
        "cross_origin",
    )
    assert "access-control-allow-origin" not in client("GET", "/health", headers={"origin": "http://a.b"}).headers


def test_requests_that_browsers_mark(engine):
    """Of a page of another site, without its origin."""
    client = Client(simsearch.create_app(engine, writable=True))
    for site, status in (("cross-site", 400), ("same-site", 400), ("same-origin", 404), ("none", 404)):
        assert client("DELETE", "/v1/items/999", headers={"sec-fetch-site": site}).status_code == status
        assert client("GET", "/v1/items/1", headers={"sec-fetch-site": site}).status_code == 200


def test_answers_are_not_for_shared_caches(client):
    for path in ("/", "/openapi.json", "/metrics", "/v1/facets", "/v1/items/1", "/v1/items/1/image", "/nothing"):
        assert re.search("private|no-store|no-cache", client("GET", path).headers["cache-control"]), path
    assert client("POST", "/v1/search", json={"id": 1}).headers["cache-control"] == "no-store"


def test_request_ids(client):
    assert client("GET", "/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client("GET", "/health", headers={"x-request-id": "a b\tc" * 90}).headers["x-request-id"] != "a b\tc" * 90


def test_mounted_in_another_app(engine):
    from fastapi import FastAPI

    outer = FastAPI()
    outer.mount("/similar", simsearch.create_app(engine))
    client = Client(outer)
    assert client("POST", "/similar/v1/search", json={"id": 1, "k": 1}).status_code == 200
    assert "<title>simsearch" in client("GET", "/similar/").text
    assert client("GET", "/similar/openapi.json").json()["paths"].keys() >= {"/v1/search", "/v1/items/{id}", "/ready"}


def test_sites_that_may_call(engine):
    client = Client(simsearch.create_app(engine, cors="https://shop.example", api_keys="k", hosts=("127.0.0.1",)))
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    asked = client("OPTIONS", "/v1/search", headers={"origin": "https://shop.example", **asking})
    assert asked.headers["access-control-allow-origin"] == "https://shop.example"
    both = {"origin": "https://shop.example", "x-api-key": "k"}
    found = client("POST", "/v1/search", json={"id": 1}, headers=both)
    assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    other = client("OPTIONS", "/v1/search", headers={"origin": "https://other.example", **asking})
    assert "access-control-allow-origin" not in other.headers


def test_no_answer_in_time(engine, monkeypatch):
    app = simsearch.create_app(engine, timeout=0.2)
    served = app.state.service.indexes["default"]
    run, slow = served.run, threading.Event()
    monkeypatch.setattr(served, "run", lambda call, **options: (slow.wait(10), run(call, **options))[1])
    found = Client(app).search(id=1)
    assert code(found) == (503, "timeout")
    assert found.headers["retry-after"] == "5"
    slow.set()


def test_what_nobody_expected_is_no_traceback(engine, monkeypatch, caplog):
    app = simsearch.create_app(engine)
    monkeypatch.setattr("simsearch.server.items.Items.item", None)
    found = Client(app)("GET", "/v1/items/1", headers={"x-request-id": "odd-one"})
    assert code(found) == (503, "internal")
    assert "NoneType" not in found.text
    assert [record.fields["id"] for record in caplog.records if record.exc_info] == ["odd-one"]


def test_unknown_routes_and_methods(client):
    assert code(client("GET", "/nothing")) == (404, "not_found")
    assert code(client("PATCH", "/v1/search")) == (405, "method_not_allowed")
    assert code(client("GET", "/v1/items/1?index=other")) == (404, "no_such_index")


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/items/1", "/v1/items/1/image", "/v1/items/999"])
def test_head_is_get_without_the_body(client, path):
    got, head = client("GET", path), client("HEAD", path)
    assert head.status_code == got.status_code
    assert head.content == b""
    different = {"x-request-id"}
    assert {n: v for n, v in head.headers.items() if n not in different} == {
        n: v for n, v in got.headers.items() if n not in different
    }
    assert client("HEAD", "/v1/search").status_code == 405


def test_every_error_has_a_status():
    """An error that is not mapped on purpose answers 503."""
    from simsearch import errors
    from simsearch.server import errors as server_errors

    own = {
        "WeightsError",
        "ModelMismatchError",
        "DeviceError",
        "TrainingInterruptedError",
        "SimsearchError",
        "UnavailableError",
    }
    mapped = tuple(kind for kind, _, _ in server_errors._STATUS if kind is not SimsearchError)
    for name in set(errors.__all__) - own:
        assert issubclass(getattr(errors, name), mapped), name


def test_public_addresses():
    assert is_public(ipaddress.ip_address("93.184.215.14"))
    assert is_public(ipaddress.ip_address("2606:2800:21f:cb07:6820:80da:af6b:8b2c"))


def test_allow_names_all_methods(engine):
    for writable, expected in ((True, ("GET, HEAD, POST", "DELETE, GET, HEAD")), (False, ("GET, HEAD", "GET, HEAD"))):
        client = Client(simsearch.create_app(engine, writable=writable))
        for path, allow in zip(("/v1/items", "/v1/items/1"), expected, strict=True):
            refused = client("PUT", path)
            assert (refused.status_code, refused.headers["allow"]) == (405, allow)
    assert client("GET", "/v1/search").headers["allow"] == "POST"


def test_errors_say_what_to_write(client):
    def message(response):
        assert response.status_code in (404, 422), response.text
        return response.json()["error"]["message"]

    def search(**data):
        return message(client("POST", "/v1/search", data=data, files={"image": ("q.png", png())}))

    assert search(k="x") == "k must be a whole number from 1 to 1000"
    assert search(crop="1,2").startswith("crop must be x, y, width, height: whole numbers of pixels, or percent")
    assert search(flip="maybe") == "flip must be true or false"
    assert search(max_distance="far") == "max_distance must be a number that is not negative"
    assert search(plus="cat") == "plus must be a list of at most 64 ids of items"
    assert search(filter="cat").endswith("for example label=cat; operators: = != < > <= >= and ~ for a glob")
    assert search(filter="labl=cat").endswith("did you mean label?")
    assert search(filtr="label=cat") == "filtr is not known here; did you mean filter?"
    assert search(where="label=cat") == "where is not known here; did you mean filter?"
    assert search(top_k="3") == "top_k is not known here; did you mean k?"
    sent = {"img": ("q.png", png())}
    missing = message(client("POST", "/v1/search", data={"k": "3"}, files=sent))
    assert missing in (
        "the form has no file called image, only k, img",
        "the form has no file called image, only img, k",
    )
    as_text = message(client("POST", "/v1/search", data={"image": "q.png"}, files=sent))
    assert as_text == "the field image is text, not a file; curl sends a file with -F image=@PATH"
    assert message(client("GET", "/v1/items?limit=x")) == "limit must be a whole number"
    assert message(client("GET", "/v1/items?limit=0")) == "limit must be at least 1"
    assert message(client("GET", "/v1/items?sort=up")).startswith("sort must be one of 'newest'")
    assert client("GET", "/v1/search").json()["error"]["message"] == (
        "GET is not possible at /v1/search; possible: POST"
    )
    assert message(client("GET", "/v1/serach")) == "there is nothing at /v1/serach; /docs lists the addresses"


def test_what_is_no_engine_is_refused(engine):
    wrong: tuple[Any, ...] = ("indexes/photos", {"a": engine, "b": None})
    for given in wrong:
        with pytest.raises(UsageError, match="is not an engine"):
            simsearch.create_app(given)
