"""Images and removals written over HTTP."""

import hashlib
import json

import pytest

import simsearch
from simsearch.errors import UsageError
from simsearch.indexing import options, sync, upload_folder
from simsearch.server.uploads import Uploads
from tests.helpers.client import Client, code, png, upload

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")


def test_writing(engine):
    off = Client(simsearch.create_app(engine))
    for refused in (off("POST", "/v1/items", files=upload(png())), off("DELETE", "/v1/items/1")):
        assert code(refused) == (405, "read_only")
        assert refused.headers["allow"] == "GET, HEAD"
    client = Client(simsearch.create_app(engine, writable=True))
    made = client("POST", "/v1/items", files=upload(png()), data={"label": "../x", "metadata": '{"year": 2000}'})
    assert made.status_code == 201
    assert (made.json()["label"], made.json()["metadata"]) == ("../x", {"year": 2000})
    assert client("POST", "/v1/items", files=upload(png())).status_code == 200
    assert client("POST", "/v1/search", files=upload(png()), data={"k": "1"}).json()["matches"][0]["distance"] == 0
    assert client("DELETE", f"/v1/items/{made.json()['id']}").status_code == 204
    assert client("DELETE", f"/v1/items/{made.json()['id']}").status_code == 404
    assert code(client("POST", "/v1/items", files=upload(b"x"))) == (422, "bad_image")


def test_failed_upload_leaves_nothing(engine):
    from simsearch.storage.lock import writer_lock

    client = Client(simsearch.create_app(engine, writable=True))
    with writer_lock(engine.path):
        for _ in range(2):
            assert code(client("POST", "/v1/items", files=upload(png()))) == (503, "index_locked")
        assert code(client("DELETE", "/v1/items/1")) == (503, "index_locked")
    assert [path.name for path in (engine.path / "uploads").iterdir()] == ["items.jsonl"]
    assert (engine.path / "uploads" / "items.jsonl").read_text() == "\n"
    assert client("POST", "/v1/items", files=upload(png((9, 9)))).status_code == 201
    assert len((engine.path / "uploads" / "items.jsonl").read_text().split()) == 4
    sync.sync(engine.index, engine.model, [], options.BuildOptions())
    assert len(engine) == 25


def test_link_in_place_of_the_folder(engine, tmp_path):
    (engine.path / "uploads").symlink_to(tmp_path)
    for create, verb in ((False, "open"), (True, "open or create")):
        message = f"^cannot {verb} {engine.path}/uploads: it is a symbolic link, not a folder$"
        with pytest.raises(UsageError, match=message):
            upload_folder.open_folder(engine.index, create)
    client = Client(simsearch.create_app(engine, writable=True))
    refused = client("DELETE", "/v1/items/1")
    assert "cannot open " in refused.text and "write" not in refused.text
    assert len(engine) == 24


def test_file_in_place_of_the_folder(engine):
    (engine.path / "uploads").write_bytes(b"")
    client = Client(simsearch.create_app(engine, writable=True))
    refused = client("POST", "/v1/items", files=upload(png((9, 9))))
    assert refused.status_code == 422, refused.text
    assert refused.json()["error"]["message"].endswith("uploads: it is a regular file, not a folder")
    assert client("DELETE", "/v1/items/1").status_code == 204  # it was not uploaded
    assert len(engine) == 23


def test_an_upload_looks_at_no_other(engine, monkeypatch):
    client = Client(simsearch.create_app(engine, writable=True))
    manifest = engine.path / "uploads" / "items.jsonl"
    sizes = [(9, n) for n in range(9, 13)]
    made = [client("POST", "/v1/items", files=upload(png(size)), data={"label": "x"}).json()["id"] for size in sizes]
    lines = manifest.read_bytes()
    monkeypatch.setattr("simsearch.server.uploads._forget", None)  # which would read them all
    monkeypatch.setattr("simsearch.images.sources.tables.open", None, raising=False)
    assert client("POST", "/v1/items", files=upload(png((9, 20)))).status_code == 201
    monkeypatch.undo()
    assert manifest.read_bytes().startswith(lines)
    assert client("DELETE", f"/v1/items/{made[1]}").status_code == 204
    assert sync.sync(engine.index, engine.model, [], options.BuildOptions()).unchanged == len(engine) == 24 + 4


def test_leftovers_of_dead_upload_are_removed(engine):
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
    assert sync.sync(engine.index, engine.model, [], options.BuildOptions()).unchanged == len(engine) == 24 + 3


