"""A folder of pictures with copies, its index, and tasks on single files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simsearch import api
from simsearch.curation.cleanup.acts import Task
from simsearch.curation.cleanup.files import Original
from simsearch.engine import Engine
from tests.helpers.models import Colours

Contents = Callable[[Path], dict[str, tuple[bytes, int, int]]]


@pytest.fixture
def copies(photos: Path) -> Path:
    """The pictures, with amber/0.png also as amber/copy.png and z/copy.png, and blue/0.png as z/blue.png."""
    (photos / "z").mkdir()
    for copy, name in [("amber/copy.png", "amber/0.png"), ("z/copy.png", "amber/0.png"), ("z/blue.png", "blue/0.png")]:
        shutil.copy(photos / name, photos / copy)
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        os.utime(path, ns=(10**18, 10**18 + number * 10**9))
    return photos


@pytest.fixture
def engine(copies: Path, tmp_path: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    with api.build(copies, tmp_path / "index", colours) as engine:
        yield engine


@pytest.fixture
def contents() -> Contents:
    """A function that returns content, mtime and permissions of each file below a folder, by relative path."""

    def read(folder: Path) -> dict[str, tuple[bytes, int, int]]:
        files = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
        return {
            str(path.relative_to(folder)): (path.read_bytes(), path.lstat().st_mtime_ns, path.lstat().st_mode)
            for path in sorted(files)
        }

    return read


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Moves in/b.jpg, which has the content of in/a.jpg, to out/b.jpg."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"picture")
    digest = hashlib.sha256(b"picture").digest()
    original = Original(str(folder / "a.jpg"), digest)
    return Task(str(folder / "b.jpg"), digest, original, str(tmp_path / "out" / "b.jpg"), str(tmp_path / "out"))
