"""Groups of duplicates over HTTP: what is listed, when it is computed, and what is remembered as no duplicates."""

import os
import shutil
import threading
import time

import pytest

import simsearch
from simsearch.search import duplicates as near
from simsearch.search.copy_threshold import Threshold, copy_threshold
from simsearch.server import decoding, duplicates, near_groups
from tests.helpers.client import Client, code, png, upload
from tests.helpers.pictures import draw
from tests.search.test_duplicates import scenes

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")


@pytest.fixture
def photos(photos):
    """The 24 pictures; amber/0.png has two copies, blue/0.png one."""
    (photos / "z").mkdir()
    for copy, name in [("amber/copy.png", "amber/0.png"), ("z/copy.png", "amber/0.png"), ("z/blue.png", "blue/0.png")]:
        shutil.copy(photos / name, photos / copy)
    return photos


@pytest.fixture
def counted(monkeypatch):
    """Counts the times that all items are compared."""
    calls, compare = [], near.duplicate_groups

    def count(*arguments, **options):
        calls.append(1)
        return compare(*arguments, **options)

    monkeypatch.setattr(near, "duplicate_groups", count)
    return calls


@pytest.fixture
def held(monkeypatch):
    """Holds the comparison until the event is set."""
    event, compare = threading.Event(), near.duplicate_groups

    def wait(snapshots, distance, progress, *rest, **options):
        progress(7, 27)
        assert event.wait(20)
        return compare(snapshots, distance, progress, *rest, **options)

    monkeypatch.setattr(near, "duplicate_groups", wait)
    monkeypatch.setattr(duplicates, "PATIENCE", 0.05)
    yield event
    event.set()


def listed(client, query="", status=200):
    answer = client("GET", "/v1/duplicates" + query)
    end = time.monotonic() + 60
    while status == 200 and answer.status_code == 202 and time.monotonic() < end:  # still measuring or comparing
        answer = client("GET", "/v1/duplicates" + query)
    assert answer.status_code == status, answer.text
    return answer.json()


def names(answer):
    return [["/".join(item["path"].split("/")[-2:]) for item in group["items"]] for group in answer["groups"]]


def test_groups_and_their_items(client, engine, photos):
    answer = listed(client)
    assert names(answer) == [["amber/0.png", "amber/copy.png", "z/copy.png"], ["blue/0.png", "z/blue.png"]]
    assert (answer["total"], answer["items"], answer["next"], answer["complete"]) == (2, 5, None, True)
    assert answer["max_distance"] == pytest.approx(copy_threshold(engine.opened_index, engine.model).distance)
    assert answer["copies"]["JPEG 50"] > 0
    first, second, _ = answer["groups"][0]["items"]
    assert {key: first[key] for key in ("distance", "keep", "is_copy", "fixed")} == {
        "distance": 0,
        "keep": True,
        "is_copy": True,
        "fixed": None,
    }
    assert (second["keep"], second["distance"]) == (False, 0)
    item = client("GET", f"/v1/items/{first['id']}").json()
    assert item.items() <= first.items()
    command = engine.duplicates(keep="largest")
    assert [[m.item.id for m in group] for group in command] == [
        [item["id"] for item in group["items"]] for group in answer["groups"]
    ]


def test_rules_distances_and_pages(client):
    assert names(listed(client, "?keep=shortest-path"))[0][0] == "z/copy.png"
    assert listed(client, "?max_distance=100")["groups"][0]["size"] == 27
    assert [group["size"] for group in listed(client, "?max_distance=0")["groups"]] == [3, 2]
    first = listed(client, "?limit=1")
    second = listed(client, f"?limit=1&after={first['next']}")
    assert names(first) + names(second) == names(listed(client))
    assert second["next"] is None
    assert listed(client, "?after=2.999")["groups"] == []
    wrong = (
        "keep=best",
        "keep=under:/etc",
        "keep=against",
        "max_distance=-1",
        "max_distance=nan",
        "limit=0",
        "after=x",
    )
    for query in (*wrong, "into=/tmp", "limit=101"):
        assert client("GET", f"/v1/duplicates?{query}").status_code == 422, query