def test_known_picture_keeps_its_label(engine, photos):
    client = Client(simsearch.create_app(engine, writable=True))
    first = client("POST", "/v1/items", files=upload(png()), data={"label": "cat", "metadata": '{"year": 1}'})
    again = client("POST", "/v1/items", files=upload(png()), data={"label": "dog", "metadata": '{"year": 2}'})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json() == client("GET", f"/v1/items/{first.json()['id']}").json()
    known = (photos / "amber" / "0.png").read_bytes()  # of another source: an item of its own
    added = client("POST", "/v1/items", files=upload(known), data={"label": "dog"})
    assert (added.status_code, added.json()["label"]) == (201, "dog")
    assert client("GET", "/v1/items/1").json()["label"] == "amber"


def test_partial_files_are_swept(engine):
    app = simsearch.create_app(engine, writable=True)
    assert Client(app)("POST", "/v1/items", files=upload(png())).status_code == 201
    uploads = engine.path / "uploads"
    before = sorted(path.name for path in uploads.iterdir())

    def leave():
        for name in (".abc.tmp", ".items.jsonl.partial", ".x.1234.partial"):
            (uploads / name).write_bytes(b"half")

    leave()
    service = simsearch.create_app(engine, writable=True).state.service
    service.uploads.sweep(service.indexes.values())  # as at the start of `serve`
    assert sorted(path.name for path in uploads.iterdir()) == before
    leave()
    client = Client(simsearch.create_app(engine, writable=True))
    assert client("POST", "/v1/items", files=upload(png((9, 9)))).status_code == 201
    assert not [path.name for path in uploads.iterdir() if path.name.startswith(".")]


def test_removal_interrupted_before_its_commit(engine, monkeypatch):
    """The next build completes it, and does not bring the picture back."""
    client = Client(simsearch.create_app(engine, writable=True))
    assert client("POST", "/v1/items", files=upload(png((9, 9)))).status_code == 201
    manifest = engine.path / "uploads" / "items.jsonl"
    without = manifest.read_bytes()
    number = client("POST", "/v1/items", files=upload(png())).json()["id"]
    written = manifest.read_bytes()

    class Died(BaseException):
        pass

    def die(*arguments):
        assert manifest.read_bytes() == without
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr("simsearch.engine.Engine.remove", die)
        Uploads().remove(engine, number)
    assert manifest.read_bytes() == written  # the process lived on
    manifest.write_bytes(without)
    sync.sync(engine.index, engine.model, [], options.BuildOptions())
    assert len(engine) == 25
    assert client("DELETE", f"/v1/items/{number}").status_code == 404


def test_sweep_keeps_what_is_listed(engine):
    """A picture with a line is kept, though it has no item: it may be the only copy."""
    app = simsearch.create_app(engine, writable=True)
    kept, stray = png((5, 5)), png((6, 6))
    number = Client(app)("POST", "/v1/items", files=upload(kept)).json()["id"]
    engine.remove(number)
    uploads = engine.path / "uploads"
    names = [hashlib.sha256(data).hexdigest() for data in (kept, stray)]
    (uploads / names[1]).write_bytes(stray)
    (uploads / "notes.txt").write_text("not an upload")
    service = simsearch.create_app(engine, writable=True).state.service
    service.uploads.sweep(service.indexes.values())
    assert sorted(path.name for path in uploads.iterdir()) == sorted([names[0], "items.jsonl", "notes.txt"])


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b'{"path": 7}\n', b"\xff\n"])
def test_damaged_line_stops_nothing_and_is_kept(engine, line):
    uploads = engine.path / "uploads"
    app = simsearch.create_app(engine, writable=True)
    number = Client(app)("POST", "/v1/items", files=upload(png((5, 5)))).json()["id"]
    (uploads / "items.jsonl").write_bytes(line + (uploads / "items.jsonl").read_bytes())
    (uploads / ("0" * 64)).write_bytes(b"perhaps that of the line")
    service = simsearch.create_app(engine, writable=True).state.service
    service.uploads.sweep(service.indexes.values())
    client = Client(simsearch.create_app(engine, writable=True))
    assert client("POST", "/v1/items", files=upload(png((6, 6)))).status_code == 201
    assert client("DELETE", f"/v1/items/{number}").status_code == 204
    assert (uploads / "items.jsonl").read_bytes().startswith(line)
    assert (uploads / ("0" * 64)).exists()
