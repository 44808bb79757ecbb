"""Saving montages and reports."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from simsearch.common.atomic_files import atomic_write
from simsearch.errors import UsageError
from simsearch.reports import montage
from simsearch.reports.html import render_html, save_html
from simsearch.reports.montage import draw_montage, save_montage
from tests.helpers.reports import match, row

# files


@pytest.mark.parametrize(
    ("name", "kind"), [("m.png", "PNG"), ("m.JPG", "JPEG"), ("m.jpeg", "JPEG"), ("m.webp", "WEBP")]
)
def test_save_montage_by_extension(tmp_path: Path, name: str, kind: str) -> None:
    save_montage([row(match())], tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, draw_montage([row(match())]).size)


@pytest.mark.parametrize("name", ["m.bmp", "m", "m.png.txt"])
def test_unknown_extension_is_refused_first(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(montage, "draw_montage", lambda rows: pytest.fail("work was done"))
    with pytest.raises(UsageError, match=re.escape(repr(Path(name).suffix))) as caught:
        save_montage([row()], tmp_path / name)
    assert caught.value.hint == "known extensions: .png, .jpg, .jpeg, .webp"
    assert not list(tmp_path.iterdir())


def test_a_montage_too_large_for_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(montage.FORMATS, ".webp", ("WEBP", 100))
    with pytest.raises(UsageError, match="limit of 100"):
        save_montage([row()], tmp_path / "m.webp")


def test_save_html(tmp_path: Path) -> None:
    save_html([row(match("日本/\udcff.jpg"))], tmp_path / "r.html", "title", {"items": "1"})
    assert (tmp_path / "r.html").read_text("utf-8") == render_html(
        [row(match("日本/\udcff.jpg"))], "title", {"items": "1"}
    )


def test_writing_replaces_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in [b"old", b"new"]:
        atomic_write(path, data)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_keeps_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments: object, **options: object) -> None:
        assert [file.name[0] for file in tmp_path.iterdir() if file != path] == ["."]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(UsageError, match="No space left on device") as caught:
        atomic_write(path, b"new")
    assert str(path) in str(caught.value) and isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(UsageError, match=re.escape(str(path))) as caught:
        atomic_write(path, b"")
    assert caught.value.hint == f"create the folder {path.parent} first"


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in [tmp_path, fifo]:
        with pytest.raises(UsageError, match="not a regular file"):
            atomic_write(path, b"")
    with pytest.raises(UsageError, match="Not a directory"):
        atomic_write(_file(tmp_path / "plain") / "file", b"")
    with pytest.raises(UsageError, match="name too long"):
        atomic_write(tmp_path / ("x" * 300), b"")


def _file(path: Path) -> Path:
    path.write_bytes(b"old")
    return path
