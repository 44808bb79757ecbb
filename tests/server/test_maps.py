"""The map of an index over HTTP: the stored one, one that is drawn, and what is said if the index has changed since."""

import gzip
import threading

import numpy as np
import pytest

import simsearch
from simsearch.curation import layout
from simsearch.curation import map as drawing
from simsearch.errors import MissingExtraError
from simsearch.server import map_maker, maps
from simsearch.storage import stored_map
from simsearch.storage.stored_map import NamedCluster, StoredMap, content_key
from tests.helpers.client import Client, code
from tests.helpers.pictures import draw

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")


def store(engine, clusters=("left", "right"), generation=None):
    """Keeps a map with an index: the items on a line, the first half in the first cluster."""
    with engine.reading() as reader:
        items = list(reader.items())
        now = reader.state("generation")
    n = len(items)
    at = np.arange(n, dtype=np.float32)
    stored_map.write(
        engine.opened_index.folder,
        StoredMap(
            np.array([item.id for item in items]),
            np.array([content_key(item.digest) for item in items], np.uint64),
            np.stack([at, -at / 3], 1),
            (at >= n / 2).astype(np.int32),
            [NamedCluster(name, "a note") for name in clusters],
            now if generation is None else generation,
            {"positions": "a line"},
        ),
    )


@pytest.fixture
def without_extra(monkeypatch):
    def missing():
        raise MissingExtraError("a map", "map")

    monkeypatch.setattr(layout, "check_installed", missing)


@pytest.fixture
def drawn(monkeypatch):
    """Draws maps at once, without the extra; counts them."""
    calls = []

    def lay_out(places, distances, start, seed=0, progress=None, exaggeration=1.0):
        calls.append(1)
        progress(10, 750)
        return start.astype(np.float32) * 1e4

    monkeypatch.setattr(layout, "check_installed", lambda: None)
    monkeypatch.setattr(layout, "lay_out", lay_out)
    monkeypatch.setattr(maps, "PATIENCE", 20)
    return calls


def got(client, query="", status=200, **options):
    answer = client("GET", "/v1/map" + query, **options)
    assert answer.status_code == status, answer.text
    return answer


def test_stored_map(engine, client, without_extra):
    store(engine)
    answer = got(client).json()
    assert (answer["items"], answer["added"], answer["removed"], answer["redraws"]) == (24, 0, 0, False)
    assert answer["ids"] == list(range(1, 25)) and answer["facts"] == {"positions": "a line"}
    assert answer["x"] == list(range(24)) and answer["y"][3] == -1 and answer["y"][1] == pytest.approx(-0.33, abs=0.01)
    assert [answer["folder"] + path for path in answer["paths"]] == engine.paths([engine.item(n) for n in range(1, 25)])
    cluster, label = answer["fields"]
    assert (cluster["name"], cluster["names"], cluster["notes"]) == ("cluster", ["left", "right"], ["a note"] * 2)
    assert cluster["codes"] == [0] * 12 + [1] * 12
    assert label["names"][label["codes"][0]] == engine.item(1).label
    assert sorted(answer["representatives"]) == list(range(24))


