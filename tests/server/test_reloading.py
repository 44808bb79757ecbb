"""The service follows the index on disk, also to another model."""

from typing import Any

import pytest

import simsearch
from simsearch.indexing import sync
from simsearch.server.reloading import ReloadableIndex
from tests.helpers.client import Client, code, png, upload

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")


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


def test_first_search_after_model_change(replaced, tmp_path, photos):
    client = Client(simsearch.create_app(replaced[0], writable=True))
    assert client.search(id=1).json()["model"] == "colours"
    replaced[1]()
    with simsearch.open(tmp_path / "after") as engine:
        vector = engine.features([png()])[0]
        found = client.search(vector=vector.tolist())
        assert found.status_code == 200, found.text
        assert [m["id"] for m in found.json()["matches"]] == [m.id for m in engine.search_by_vector(vector)]
        assert found.json()["model"] == engine.meta.model


def test_writes_go_into_current_index(replaced, tmp_path):
    client = Client(simsearch.create_app(replaced[0], writable=True))
    replaced[1]()
    made = client("POST", "/v1/items", files=upload(png()))
    assert made.status_code == 201, made.text
    with simsearch.open(tmp_path / "after") as engine:
        assert len(engine) == 13
        assert engine.item(made.json()["id"]).width == 16


@pytest.mark.parametrize("query", [{"flip": "true"}, {"crop": "0,0,8,8", "flip": "true"}, {"k": "3"}])
@pytest.mark.parametrize("by", ["picture", "item"])
def test_model_changes_during_search(replaced, tmp_path, photos, monkeypatch, query, by):
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


def test_copies_are_left_out_of_the_index_that_is_searched(replaced, tmp_path, photos, monkeypatch):
    """The ids of the copies are other ids in the index that replaces the first one during a search."""
    app = simsearch.create_app(replaced[0])
    batcher = app.state.service.batchers["default"]
    submit, data = batcher.submit, (photos / "blue" / "3.png").read_bytes()
    before = {item.id for item in replaced[0] if item.relative.endswith("blue/3.png")}

    def late(job):
        if not (tmp_path / "live").samefile(tmp_path / "after"):
            replaced[1]()
        return submit(job)

    monkeypatch.setattr(batcher, "submit", late)
    found = Client(app)("POST", "/v1/search", files=upload(data), data={"k": "100", "no_self": "true"})
    assert found.status_code == 200, found.text
    with simsearch.open(tmp_path / "after") as engine:
        own = {item.id for item in engine if item.relative.endswith("3.png") and "blue" in item.path}
        everything = {item.id for item in engine}
    assert len(before) == len(own) == 1 and before != own
    assert {match["id"] for match in found.json()["matches"]} == everything - own


def test_an_index_that_is_gone_and_comes_back(engine, tmp_path, monkeypatch):
    from simsearch.server import reloading

    monkeypatch.setattr(reloading, "PATIENCE", 0.2)
    client = Client(simsearch.create_app(engine))
    engine.path.rename(tmp_path / "away")
    found = client.search(id=1)
    assert code(found) == (503, "index_missing")
    assert str(tmp_path) not in found.text
    assert code(client("GET", "/ready")) == (503, "not_ready")
    assert client("GET", "/health").status_code == client("GET", "/metrics").status_code == 200
    (tmp_path / "away").rename(engine.path)
    assert client.search(id=1).status_code == client("GET", "/ready").status_code == 200


def test_what_may_be_outdated_is_not_done_again(tmp_path, photos, colours):
    """Preparing a query counts although the index is replaced meanwhile; an answer does not."""
    for name in "ab":
        with simsearch.build(photos, tmp_path / name, model=colours):
            pass
    (tmp_path / "live").symlink_to(tmp_path / "a")
    with simsearch.open(tmp_path / "live", model=colours) as engine:
        served = ReloadableIndex("live", engine)
        for may_be_outdated, expected, target in ((True, 1, "b"), (False, 2, "a")):
            engines: list[Any] = []

            def call(engine, engines=engines, target=target):
                engines.append(engine)
                (tmp_path / "next").symlink_to(tmp_path / target)
                (tmp_path / "next").rename(tmp_path / "live")

            served.run(call, may_be_outdated=may_be_outdated)
            assert len(engines) == expected


def test_a_lagging_generation_is_seen(client, engine, photos):
    """The next request finds committed items."""
    before = client("GET", "/v1/indexes").json()["indexes"][0]
    sync.remove(engine.index, engine.find(1))
    after = client("GET", "/v1/indexes").json()["indexes"][0]
    assert (after["items"], after["generation"]) == (before["items"] - 1, before["generation"] + 1)
