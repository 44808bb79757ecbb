"""The HTTP service: answers, limits, keys, and hostile input, each with its status."""

import hashlib
import io
import ipaddress
import json
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

import simsearch
from simsearch import sync
from simsearch.batching import Job
from simsearch.errors import SimsearchError
from simsearch.fetch import public

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")
import asyncio  # noqa: E402


class Client:
    """Calls an app in this process."""

    def __init__(self, app, base="http://127.0.0.1"):
        self.app, self.base = app, base

    def __call__(self, method, path, **options):
        async def go():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url=self.base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(go())

    def search(self, **body):
        return self("POST", "/v1/search", json=body)


@pytest.fixture
def engine(tmp_path, photos, colours):
    with simsearch.build(photos, tmp_path / "index", model=colours) as engine:
        yield engine


@pytest.fixture
def client(engine):
    return Client(simsearch.create_app(engine))


def upload(data, name="q.png"):
    return {"image": (name, data, "image/png")}


def code(response):
    return response.status_code, response.json()["error"]["code"]


def png(size=(16, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_answers_are_those_of_the_engine(client, engine, photos):
    data = (photos / "blue" / "3.png").read_bytes()
    found = client("POST", "/v1/search", files=upload(data), data={"k": "4", "filter": "label=blue"})
    assert found.status_code == 200
    expected = engine.search(data, k=4, where={"label": "blue"})
    assert [(m["id"], m["distance"]) for m in found.json()["matches"]] == [(m.id, m.distance) for m in expected]
    assert set(found.json()) == {"query", "model", "metric", "exact", "took_ms", "matches"}
    by_id = client.search(id=5, k=3, crop=[0, 0, 8, 8]).json()
    assert [m["id"] for m in by_id["matches"]] == [m.id for m in engine.search_by_id(5, 3, crop=(0, 0, 8, 8))]
    vector = engine.features([data])[0]
    assert client.search(vector=vector.tolist(), k=1).json()["matches"][0]["distance"] < 1e-3


def test_mirrored_and_expanded_searches_are_those_of_the_engine(client, engine, photos):
    data = (photos / "blue" / "3.png").read_bytes()

    def pairs(matches):
        return [(match.id, pytest.approx(match.distance)) for match in matches]

    def found(answer):
        assert answer.status_code == 200, answer.text
        return [(match["id"], match["distance"]) for match in answer.json()["matches"]]

    form = {"flip": "true", "k": "4"}
    assert found(client("POST", "/v1/search", files=upload(data), data=form)) == pairs(
        engine.search(data, 4, flip=True)
    )
    assert found(client.search(id=5, flip=True)) == pairs(engine.search_by_id(5, flip=True))
    assert found(client.search(id=5, flip=True, crop=[1, 0, 7, 8])) == pairs(
        engine.search_by_id(5, flip=True, crop=(1, 0, 7, 8))
    )
    assert found(client.search(id=5, flip=True, plus=[2], minus=[9])) == pairs(
        engine.search_by_id(5, flip=True, plus=[2], minus=[9])
    )
    assert found(client.search(id=5, flip=False, expand=3)) == pairs(engine.search_by_id(5, expand=3))
    form = {"expand": "2", "flip": "0"}
    assert found(client("POST", "/v1/search", files=upload(data), data=form)) == pairs(engine.search(data, expand=2))
    assert found(client.search(id=5, filter="label=blue")) == pairs(engine.search_by_id(5, where=["label=blue"]))
    vector = engine.features([data])[0].tolist()
    assert "cannot be mirrored" in client.search(vector=vector, flip=True).json()["error"]["message"]


BAD = [
    ({"id": 999}, 404), ({"id": 2**63}, 422), ({"id": -1}, 422), ({"id": "1"}, 422), ({"id": True}, 422), ({}, 422),
    ({"id": 1, "vector": [1]}, 422), ({"vector": [1, 2]}, 422), ({"vector": ["a"]}, 422), ({"id": 1, "k": 0}, 422),
    ({"id": 1, "k": 10**9}, 422), ({"id": 1, "filter": ["nonsense"]}, 422), ({"id": 1, "max_distance": -1}, 422),
    ({"id": 1, "crop": [0, 0, 0, 0]}, 422), ({"id": 1, "crop": [0, 0, 99, 99]}, 422), ({"id": 1, "unknown": 1}, 422),
    ({"id": 1, "flip": 1}, 422), ({"id": 1, "expand": 0}, 422), ({"id": 1, "expand": 65}, 422),
    ({"id": 1, "filter": "nonsense"}, 422), ({"id": 1, "filter": {}}, 422), ({"url": "http://127.0.0.1/"}, 422), ({"image": "x"}, 422), ([1], 422),
]  # fmt: skip


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


PATHS = ["/v1/items/..%2f..%2fetc%2fpasswd", "/v1/items/%2e%2e/image", "/v1/items//etc/passwd/image",
         "/v1/items/1%00/image", "/v1/items/abc", "/v1/items/99999999999999999999/image", "/v1/items/-1/thumbnail",
         "/v1/items/1/thumbnail?size=99999"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_way_to_other_files(client, path):
    assert client("GET", path).status_code in {404, 422}


def test_items_and_their_files(client, photos):
    item = client("GET", "/v1/items/1")
    assert item.json()["label"] == "amber"
    image = client("GET", "/v1/items/1/image")
    assert image.content == (photos / "amber" / "0.png").read_bytes()
    assert image.headers["content-type"] == "image/png"
    assert image.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in image.headers["content-security-policy"]
    (photos / "amber" / "0.png").write_text("<script>alert(1)</script>")
    assert client("GET", "/v1/items/1/image").headers["content-disposition"] == "attachment"
    small = client("GET", "/v1/items/2/thumbnail?size=64")
    assert small.headers["content-type"] == "image/jpeg"
    again = client("GET", "/v1/items/2/thumbnail?size=64", headers={"if-none-match": small.headers["etag"]})
    assert again.status_code == 304
    (photos / "amber" / "2.png").unlink()
    assert code(client("GET", "/v1/items/3/image")) == (404, "image_gone")


def test_some_items(client, engine):
    found = client("GET", "/v1/items?count=4").json()["items"]
    assert [item["id"] for item in found] == [1, 9, 16, 24]
    assert found[0] == client("GET", "/v1/items/1").json()
    assert len(client("GET", "/v1/items?count=100").json()["items"]) == 24
    engine.remove([1, 2, 24])
    assert [item["id"] for item in client("GET", "/v1/items?count=2").json()["items"]] == [3, 23]
    engine.remove(["*"])
    assert client("GET", "/v1/items").json() == {"items": []}
    assert client("GET", "/v1/items?count=0").status_code == 422


def test_the_openapi_document(engine):
    document = Client(simsearch.create_app(engine))("GET", "/openapi.json").json()
    operations = {f"{method} {path}" for path, found in document["paths"].items() for method in found}
    assert operations == {
        "get /health", "get /ready", "get /metrics", "get /v1/indexes", "post /v1/search", "get /v1/items",
        "get /v1/items/{id}", "get /v1/items/{id}/image", "get /v1/items/{id}/thumbnail",
    }  # fmt: skip
    for path, found in document["paths"].items():
        for operation in found.values():
            for status, answer in operation["responses"].items():
                assert answer["description"]
                schema = answer.get("content", {}).get("application/json", {}).get("schema")
                if schema is not None:
                    assert schema["examples"], f"{path} {status} has no example"
                if int(status) >= 400:
                    assert schema["required"] == ["error"], f"{path} {status}"
    writing = Client(simsearch.create_app(engine, writable=True, api_keys="k"))("GET", "/openapi.json").json()
    assert {"post", "get"} == set(writing["paths"]["/v1/items"])
    assert writing["paths"]["/v1/search"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert "security" not in writing["paths"]["/health"]["get"]


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
        400, "cross_origin")  # fmt: skip
    assert "access-control-allow-origin" not in client("GET", "/health", headers={"origin": "http://a.b"}).headers


def test_request_ids(client):
    assert client("GET", "/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client("GET", "/health", headers={"x-request-id": "a b\tc" * 90}).headers["x-request-id"] != "a b\tc" * 90


def test_writing(engine):
    off = Client(simsearch.create_app(engine))
    assert code(off("POST", "/v1/items", files=upload(png()))) == (404, "read_only")
    assert code(off("DELETE", "/v1/items/1")) == (404, "read_only")
    client = Client(simsearch.create_app(engine, writable=True))
    made = client("POST", "/v1/items", files=upload(png()), data={"label": "../x", "metadata": '{"year": 2000}'})
    assert made.status_code == 201
    assert (made.json()["label"], made.json()["metadata"]) == ("../x", {"year": 2000})
    assert client("POST", "/v1/items", files=upload(png())).status_code == 200
    assert client("POST", "/v1/search", files=upload(png()), data={"k": "1"}).json()["matches"][0]["distance"] == 0
    assert client("DELETE", f"/v1/items/{made.json()['id']}").status_code == 204
    assert client("DELETE", f"/v1/items/{made.json()['id']}").status_code == 404
    assert code(client("POST", "/v1/items", files=upload(b"x"))) == (422, "bad_image")


def test_what_could_not_be_written_leaves_nothing_behind(engine):
    from simsearch.meta import writer_lock

    client = Client(simsearch.create_app(engine, writable=True))
    with writer_lock(engine.path):
        for _ in range(2):
            assert code(client("POST", "/v1/items", files=upload(png()))) == (503, "index_locked")
        assert code(client("DELETE", "/v1/items/1")) == (503, "index_locked")
    assert [path.name for path in (engine.path / "uploads").iterdir()] == ["items.jsonl"]
    assert (engine.path / "uploads" / "items.jsonl").read_text() == ""
    assert client("POST", "/v1/items", files=upload(png((9, 9)))).status_code == 201
    assert len((engine.path / "uploads" / "items.jsonl").read_text().splitlines()) == 1
    sync.sync(engine.index, engine.model, [], sync.Options())
    assert len(engine) == 25


def test_an_upload_looks_at_no_other(engine, monkeypatch):
    client = Client(simsearch.create_app(engine, writable=True))
    manifest = engine.path / "uploads" / "items.jsonl"
    sizes = [(9, n) for n in range(9, 13)]
    made = [client("POST", "/v1/items", files=upload(png(size)), data={"label": "x"}).json()["id"] for size in sizes]
    lines = manifest.read_bytes()
    monkeypatch.setattr("simsearch.uploads._forget", None)  # which would read them all
    monkeypatch.setattr("simsearch.manifests.open", None, raising=False)
    assert client("POST", "/v1/items", files=upload(png((9, 20)))).status_code == 201
    monkeypatch.undo()
    assert manifest.read_bytes().startswith(lines)
    assert client("DELETE", f"/v1/items/{made[1]}").status_code == 204
    assert sync.sync(engine.index, engine.model, [], sync.Options()).unchanged == len(engine) == 24 + 4


def test_what_a_process_that_died_has_left_of_an_upload(engine):
    client = Client(simsearch.create_app(engine, writable=True))
    assert client("POST", "/v1/items", files=upload(png((9, 9))), data={"label": "x"}).status_code == 201
    manifest, name = engine.path / "uploads" / "items.jsonl", hashlib.sha256(png((9, 10))).hexdigest()
    whole = manifest.read_bytes()
    (manifest.parent / name).write_bytes(b"half of it")
    manifest.write_bytes(whole + json.dumps({"path": name, "label": "old"}).encode() + b'\n{"path": "12')
    made = client("POST", "/v1/items", files=upload(png((9, 10))), data={"label": "new"})
    assert (made.status_code, made.json()["label"]) == (201, "new")
    assert manifest.read_bytes() == whole + json.dumps({"path": name, "label": "new"}).encode() + b"\n"
    manifest.write_bytes(manifest.read_bytes() + b'{"path": "34')
    assert client("POST", "/v1/items", files=upload(png((9, 11)))).status_code == 201
    assert sync.sync(engine.index, engine.model, [], sync.Options()).unchanged == len(engine) == 24 + 3


def test_numbers_in_a_form_are_those_of_json(client):
    for field in ({"k": "1_0"}, {"k": "٣"}, {"expand": "1_0"}, {"plus": "1_0"}, {"crop": "0,0,8,1_0"}, {"flip": "yes"},
                  {"max_distance": "1_0"}, {"k": ""}, {"expand": "2.0"}):  # fmt: skip
        assert code(client("POST", "/v1/search", files=upload(png()), data=field)) == (422, "bad_argument"), field
    assert client("POST", "/v1/search", files=upload(png()), data={"k": " 3 ", "flip": "True"}).status_code == 200


def test_too_many_at_once(engine, monkeypatch):
    app = simsearch.create_app(engine, in_flight=2)
    gate = threading.Event()
    served = app.state.service.indexes["default"]
    use = served.use
    monkeypatch.setattr(served, "use", lambda call: (gate.wait(10), use(call))[1])

    async def go():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            first = [asyncio.create_task(client.post("/v1/search", json={"id": 1})) for _ in range(2)]
            await asyncio.sleep(0.2)
            third = await client.post("/v1/search", json={"id": 1})
            gate.set()
            return [r.status_code for r in await asyncio.gather(*first)], third

    served_ones, third = asyncio.run(go())
    assert served_ones == [200, 200]
    assert (third.status_code, third.headers["retry-after"]) == (429, "1")


def test_more_like_these_not_those(client, engine, photos):
    data = (photos / "blue" / "3.png").read_bytes()
    as_json = client.search(id=5, k=7, plus=[2, 9], minus=[12]).json()
    expected = engine.search_by_id(5, 7, plus=[2, 9], minus=[12])
    assert [(m["id"], m["distance"]) for m in as_json["matches"]] == [(m.id, m.distance) for m in expected]
    assert not {2, 5, 9} & {m["id"] for m in as_json["matches"]}
    fields = {"k": "7", "plus": ["2", "9"], "minus": "12"}
    as_form = client("POST", "/v1/search", files=upload(data), data=fields).json()
    expected = engine.search(data, 7, plus=[2, 9], minus=[12])
    assert [(m["id"], m["distance"]) for m in as_form["matches"]] == [(m.id, m.distance) for m in expected]
    assert code(client.search(id=5, plus=[999])) == (404, "no_such_item")
    for wrong in (3, ["3"], [True], [-1], list(range(65))):
        assert code(client.search(id=5, minus=wrong)) == (422, "bad_argument")
    assert code(client("POST", "/v1/search", files=upload(data), data={"plus": "x"})) == (422, "bad_argument")


def test_concurrent_searches_share_batches(engine, colours):
    app = simsearch.create_app(engine)
    random = np.random.default_rng(0)

    def picture():
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    pictures = [picture() for _ in range(40)]

    async def go():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            return await asyncio.gather(*(client.post("/v1/search", files=upload(p)) for p in pictures))

    for data, response in zip(pictures, asyncio.run(go()), strict=True):
        expected = engine.search(data)
        assert [(m["id"], m["distance"]) for m in response.json()["matches"]] == [(m.id, m.distance) for m in expected]
    assert "simsearch_batch_size_count" in Client(app)("GET", "/metrics").text


def test_all_kinds_of_searches_in_one_batch(engine, photos):
    """Each gets its own answer, whatever it is computed with; and so do those that fail."""
    service = simsearch.create_app(engine).state.service
    served, batcher = service.indexes["default"], service.batchers["default"]
    data = (photos / "blue" / "3.png").read_bytes()
    vector = engine.features([png()])[0]
    queries: list[tuple[dict[str, Any], Any]] = [
        ({"image": data, "flip": True}, lambda: engine.search(data, flip=True)),
        ({"image": png(), "flip": True}, lambda: engine.search(png(), flip=True)),
        ({"image": png()}, lambda: engine.search(png())),
        ({"id": 3}, lambda: engine.search_by_id(3)),
        ({"id": 3, "flip": True, "crop": (2, 0, 8, 16)}, lambda: engine.search_by_id(3, flip=True, crop=(2, 0, 8, 16))),
        ({"id": 4, "flip": True, "plus": [7], "minus": [9, 2]},
         lambda: engine.search_by_id(4, flip=True, plus=[7], minus=[9, 2])),
        ({"id": 4, "flip": True, "expand": 3, "k": 2}, lambda: engine.search_by_id(4, 2, flip=True, expand=3)),
        ({"id": 5, "expand": 3}, lambda: engine.search_by_id(5, expand=3)),
        ({"vector": vector.tolist(), "dedup": True}, lambda: engine.search_by_vector(vector, dedup=True)),
        ({"id": 99, "flip": False}, None),
        ({"id": 1, "plus": [99]}, None),
        ({"id": 1, "filter": ["nonsense"]}, None),
    ]  # fmt: skip
    jobs = [service._job(served, query) for query, _ in queries]
    answers = batcher._answers(engine, jobs)
    for (query, expected), answer in zip(queries, answers, strict=True):
        if expected is None:
            assert isinstance(answer, SimsearchError), query
        else:
            found = [(match.id, pytest.approx(match.distance)) for match in expected()]
            assert [(match.id, match.distance) for match in answer] == found, query


def test_an_index_that_is_replaced(tmp_path, photos, colours):
    """A link turned to another index: every answer is of one of the two, none fails."""
    for name, labels in (("a", ("amber",)), ("b", ("blue", "green"))):
        with simsearch.build([photos / label for label in labels], tmp_path / name, model=colours):
            pass
    (tmp_path / "live").symlink_to(tmp_path / "a")
    with simsearch.open(tmp_path / "live", model=colours) as engine:
        client = Client(simsearch.create_app(engine))
        query = png()
        seen = set()
        for turn in range(20):
            (tmp_path / "next").symlink_to(tmp_path / "ba"[turn % 2])
            (tmp_path / "next").rename(tmp_path / "live")
            matches = client("POST", "/v1/search", files=upload(query), data={"k": "100"}).json()["matches"]
            seen.add(len(matches))
            assert len(matches) == (12, 6)[turn % 2]
        assert seen == {6, 12}


@pytest.fixture
def replaced(tmp_path, photos, colours, tiny_weights):
    """A served index, and what puts another in its place: of other items, by another model."""
    with simsearch.build(photos, tmp_path / "before", model=colours):
        pass
    with simsearch.build([photos / "green", photos / "blue"], tmp_path / "after", model=str(tiny_weights)):
        pass
    (tmp_path / "live").symlink_to("before")

    def replace():
        (tmp_path / "next").symlink_to("after")
        (tmp_path / "next").rename(tmp_path / "live")

    with simsearch.open(tmp_path / "live", model=colours) as engine:
        yield engine, replace


def test_the_first_search_after_another_model_took_over(replaced, tmp_path, photos):
    client = Client(simsearch.create_app(replaced[0], writable=True))
    assert client.search(id=1).json()["model"] == "colours"
    replaced[1]()
    with simsearch.open(tmp_path / "after") as engine:
        vector = engine.features([png()])[0]
        found = client.search(vector=vector.tolist())
        assert found.status_code == 200, found.text
        assert [m["id"] for m in found.json()["matches"]] == [m.id for m in engine.search_by_vector(vector)]
        assert found.json()["model"] == engine.meta.model


def test_what_is_written_goes_into_the_index_that_is_there_now(replaced, tmp_path):
    client = Client(simsearch.create_app(replaced[0], writable=True))
    replaced[1]()
    made = client("POST", "/v1/items", files=upload(png()))
    assert made.status_code == 201, made.text
    with simsearch.open(tmp_path / "after") as engine:
        assert len(engine) == 13
        assert engine.item(made.json()["id"]).width == 16


@pytest.mark.parametrize("query", [{"flip": "true"}, {"crop": "0,0,8,8", "flip": "true"}, {"k": "3"}])
@pytest.mark.parametrize("by", ["picture", "item"])
def test_another_model_takes_over_during_a_search(replaced, tmp_path, photos, monkeypatch, query, by):
    """The picture was cut for the one model and is searched by the other; an id means another item there."""
    app = simsearch.create_app(replaced[0])
    batcher = app.state.service.batchers["default"]
    submit, data = batcher.submit, (photos / "blue" / "3.png").read_bytes()

    def late(job):
        if not (tmp_path / "live").samefile(tmp_path / "after"):
            replaced[1]()
        return submit(job)

    monkeypatch.setattr(batcher, "submit", late)
    options: dict[str, Any] = {"crop": (0, 0, 8, 8)} if "crop" in query else {}
    options["flip"], k = "flip" in query, int(query.get("k", 6))
    with simsearch.open(tmp_path / "after") as engine:
        if by == "picture":
            found, expected = Client(app)("POST", "/v1/search", files=upload(data), data=query), data
        else:
            found, expected = Client(app).search(id=2, k=k, **options), 2
        assert found.status_code == 200, found.text
        matches = engine.search_many([expected], k, **options)[0]
        assert [m["id"] for m in found.json()["matches"]] == [m.id for m in matches]
        assert [m["distance"] for m in found.json()["matches"]] == pytest.approx(
            [m.distance for m in matches], abs=1e-4
        )
        assert found.json()["model"] == engine.meta.model


def test_the_mirror_image_of_an_item_whose_file_has_changed(client, engine, photos):
    """The item is what was indexed; only its mirror image must come from the file."""
    (photos / "amber" / "1.png").write_bytes(png())
    number = engine.find(str(photos / "amber" / "1.png"))[0].id
    found = client.search(id=number, flip=True).json()["matches"]
    assert [(m["id"], m["distance"]) for m in found] == [
        (m.id, pytest.approx(m.distance)) for m in engine.search_by_id(number, flip=True)
    ]


def test_a_form_may_use_all_that_the_contract_allows(client, engine):
    fields = {"filter": ["id>0"] * 32, "plus": ["2"] * 64, "minus": ["9"] * 64, "k": "3", "crop": "0,0,8,8",
              "max_distance": "9", "dedup": "false", "exact": "true", "flip": "true", "expand": "2"}  # fmt: skip
    found = client("POST", "/v1/search", files=upload(png()), data=fields)
    assert found.status_code == 200, found.text
    for name, repeated in (("filter", ["id>0"] * 33), ("plus", ["2"] * 65)):
        assert code(client("POST", "/v1/search", files=upload(png()), data={name: repeated})) == (422, "bad_argument")


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
    use, slow = served.use, threading.Event()
    monkeypatch.setattr(served, "use", lambda call: (slow.wait(10), use(call))[1])
    found = Client(app).search(id=1)
    assert code(found) == (503, "timeout")
    assert found.headers["retry-after"] == "5"
    slow.set()


def test_an_index_that_is_gone_and_comes_back(engine, tmp_path, monkeypatch):
    from simsearch import served

    monkeypatch.setattr(served, "PATIENCE", 0.2)
    client = Client(simsearch.create_app(engine))
    engine.path.rename(tmp_path / "away")
    found = client.search(id=1)
    assert code(found) == (503, "index_missing")
    assert str(tmp_path) not in found.text
    assert code(client("GET", "/ready")) == (503, "not_ready")
    assert client("GET", "/health").status_code == client("GET", "/metrics").status_code == 200
    (tmp_path / "away").rename(engine.path)
    assert client.search(id=1).status_code == client("GET", "/ready").status_code == 200


def test_what_nobody_expected_is_no_traceback(engine, monkeypatch, caplog):
    app = simsearch.create_app(engine)
    monkeypatch.setattr(app.state.service, "item", None)
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
    from simsearch import answers, errors

    own = {"WeightsError", "ModelMismatchError", "DeviceError", "TrainingInterruptedError", "SimsearchError",
           "UnavailableError"}  # fmt: skip
    mapped = tuple(kind for kind, _, _ in answers._STATUS if kind is not SimsearchError)
    for name in set(errors.__all__) - own:
        assert issubclass(getattr(errors, name), mapped), name


def test_public_addresses():
    assert public(ipaddress.ip_address("93.184.215.14"))
    assert public(ipaddress.ip_address("2606:2800:21f:cb07:6820:80da:af6b:8b2c"))


def test_a_lagging_generation_is_seen(client, engine, photos):
    """What is committed is found by the next request."""
    before = client("GET", "/v1/indexes").json()["indexes"][0]
    sync.remove(engine.index, engine.find(1))
    after = client("GET", "/v1/indexes").json()["indexes"][0]
    assert (after["items"], after["generation"]) == (before["items"] - 1, before["generation"] + 1)


def test_pixels_cut_for_another_model_are_not_computed(engine):
    service = simsearch.create_app(engine).state.service
    batcher = service.batchers["default"]
    pixels = np.zeros((engine.recipe.crop, engine.recipe.crop, 3), np.uint8)
    own = Job(1, {}, pixels=pixels, weights=engine.meta.weights_sha256)
    other = Job(1, {}, pixels=pixels, weights="0" * 64)
    answers = [batcher.submit(job) for job in (own, other)]
    assert len(answers[0].result(10)) == 1
    with pytest.raises(SimsearchError, match="another model"):
        answers[1].result(10)