def test_etag_and_compression(engine, client, without_extra):
    store(engine)
    first = got(client)
    assert first.headers["content-encoding"] == "gzip" and first.headers["vary"] == "accept-encoding"
    tag = first.headers["etag"]
    same = got(client, status=304, headers={"if-none-match": tag})
    assert same.content == b"" and same.headers["etag"] == tag
    plain = got(client, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.json() == first.json()
    assert len(gzip.compress(plain.content)) < len(plain.content)
    engine.remove("id:3")
    changed = got(client, headers={"if-none-match": tag})
    assert changed.headers["etag"] != tag


def test_changed_index_says_so(engine, client, photos, without_extra):
    store(engine)
    draw(photos / "amber" / "new.png", 99)
    draw(photos / "blue" / "0.png", 98)
    gone = engine.find(str(photos / "rose" / "5.png"))[0].id
    engine.remove(str(photos / "rose" / "5.png"))
    engine.add([photos / "amber" / "new.png", photos / "blue" / "0.png"])
    answer = got(client).json()
    assert (answer["items"], answer["added"], answer["removed"]) == (22, 2, 2)
    assert gone not in answer["ids"] and len(answer["x"]) == len(answer["paths"]) == 22
    assert len(answer["fields"][0]["codes"]) == 22
    assert got(client, "?again=true").json() == answer  # without the extra, the old one is better than none


def test_drawn_in_the_background(engine, client, drawn):
    answer = got(client).json()
    assert answer["items"] == 24 and drawn == [1] and answer["redraws"]
    assert got(client).json() == answer and drawn == [1]
    assert stored_map.stamp(engine.opened_index.folder) is None  # a service that only reads writes nothing
    engine.remove("id:3")
    assert got(client).json()["removed"] == 1 and drawn == [1]


def test_drawn_again_after_a_change(engine, client, drawn, monkeypatch):
    monkeypatch.setattr(map_maker, "PATIENCE", 0)
    got(client)
    assert got(client, "?again=true").json()["removed"] == 0 and drawn == [1]
    engine.remove("id:3")
    answer = got(client, "?again=true").json()
    assert (answer["items"], answer["removed"]) == (23, 0) and drawn == [1, 1]
    monkeypatch.setattr(map_maker, "PATIENCE", 1e6)
    engine.remove("id:4")
    got(client, "?again=true")
    engine.remove("id:5")
    assert got(client, "?again=true").json()["removed"] == 1 and drawn == [1, 1, 1]


def test_a_writable_service_keeps_the_map(engine, drawn):
    client = Client(simsearch.create_app(engine, writable=True))
    answer = got(client).json()
    assert stored_map.read(engine.opened_index.folder).ids.tolist() == answer["ids"]
    other = Client(simsearch.create_app(engine))
    assert got(other).json() == answer and drawn == [1]


def test_a_newer_stored_map_is_taken(engine, client, drawn):
    got(client)
    engine.remove("id:3")
    store(engine, ("new", "newer"))
    assert got(client).json()["fields"][0]["names"] == ["new", "newer"]


def test_progress(engine, client, drawn, monkeypatch):
    go, read = threading.Event(), drawing.read_neighbours

    def wait(snapshots, progress):
        progress(7, 24)
        assert go.wait(20)
        return read(snapshots, progress=progress)

    monkeypatch.setattr(drawing, "read_neighbours", wait)
    monkeypatch.setattr(maps, "PATIENCE", 0.05)
    try:
        answer = got(client, status=202)
        assert answer.json() == {"step": "neighbours", "done": 7, "total": 24} and answer.headers["retry-after"] == "1"
    finally:
        go.set()
    monkeypatch.setattr(maps, "PATIENCE", 20)
    assert got(client).json()["items"] == 24


def test_no_map(engine, client, without_extra):
    answer = got(client, status=404)
    assert code(answer) == (404, "no_map")
    text = answer.json()["error"]["message"]
    assert "simsearch map -i index" in text and "pip install" in text and "map" in text


def test_too_few_items(engine, client, drawn):
    engine.remove([f"id:{number}" for number in range(1, 20)])
    answer = got(client, status=404)
    assert code(answer) == (404, "no_map") and "at least 10" in answer.json()["error"]["message"]


def test_too_large_for_the_service(engine, drawn, monkeypatch):
    monkeypatch.setattr(map_maker, "ITEM_BYTES", 1 << 40)
    answer = got(Client(simsearch.create_app(engine)), status=404)
    assert "simsearch map -i index" in answer.json()["error"]["message"]


def test_a_failure_is_told_and_can_be_tried_again(engine, client, drawn, monkeypatch):
    laid = layout.lay_out

    def fail(*arguments, **options):
        raise RuntimeError("the layout failed")

    monkeypatch.setattr(layout, "lay_out", fail)
    assert code(client("GET", "/v1/map")) == (503, "internal")
    monkeypatch.setattr(layout, "lay_out", laid)
    assert got(client).json()["items"] == 24


def test_damaged_map_is_drawn_again(engine, client, drawn):
    store(engine)
    file = engine.path / "derived" / "map" / "positions"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert got(client).json()["facts"]["positions"].startswith("t-SNE")


def test_wrong_use(engine, client):
    assert code(client("GET", "/v1/map?agian=true"))[0] == 422
    assert code(client("GET", "/v1/map?index=x")) == (404, "no_such_index")
    assert code(client("GET", "/v1/map?again=perhaps"))[0] == 422


def test_relative_paths(engine, photos, without_extra):
    store(engine)
    answer = got(Client(simsearch.create_app(engine, relative=True))).json()
    assert str(photos) not in str(answer) and answer["paths"][0].endswith(".png")


def test_of_what_is_in_the_openapi_document(client):
    document = client("GET", "/openapi.json").json()
    operation = document["paths"]["/v1/map"]["get"]
    assert operation["operationId"] == "map" and operation["tags"] == ["map"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Map"}
    assert {"ids", "x", "y", "fields"} <= set(document["components"]["schemas"]["Map"]["properties"])
    assert operation["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("MapProgress")
