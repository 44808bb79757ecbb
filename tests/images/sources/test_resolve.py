"""Sources by name, and reading of printed paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simsearch.errors import ImageError, UsageError
from simsearch.images.sources import resolve
from tests.helpers.sources import paths, put, write_tar, write_zip

# -- arguments


def test_kind_of_a_source_follows_from_its_name(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "folder.zip/a.png")
    write_zip(tmp_path / "X.ZIP", "a.png")
    for name in ("x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"):
        write_tar(tmp_path / name, "a.png")
    (tmp_path / "m.csv").write_text("path\na.png\n")
    (tmp_path / "m.jsonl").write_text('{"path": "a.png"}\n')
    kinds = {
        ".": "folder",
        "folder.zip": "folder",
        "a.png": "folder",
        "X.ZIP": "zip",
        "x.tar": "tar",
        "x.tar.gz": "tar",
        "x.tgz": "tar",
        "x.tar.bz2": "tar",
        "x.tar.xz": "tar",
        "m.csv": "manifest",
        "m.jsonl": "manifest",
    }
    for name, kind in kinds.items():
        source = resolve.resolve(str(tmp_path / name))
        assert source.kind == kind, name
        assert paths(source.listing()), name
        source.close()
        again = resolve.reopen(kind, source.root)
        assert type(again) is type(source)
        again.close()


def test_source_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no file or folder at 'nowhere'"):
        resolve.resolve("nowhere")
    with pytest.raises(UsageError, match="no file or folder at 'a"):
        resolve.resolve("a\0b")
    with pytest.raises(UsageError, match="unknown kind 'tape'"):
        resolve.reopen("tape", "/x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", "No such file or directory"),
        ("nowhere.zip!/a.png", "no file or folder at"),
        ("broken.zip!/a.png", "cannot be read as a zip archive"),
        (".", "Is a directory"),
        ("a\0b.png", "null byte"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_path_that_cannot_be_read_says_why(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(ImageError, match=message):
        resolve.read_path(os.path.join(tmp_path, name))