def test_gone_files_and_relative_paths(engine, photos):
    client = Client(simsearch.create_app(engine, relative=True))
    assert listed(client)["groups"][1]["items"][0]["path"] == "blue/0.png"
    (photos / "z" / "blue.png").unlink()
    (photos / "z" / "copy.png").write_bytes(png())
    assert names(listed(client)) == [["amber/0.png", "amber/copy.png"]]


def test_computed_once_for_each_state(client, engine, photos, counted):
    listed(client)
    listed(client, "?keep=newest")
    assert len(counted) == 1
    engine.remove(str(photos / "z" / "copy.png"))
    assert names(listed(client)) == [["amber/0.png", "amber/copy.png"], ["blue/0.png", "z/blue.png"]]
    engine.remove(str(photos / "blue" / "0.png"))
    assert names(listed(client)) == [["amber/0.png", "amber/copy.png"]]
    assert len(counted) == 1
    shutil.copy(photos / "rose" / "0.png", photos / "rose" / "copy.png")
    engine.add(photos)
    for _ in range(100):  # the groups from before are used for a moment while items are being added
        if len(found := names(listed(client))) > 2:
            break
        time.sleep(0.02)
    assert ["rose/0.png", "rose/copy.png"] in found
    assert len(counted) == 2


def test_a_chain_that_loses_its_link(tmp_path, colours):
    """Of a - b - c, where only neighbours are near, b goes: a and c are no group."""
    from PIL import Image

    for name, red in (("a", 100), ("b", 110), ("c", 120), ("x", 250), ("y", 0)):
        path = tmp_path / "chain" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (red, 0, 0)).save(path)
    with simsearch.build(tmp_path / "chain", tmp_path / "index", model=colours) as engine:
        client = Client(simsearch.create_app(engine))
        query = "?max_distance=0.1"
        assert names(listed(client, query)) == [["chain/a.png", "chain/b.png", "chain/c.png"]]
        assert [item["distance"] > 0.1 for item in listed(client, query)["groups"][0]["items"]] == [False, False, True]
        assert [item["is_copy"] for item in listed(client, query)["groups"][0]["items"]] == [True, True, False]
        engine.remove(str(tmp_path / "chain" / "b.png"))
        assert listed(client, query)["groups"] == []


def test_copies_are_those_that_a_clean_up_acts_on(tmp_path, colours, monkeypatch):
    """All lie beyond the limit, and pixels decide; the last picture of the chain is a copy only of the one before."""
    from PIL import Image

    scenes(tmp_path / "p", 4)
    with Image.open(tmp_path / "p" / "1.png") as image:
        for number, width in enumerate((152, 148, 140)):
            image.crop((0, 0, width, 120)).save(tmp_path / "p" / f"1-{number}.png")
    os.utime(tmp_path / "p" / "1-1.png", (3e9, 3e9))  # the newest
    monkeypatch.setattr(near_groups, "copy_threshold", lambda *_, **__: Threshold(0.0, {}, 1e3))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    with simsearch.build(tmp_path / "p", tmp_path / "index", model=colours) as engine:
        client = Client(simsearch.create_app(engine, writable=True, allow_cleanup=True))
        wanted = {"newest": {"1.png", "1-0.png", "1-1.png", "1-2.png"}, "largest": {"1.png", "1-0.png", "1-1.png"}}
        for rule, copies in wanted.items():
            (group,) = listed(client, f"?keep={rule}")["groups"]
            items = {item["path"].split("/")[-1]: item for item in group["items"]}
            assert max(item["distance"] for item in items.values()) > listed(client)["max_distance"]
            assert {name for name, item in items.items() if item["is_copy"]} == copies
        first, *others = group["items"]
        choice = {"group": group["group"], "keep": [first["id"]], "go": [item["id"] for item in others]}
        plan = client("POST", "/v1/duplicates/clean-up", json={"groups": [choice]}).json()
        acts = {item["id"] for item in plan["items"] if item["action"] == "trash"}
        assert acts == {item["id"] for item in others if item["is_copy"]}


