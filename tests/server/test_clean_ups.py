"""Cleaning up over HTTP: only what was chosen goes, to where the service was told, and everything can be undone."""

import errno
import os
import shutil
import signal
import tarfile
import threading
import time
from typing import Any

import pytest

import simsearch
from simsearch.curation.cleanup import acts, run
from simsearch.errors import UsageError
from simsearch.indexing.compact import compact
from simsearch.server import clean_ups, duplicates
from simsearch.storage.lock import writer_lock
from tests.helpers.client import Client, code, upload
from tests.helpers.dying import trace
from tests.helpers.pictures import draw

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")

CLEAN_UP, RESTORE = "/v1/duplicates/clean-up", "/v1/duplicates/restore"


@pytest.fixture
def photos(photos, tmp_path, monkeypatch):
    """The 24 pictures; amber/0.png has two copies, blue/0.png one."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    (photos / "z").mkdir()
    for copy, name in [("amber/copy.png", "amber/0.png"), ("z/copy.png", "amber/0.png"), ("z/blue.png", "blue/0.png")]:
        shutil.copy(photos / name, photos / copy)
    return photos


@pytest.fixture
def moving(engine, tmp_path):
    return Client(simsearch.create_app(engine, writable=True, allow_cleanup=True, move_to=str(tmp_path / "moved")))


def contents(folder):
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def listed(client, query=""):
    end = time.monotonic() + 60
    while (response := client("GET", "/v1/duplicates" + query)).status_code == 202 and time.monotonic() < end:
        time.sleep(0.1)  # still measuring or comparing
    assert response.status_code == 200, response.text
    return response.json()["groups"]


def choice(group, keep=(0,)):
    """Keeps the items at these places of a group; all others go."""
    ids = [item["id"] for item in group["items"]]
    kept = [ids[place] for place in keep]
    return {"group": group["group"], "keep": kept, "go": [number for number in ids if number not in kept]}


def clean(client, *choices, **body):
    return client("POST", CLEAN_UP, json={"groups": list(choices), "dry_run": False, **body})


def test_off_unless_both_flags_are_given(engine, photos):
    before = contents(photos)
    for writable in (False, True):
        client = Client(simsearch.create_app(engine, writable=writable))
        refused = clean(client, choice(listed(client)[0]))
        assert code(refused) == (405, "cleanup_off")
        assert refused.headers["allow"] == "GET, HEAD"
        assert "--writable --allow-cleanup" in refused.json()["error"]["message"]
        assert code(client("POST", RESTORE, json={"journal": "x"})) == (405, "cleanup_off")
        assert client("GET", CLEAN_UP).json() == {"action": None, "clean_ups": []}
        facts = client("GET", "/v1/indexes").json()
        assert (facts["cleanup"], facts["move_to"]) == (None, None)
    assert contents(photos) == before


def test_moved_and_brought_back(engine, photos, tmp_path, moving):
    before, count = contents(photos), len(engine)
    group = listed(moving)[0]
    dry = moving("POST", CLEAN_UP, json={"groups": [choice(group)]}).json()
    assert (dry["dry_run"], dry["files"], dry["removed"], dry["journal"]) == (True, 2, 0, None)
    assert [item["action"] for item in dry["items"]] == ["keep", "move", "move"]
    assert contents(photos) == before and not (tmp_path / "moved").exists()
    done = clean(moving, choice(group), action="move").json()
    assert (done["files"], done["removed"], done["bytes"]) == (2, 2, dry["bytes"])
    assert sorted(contents(tmp_path / "moved")) == ["amber/copy.png", "z/copy.png"]
    assert sorted(set(before) - set(contents(photos))) == ["amber/copy.png", "z/copy.png"]
    matches = moving.search(id=group["items"][0]["id"], k=30).json()["matches"]
    assert not {match["id"] for match in matches} & set(choice(group)["go"])
    assert len(engine) == count - 2
    entry = moving("GET", CLEAN_UP).json()["clean_ups"][0]
    assert (entry["journal"], entry["files"], entry["away"], entry["running"]) == (done["journal"], 2, 2, False)
    assert done["command"] == entry["command"] == f"simsearch restore {tmp_path}/index.journals/{done['journal']}"
    undone = moving("POST", RESTORE, json={"journal": done["journal"]}).json()
    assert (undone["files"], undone["indexed"], undone["problems"]) == (2, 2, [])
    assert contents(photos) == before and len(engine) == count
    assert [len(each["items"]) for each in listed(moving)] == [3, 2]
    assert engine.verify().problems == ()
    assert moving("GET", CLEAN_UP).json()["clean_ups"][0]["away"] == 0
    again = moving("POST", RESTORE, json={"journal": done["journal"]}).json()
    assert (again["files"], again["untouched"], again["indexed"]) == (0, 2, 2)
    with simsearch.build(photos, tmp_path / "index", model=engine.load_model()) as rebuilt:
        assert len(rebuilt) == count


def test_trash_without_move_to(engine, photos, tmp_path):
    client = Client(simsearch.create_app(engine, writable=True, allow_cleanup=True))
    group = listed(client)[1]
    refused = clean(client, choice(group), action="move")
    assert code(refused) == (422, "bad_argument") and "--move-to" in refused.json()["error"]["message"]
    before = contents(photos)
    done = clean(client, choice(group), action="trash").json()
    assert (done["action"], done["files"]) == ("trash", 1)
    assert (tmp_path / "share" / "Trash" / "files" / "blue.png").exists()
    assert client("POST", RESTORE, json={"journal": done["journal"]}).json()["files"] == 1
    assert contents(photos) == before


def test_several_stay_and_others_are_left_alone(moving, photos, tmp_path):
    group = listed(moving)[0]
    ids = [item["id"] for item in group["items"]]
    done = clean(moving, {"group": group["group"], "keep": [ids[2]], "go": [ids[1]]}).json()
    assert done["files"] == 1
    assert (photos / "amber" / "0.png").exists() and (photos / "z" / "copy.png").exists()
    assert not (photos / "amber" / "copy.png").exists()
    after = listed(moving)[0]
    assert [item["id"] for item in after["items"]] == [ids[0], ids[2]]
    assert after["group"] != group["group"]


def test_stale_groups_change_nothing(engine, moving, photos):
    first, second = listed(moving)
    assert clean(moving, choice(second)).json()["files"] == 1
    before = contents(photos)
    assert code(clean(moving, choice(second))) == (409, "groups_changed")
    assert code(clean(moving, choice(first), choice(second))) == (409, "groups_changed")
    engine.remove(str(photos / "z" / "copy.png"))
    assert code(clean(moving, choice(first))) == (409, "groups_changed")
    assert code(clean(moving, choice(first), dry_run=True)) == (409, "groups_changed")
    assert contents(photos) == before


def test_never_listed_groups(moving):
    assert code(clean(moving, {"group": "0" * 32, "keep": [1], "go": [2]})) == (409, "groups_changed")


def test_other_items_and_wrong_bodies(moving, photos, tmp_path):
    before = contents(photos)
    first, second = listed(moving)
    name, ids = first["group"], [item["id"] for item in first["items"]]
    stranger = next(n for n in range(1, 28) if n not in [*ids, *(item["id"] for item in second["items"])])
    for wrong in (
        [{"group": name, "keep": [ids[0]], "go": [stranger]}],
        [{"group": name, "keep": [stranger], "go": [ids[0]]}],
        [{"group": name, "keep": [second["items"][0]["id"]], "go": [ids[0]]}],
        [{"group": name, "keep": [], "go": ids}],
        [{"group": name, "keep": [ids[0]], "go": []}],
        [{"group": name, "keep": [ids[0]], "go": [ids[0]]}],
        [{"group": name, "keep": [ids[0], ids[0]], "go": [ids[1]]}],
        [choice(first), choice(first, (1,))],
        [{**choice(first), "into": "/tmp"}],
        [{**choice(first), "keep": [str(ids[0])]}],
        [{**choice(first), "group": "../../etc"}],
        [{**choice(first), "group": None}],
        [],
        None,
        "x",
    ):
        refused = moving("POST", CLEAN_UP, json={"groups": wrong, "dry_run": False})
        assert code(refused) == (422, "bad_argument"), wrong
    whole = {"groups": [choice(first)], "dry_run": False}
    for more in (
        {"into": str(tmp_path / "mine")},
        {"move_to": "/tmp"},
        {"journal": "/tmp/x"},
        {"action": "hardlink"},
        {"dry_run": 0},
        {"action": "trash"},
        {"max_distance": -1},
    ):
        assert code(moving("POST", CLEAN_UP, json={**whole, **more})) == (422, "bad_argument"), more
    assert moving("POST", CLEAN_UP + "?into=/tmp", json=whole).status_code == 422
    assert contents(photos) == before and not (tmp_path / "moved").exists()


def test_pages_of_other_sites(moving, photos):
    before, body = contents(photos), {"groups": [choice(listed(moving)[0])], "dry_run": False}
    for origin in ("http://evil.example", "null", "https://127.0.0.1.evil.example"):
        assert code(moving("POST", CLEAN_UP, json=body, headers={"origin": origin})) == (400, "cross_origin")
        assert code(moving("POST", RESTORE, json={"journal": "x"}, headers={"origin": origin})) == (400, "cross_origin")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"):
        for path in (CLEAN_UP, RESTORE, "/v1/duplicates/ignore"):
            refused = moving("POST", path, content=b"{}", headers={"content-type": kind})
            assert code(refused) == (415, "unsupported_media_type")
    assert contents(photos) == before


def test_needs_the_key(engine):
    client = Client(simsearch.create_app(engine, writable=True, allow_cleanup=True, api_keys="sesame"))
    for method, path in (("GET", "/v1/duplicates"), ("POST", CLEAN_UP), ("POST", RESTORE), ("GET", CLEAN_UP)):
        assert code(client(method, path)) == (401, "unauthorized")


def test_file_that_changed_or_became_a_link(moving, photos):
    first, second = listed(moving)
    (photos / "z" / "copy.png").write_bytes((photos / "rose" / "1.png").read_bytes())
    done = clean(moving, choice(first)).json()
    assert done["files"] == 1
    left = next(item for item in done["items"] if item["action"] == "leave")
    assert "has changed" in left["reason"]
    (photos / "z" / "blue.png").unlink()
    (photos / "z" / "blue.png").symlink_to(photos / "blue" / "0.png")
    done = clean(moving, choice(second)).json()
    assert (done["files"], done["journal"]) == (0, None)
    assert (photos / "z" / "blue.png").is_symlink() and (photos / "blue" / "0.png").exists()


def test_kept_picture_that_has_gone(moving, photos):
    group = listed(moving)[1]
    (photos / "blue" / "0.png").unlink()
    done = clean(moving, choice(group)).json()
    assert done["files"] == 0 and (photos / "z" / "blue.png").exists()
    assert {item["action"] for item in done["items"]} == {"leave"}


def test_members_that_cannot_be_moved(tmp_path, colours, monkeypatch):
    """In an archive, uploaded, or reached by a link that leads out of the source."""
    draw(tmp_path / "photos" / "a" / "one.png", 1)
    draw(tmp_path / "photos" / "a" / "other.png", 2)
    with tarfile.open(tmp_path / "old.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "a" / "one.png", "one.png")
    (tmp_path / "away").mkdir()
    shutil.copy(tmp_path / "photos" / "a" / "one.png", tmp_path / "away" / "one.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "away")
    with simsearch.build([tmp_path / "photos", tmp_path / "old.tar"], tmp_path / "index", model=colours) as engine:
        moved = tmp_path / "moved"
        client = Client(simsearch.create_app(engine, writable=True, allow_cleanup=True, move_to=str(moved)))
        data = (tmp_path / "photos" / "a" / "one.png").read_bytes()
        assert client("POST", "/v1/items", files=upload(data)).status_code == 201
        query = "?max_distance=0"
        (group,) = listed(client, query)
        reasons = [item["fixed"] for item in group["items"]]
        assert group["items"][0]["keep"] and reasons[0] is None
        assert sorted(reasons[1:]) == [
            "it is in an archive or a table",
            "it lies outside its source",
            "it was uploaded to this service, which removes it by DELETE",
        ]
        before = contents(tmp_path / "index" / "uploads"), contents(tmp_path / "away")
        done = clean(client, choice(group), max_distance=0).json()
        assert (done["files"], len(done["items"])) == (0, 3)
        assert (contents(tmp_path / "index" / "uploads"), contents(tmp_path / "away")) == before
        assert not moved.exists()


def test_only_like_another_of_its_chain(tmp_path, colours):
    from PIL import Image

    (tmp_path / "chain").mkdir()
    for name, red in (("a", 100), ("b", 110), ("c", 120), ("x", 250), ("y", 0)):
        Image.new("RGB", (16, 16), (red, 0, 0)).save(tmp_path / "chain" / f"{name}.png")
    with simsearch.build(tmp_path / "chain", tmp_path / "index", model=colours) as engine:
        moved = str(tmp_path / "moved")
        client = Client(simsearch.create_app(engine, writable=True, allow_cleanup=True, move_to=moved))
        (group,) = listed(client, "?max_distance=0.1")
        done = clean(client, choice(group), max_distance=0.1).json()
        assert done["files"] == 1 and (tmp_path / "chain" / "c.png").exists()
        assert "not near the one to keep" in next(item["reason"] for item in done["items"] if item["action"] == "leave")


def test_two_clients_at_once(engine, moving, photos, tmp_path):
    """Each keeps what the other one moves: one of them comes first, and nothing is lost."""
    group = listed(moving)[1]
    answers: list[Any] = [None, None]

    def go(place):
        answers[place] = clean(moving, choice(group, (place,)))

    threads = [threading.Thread(target=go, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert (photos / "blue" / "0.png").exists() != (photos / "z" / "blue.png").exists()
    assert len(contents(tmp_path / "moved")) == 1


def test_nothing_is_done_while_another_process_writes(engine, moving, photos, monkeypatch):
    before, group = contents(photos), listed(moving)[0]
    monkeypatch.setattr(clean_ups, "LOCK_PATIENCE", 0.1)
    with writer_lock(engine.path):
        assert code(clean(moving, choice(group))) == (503, "index_locked")
    assert contents(photos) == before
    assert clean(moving, choice(group)).json()["files"] == 2


def test_progress_of_a_long_run(moving, photos, monkeypatch):
    group, event, act = listed(moving)[0], threading.Event(), acts.act

    def slow(task, do, journal):
        assert event.wait(20)
        return act(task, do, journal)

    monkeypatch.setattr(run, "act", slow)
    monkeypatch.setattr(duplicates, "RUN_PATIENCE", 0.3)
    answer = clean(moving, choice(group))
    assert (answer.status_code, answer.json()["done"], answer.json()["total"]) == (202, 0, 2)
    entry = moving("GET", CLEAN_UP).json()["clean_ups"][0]
    assert (entry["journal"], entry["running"]) == (answer.json()["journal"], True)
    event.set()
    for _ in range(200):
        entry = moving("GET", CLEAN_UP).json()["clean_ups"][0]
        if not entry["running"]:
            break
    assert (entry["files"], entry["away"]) == (2, 2)


def test_names_of_journals(engine, moving, photos, tmp_path, colours):
    done = clean(moving, choice(listed(moving)[1])).json()
    folder = tmp_path / "index.journals"
    (tmp_path / "elsewhere.jsonl").write_bytes((folder / done["journal"]).read_bytes())
    linked, foreign = (f"simsearch-cleanup-20260101-00000{n}-00000000.jsonl" for n in range(2))
    (folder / linked).symlink_to(folder / done["journal"])
    text = (folder / done["journal"]).read_text()
    (folder / foreign).write_text(text.replace(str(tmp_path / "index"), str(tmp_path / "other")))
    before = contents(photos)
    for name in (
        *(linked, foreign, "../elsewhere.jsonl", str(tmp_path / "elsewhere.jsonl"), str(folder / done["journal"])),
        *("", ".", "..", done["journal"] + "\n", done["journal"][:-1], "x" * 101, "\0", "%2e%2e"),
    ):
        refused = moving("POST", RESTORE, json={"journal": name})
        assert refused.status_code in (404, 422), name
        assert contents(photos) == before
    assert [entry["journal"] for entry in moving("GET", CLEAN_UP).json()["clean_ups"]] == [done["journal"]]
    assert code(moving("POST", RESTORE, json={"journal": 7})) == (422, "bad_argument")
    assert code(moving("POST", RESTORE, json={})) == (422, "bad_argument")
    assert moving("POST", RESTORE, json={"journal": done["journal"]}).json()["files"] == 1


def test_run_that_stops_in_the_middle(engine, moving, photos, monkeypatch):
    """What went is out of the index, the answer says so, and undoing brings it back."""
    before, count, group, act = contents(photos), len(engine), listed(moving)[0], acts.act

    def fail_second(task, do, journal):
        if journal._last:
            raise UsageError("the journal cannot be written")
        return act(task, do, journal)

    with monkeypatch.context() as patch:
        patch.setattr(run, "act", fail_second)
        failed = clean(moving, choice(group))
    assert code(failed) == (503, "clean_up_stopped")
    assert "after 1 file" in failed.json()["error"]["message"]
    assert len(engine) == count - 1
    (entry,) = moving("GET", CLEAN_UP).json()["clean_ups"]
    undone = moving("POST", RESTORE, json={"journal": entry["journal"]}).json()
    assert (undone["files"], undone["indexed"]) == (1, 1)
    assert contents(photos) == before and len(engine) == count


def test_undone_after_the_features_have_gone(engine, moving, photos, tmp_path):
    done = clean(moving, choice(listed(moving)[0])).json()
    compact(engine.index)
    undone = moving("POST", RESTORE, json={"journal": done["journal"]}).json()
    assert (undone["files"], undone["indexed"], len(engine)) == (2, 0, 25)
    engine.add(photos)
    assert len(engine) == 27 and engine.verify().problems == ()


def test_full_disk_ends_the_run(moving, photos, monkeypatch):
    before, act = contents(photos), acts.act

    def full(task, do, journal):
        if journal._last:
            raise OSError(errno.ENOSPC, "No space left on device")
        return act(task, do, journal)

    monkeypatch.setattr(run, "act", full)
    first, second = listed(moving)
    done = clean(moving, choice(first), choice(second)).json()
    assert (done["files"], done["removed"]) == (1, 1)
    left = [item["reason"] for item in done["items"] if item["action"] == "leave"]
    assert left == ["No space left on device", "the run ended before it"]
    assert len(contents(photos)) == len(before) - 1


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8, 0.95])
def test_killed_service(engine, photos, tmp_path, colours, part):
    """After kill -9 anywhere in a clean-up, the next service brings every picture back."""
    before = contents(photos)
    options: dict[str, Any] = {"writable": True, "allow_cleanup": True, "move_to": str(tmp_path / "moved")}
    engine.close()

    def child(fatal):
        client = Client(simsearch.create_app(simsearch.open(tmp_path / "index", model=colours), **options))
        first, second = listed(client)
        counts = []

        def traced(work):
            counts.append(trace(fatal, acts, run, clean_ups))
            return work

        service = client.app.state.service
        start = service.clean_ups.start
        service.clean_ups.start = lambda work, name: start(lambda each: (traced(None), work(each))[1], name)
        answer = clean(client, choice(first), choice(second))
        assert answer.json()["files"] == 3
        return counts[0][0]

    def fork(fatal):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(writing, str(child(fatal)).encode())
                os._exit(0)
            except BaseException:
                os._exit(1)
        os.close(writing)
        with open(reading, "rb") as file:
            return os.waitpid(pid, 0)[1], int(file.read() or 0)

    status, lines = fork(-1)
    assert status == 0 and lines > 50
    with simsearch.open(tmp_path / "index", model=colours) as again:
        client = Client(simsearch.create_app(again, **options))
        assert undo_all(client) == 3
        assert contents(photos) == before
    simsearch.build(photos, tmp_path / "index", model=colours).close()
    status, _ = fork(int(lines * part))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    with simsearch.open(tmp_path / "index", model=colours) as again:
        undo_all(Client(simsearch.create_app(again, **options)))
        assert contents(photos) == before
        assert again.verify().problems == ()
    with simsearch.build(photos, tmp_path / "index", model=colours) as again:
        assert len(again) == 27


def undo_all(client):
    """Undoes all clean-ups that are listed; the number of files."""
    count = 0
    for entry in client("GET", CLEAN_UP).json()["clean_ups"]:
        answer = client("POST", RESTORE, json={"journal": entry["journal"]}).json()
        assert answer["problems"] == []
        count += answer["files"]
    return count


def test_settings_that_cannot_be_used(engine, photos, tmp_path):
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"allow_cleanup": True}, "changes the index"),
        ({"writable": True, "move_to": "x"}, "move_to has no effect"),
        ({"writable": True, "journals": "x"}, "journals has no effect"),
        ({"writable": True, "allow_cleanup": True, "move_to": ""}, "names no folder"),
        ({"writable": True, "allow_cleanup": True, "move_to": str(photos / "sub")}, "inside the source"),
        ({"writable": True, "allow_cleanup": True, "move_to": str(photos / "z" / "copy.png")}, "not a folder"),
        ({"writable": True, "allow_cleanup": True, "journals": str(photos / "z" / "copy.png")}, "journals cannot be"),
    )
    for options, words in cases:
        with pytest.raises(UsageError, match=words):
            simsearch.create_app(engine, **options)
    assert not (photos / "sub").exists()


def test_journals_of_several_indexes_in_one_folder(engine, tmp_path, colours):
    shutil.copytree(tmp_path / "photos", tmp_path / "more")
    with simsearch.build(tmp_path / "more", tmp_path / "second", model=colours) as other:
        options: dict[str, Any] = {"move_to": str(tmp_path / "moved"), "journals": str(tmp_path / "log")}
        app = simsearch.create_app({"a": engine, "b": other}, writable=True, allow_cleanup=True, **options)
        client = Client(app)
        group = client("GET", "/v1/duplicates?index=b").json()["groups"][1]
        body = {"groups": [choice(group)], "dry_run": False}
        done = client("POST", f"{CLEAN_UP}?index=b", json=body).json()
        assert (tmp_path / "log" / done["journal"]).is_file()
        assert client("GET", f"{CLEAN_UP}?index=a").json()["clean_ups"] == []
        assert client("POST", f"{RESTORE}?index=a", json={"journal": done["journal"]}).status_code == 404
        assert client("POST", f"{RESTORE}?index=b", json={"journal": done["journal"]}).json()["files"] == 1


def test_relative_paths_hide_folders(engine, tmp_path):
    options: dict[str, Any] = {"move_to": str(tmp_path / "moved"), "relative": True}
    client = Client(simsearch.create_app(engine, writable=True, allow_cleanup=True, **options))
    assert client("GET", "/v1/indexes").json()["move_to"] == "moved"
    done = clean(client, choice(listed(client)[0]))
    assert str(tmp_path) not in done.text and done.json()["files"] == 2
    assert str(tmp_path) not in client("GET", CLEAN_UP).text


def test_document_of_a_service_that_cleans_up(engine):
    document = simsearch.create_app(engine, writable=True, allow_cleanup=True).openapi()
    assert {"CleanUpRequest", "RestoreRequest", "IgnoreRequest", "DuplicateGroups", "CleanUp"} <= set(
        document["components"]["schemas"]
    )
    assert set(document["paths"][CLEAN_UP]) == {"get", "post"}
    for path in (CLEAN_UP, RESTORE, "/v1/duplicates", "/v1/duplicates/ignore"):
        for operation in document["paths"][path].values():
            assert operation["tags"] == ["duplicates"]
    quiet = simsearch.create_app(engine).openapi()["paths"]
    assert "/v1/duplicates" in quiet and CLEAN_UP not in quiet and RESTORE not in quiet
