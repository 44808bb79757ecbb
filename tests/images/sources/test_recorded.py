"""The gate that opens recorded pictures: only what was indexed, inside its source, and an image."""

import hashlib
import io
import json
import os
import sqlite3
import zipfile

import pytest
from PIL import Image

import simsearch
from simsearch.errors import ImageError
from simsearch.images.sources.recorded import open_recorded, read_recorded
from simsearch.images.sources.resolve import RecordedSource
from simsearch.indexing import options, sync


def picture(colour="red", size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def sha(data):
    return hashlib.sha256(data).digest()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture("blue"))
    return tmp_path / "in"


def test_recorded_picture_is_opened(folder):
    with open_recorded(RecordedSource("folder", str(folder)), "sub/a.png", sha(picture())) as file:
        assert file.read() == picture()


@pytest.mark.parametrize("path", ["../secret.png", "sub/../../secret.png", "{}/secret.png"])
def test_paths_that_leave_the_root(folder, path):
    source = RecordedSource("folder", str(folder))
    with pytest.raises(ImageError, match="outside"):
        read_recorded(source, path.format(folder.parent), sha(picture("blue")))
    manifest = folder / "m.csv"
    manifest.write_text("path\n")
    with pytest.raises(ImageError, match="outside"):
        read_recorded(RecordedSource("manifest", str(manifest)), path.format(folder.parent), sha(picture("blue")))
    permitted = RecordedSource("manifest", str(manifest), outside=True)
    assert read_recorded(permitted, path.format(folder.parent), sha(picture("blue"))) == picture("blue")


def test_links_count_as_what_they_lead_to(folder):
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "in.png").symlink_to("sub/a.png")
    (folder / "away").symlink_to(folder.parent)
    source = RecordedSource("folder", str(folder))
    assert read_recorded(source, "in.png", sha(picture())) == picture()
    for path in ("out.png", "away/secret.png"):
        with pytest.raises(ImageError, match="outside"):
            read_recorded(source, path, sha(picture("blue")))
    (folder.parent / "link").symlink_to(folder)  # the root itself may be a link
    assert read_recorded(RecordedSource("folder", str(folder.parent / "link")), "in.png", sha(picture())) == picture()


def test_only_the_recorded_content(folder):
    source, file = RecordedSource("folder", str(folder)), folder / "sub" / "a.png"
    assert read_recorded(source, "sub/a.png", sha(picture())) == picture()
    file.write_bytes(picture("green"))
    with pytest.raises(ImageError, match="changed"):
        read_recorded(source, "sub/a.png", sha(picture()))
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(ImageError):
        read_recorded(source, "sub/a.png", sha(picture()))
    with pytest.raises(ImageError):
        read_recorded(RecordedSource("folder", "/"), "etc/passwd", sha(picture()))


@pytest.mark.parametrize(
    "data", [b"user:password", picture()[:40] + b"user:password", b"\x89PNG\r\n\x1a\n" + bytes(99)]
)
def test_only_images_though_hash_agrees(folder, data):
    (folder / "a.txt").write_bytes(data)
    with pytest.raises(ImageError):
        read_recorded(RecordedSource("folder", str(folder)), "a.txt", sha(data))


def test_only_regular_files(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ImageError, match="regular"):
        read_recorded(RecordedSource("folder", str(folder)), "pipe.png", sha(picture()))
    os.mkfifo(folder / "pipe.zip")
    with pytest.raises(ImageError, match="regular"):
        read_recorded(RecordedSource("zip", str(folder / "pipe.zip")), "a.png", sha(picture()))
    with pytest.raises(ImageError, match="regular"):
        read_recorded(RecordedSource("folder", "/dev"), "zero", sha(picture()))


def test_members_need_the_recorded_content(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", picture())
        archive.writestr("b.png", "no picture")
    source = RecordedSource("zip", str(tmp_path / "a.zip"))
    assert read_recorded(source, "a.png", sha(picture())) == picture()
    with pytest.raises(ImageError, match="changed"):
        read_recorded(source, "a.png", sha(b"x"))
    with pytest.raises(ImageError):
        read_recorded(source, "b.png", sha(b"no picture"))


def test_data_set_of_an_index_is_not_downloaded(monkeypatch, tmp_path):
    import torchvision

    asked = []

    class DataSet:
        def __init__(self, root, train=True, download=False):
            asked.append(download)
            raise RuntimeError("not found")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", DataSet)
    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path))
    with pytest.raises(ImageError):
        read_recorded(RecordedSource("dataset", "torchvision/CIFAR10"), "0", sha(picture()))
    assert asked
    assert not any(asked)


# -- manifests


def test_manifest_needs_permission_to_leave(folder, tmp_path, colours):
    manifest = folder / "m.jsonl"
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ["sub/a.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", str(folder / "sub" / "a.png")]
    manifest.write_text("".join(json.dumps({"path": path}) + "\n" for path in paths))
    with simsearch.build(manifest, tmp_path / "index", model=colours) as engine:
        assert len(engine) == 2
        assert [reason for _, reason in engine.failures()] == [
            "outside the manifest's folder; `build --allow-outside` permits it"
        ] * 3
        assert engine.read(1) == picture()
        sync.sync(engine.index, engine.model, [], options.BuildOptions())  # as recorded
        assert len(engine) == 2
    with simsearch.build(manifest, tmp_path / "index", model=colours, allow_outside=True) as engine:
        assert len(engine) == 5
        assert {engine.read(item) for item in range(1, 6)} == {picture(), picture("blue")}
        sync.sync(engine.index, engine.model, [], options.BuildOptions())
        assert not engine.failures()
    with simsearch.build(
        manifest, tmp_path / "index", model=colours
    ) as engine:  # no longer permitted: kept, and not shown
        assert len(engine) == 5
        with pytest.raises(ImageError, match="outside"):
            engine.read(3)


def test_index_of_before_shows_nothing_outside(folder, tmp_path, colours):
    """An index that a version without the permission made has no record of it."""
    manifest = folder / "m.csv"
    manifest.write_text("path\n../secret.png\nsub/a.png\n")
    with simsearch.build(manifest, tmp_path / "index", model=colours, allow_outside=True) as engine:
        assert len(engine) == 2
    with sqlite3.connect(tmp_path / "index" / "items.sqlite") as database:
        database.execute("UPDATE sources SET options = ?", ('{"exclude": [], "labels": "auto"}',))
    with simsearch.open(tmp_path / "index", model=colours) as engine:
        assert engine.thumbnail(1) is None
        assert engine.thumbnail(2) is not None
        assert len(engine.search_by_id(1, 5)) == 1


def test_stranger_s_index_gives_out_no_file(folder, tmp_path, colours):
    with simsearch.build(folder, tmp_path / "index", model=colours):
        pass
    with sqlite3.connect(tmp_path / "index" / "items.sqlite") as database:
        database.execute("UPDATE sources SET root = ?", (b"/",))
        database.execute("UPDATE items SET path = ?", (b"etc/passwd",))
    with simsearch.open(tmp_path / "index", model=colours) as engine:
        with pytest.raises(ImageError, match="changed"):
            engine.read(1)
        assert engine.thumbnail(1) is None
        with pytest.raises(ImageError):
            engine.search_by_id(1, flip=True)