def test_pictures_are_compared_within_the_limits_of_the_service(tmp_path, colours, monkeypatch):
    """A picture that is too large for the service goes by distance, here of 0; the others take the memory for decoding."""
    from PIL import Image

    held, hold = [], decoding.Lane.hold

    def count(lane, size):
        held.append(size)
        return hold(lane, size)

    scenes(tmp_path / "p", 4)
    with Image.open(tmp_path / "p" / "1.png") as image:
        image.resize((80, 60)).save(tmp_path / "p" / "small.png")
    monkeypatch.setattr(near_groups, "copy_threshold", lambda *_, **__: Threshold(0.0, {}, 1e3))
    monkeypatch.setattr(decoding.Lane, "hold", count)
    with simsearch.build(tmp_path / "p", tmp_path / "index", model=colours) as engine:
        assert names(listed(Client(simsearch.create_app(engine)))) == [["p/1.png", "p/small.png"]]
        assert len(held) == 5
        assert listed(Client(simsearch.create_app(engine, max_pixels=160 * 120 - 1)))["groups"] == []


def test_progress_while_searches_go_on(client, held, counted):
    for _ in range(2):
        answer = client("GET", "/v1/duplicates?max_distance=1")
        assert (answer.status_code, answer.headers["retry-after"]) == (202, "1")
        assert answer.json() == {"done": 7, "total": 27}
    assert client.search(id=1, k=1).status_code == 200
    for distance in (2, 3):
        listed(client, f"?max_distance={distance}", 202)
    assert code(client("GET", "/v1/duplicates?max_distance=4")) == (429, "too_many_requests")
    held.set()
    for distance in (1, 2, 3):
        for _ in range(200):
            if client("GET", f"/v1/duplicates?max_distance={distance}").status_code == 200:
                break
            time.sleep(0.01)
        assert listed(client, f"?max_distance={distance}")["total"] > 0
    assert len(counted) == 3


def test_limits_of_time_and_memory(client, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(near_groups, "SECONDS", -1.0)
        assert code(client("GET", "/v1/duplicates")) == (503, "timeout")
    with monkeypatch.context() as patch:
        patch.setattr(near_groups, "ITEM_BYTES", 1 << 40)
        assert code(client("GET", "/v1/duplicates")) == (503, "too_large")
    assert listed(client)["total"] == 2


def test_a_stop_ends_the_comparison(engine, held):
    app = simsearch.create_app(engine)
    client = Client(app)
    listed(client, "?max_distance=1", 202)
    app.state.service.finder.stop()
    held.set()
    app.state.service.finder.close()
    assert code(client("GET", "/v1/duplicates?max_distance=1")) == (503, "draining")


def test_other_names_of_a_file_are_no_duplicates(tmp_path, colours):
    draw(tmp_path / "photos" / "a" / "one.png", 1)
    draw(tmp_path / "photos" / "a" / "other.png", 2)
    (tmp_path / "photos" / "a" / "link.png").symlink_to("one.png")
    (tmp_path / "photos" / "a" / "hard.png").hardlink_to(tmp_path / "photos" / "a" / "one.png")
    with simsearch.build(tmp_path / "photos", tmp_path / "index", model=colours) as engine:
        assert listed(Client(simsearch.create_app(engine)), "?max_distance=0")["groups"] == []


def test_remembered_as_no_duplicates(engine):
    assert code(Client(simsearch.create_app(engine))("POST", "/v1/duplicates/ignore", json={})) == (405, "read_only")
    client = Client(simsearch.create_app(engine, writable=True))
    groups = listed(client)["groups"]

    def ignore(**body):
        return client("POST", "/v1/duplicates/ignore", json={"groups": [groups[0]["group"]], **body})

    assert ignore().json() == {"groups": [groups[0]["group"]], "ignored": True}
    assert [group["group"] for group in listed(client)["groups"]] == [groups[1]["group"]]
    assert len(engine.duplicates()) == 1
    assert ignore(ignored=False).status_code == 200
    assert len(listed(client)["groups"]) == len(engine.duplicates()) == 2
    assert code(ignore(groups=["0" * 32])) == (409, "groups_changed")
    assert code(ignore(groups=["../x"])) == (422, "bad_argument")
    assert code(ignore(groups=[])) == (422, "bad_argument")
    assert code(ignore(max_distance=7)) == (409, "groups_changed")  # never listed with that
    assert code(client("POST", "/v1/duplicates/ignore", files=upload(png()))) == (415, "unsupported_media_type")
