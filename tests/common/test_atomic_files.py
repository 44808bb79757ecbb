"""Atomic file writes."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import pytest

from simsearch.common.atomic_files import atomic_write, delete_abandoned, is_partial, replacing
from simsearch.errors import UsageError


def test_path_of_the_new_file(tmp_path: Path) -> None:
    """A library may write to it by its path."""
    with replacing(tmp_path / "file") as file:
        assert re.fullmatch(re.escape(str(tmp_path)) + r"/\.[0-9a-f]{16}\.partial", file.name)
        assert is_partial(Path(file.name).name)
        Path(file.name).write_bytes(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_relative_to_a_folder(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with replacing("file", folder) as file:
        file.write(b"new")
    os.close(folder)
    assert (tmp_path / "file").read_bytes() == b"new"


def test_exception_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_new_file_is_never_one_that_exists(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if somebody guesses its name."""
    (tmp_path / "other").write_bytes(b"other")
    partial = tmp_path / f".{'0' * 16}.partial"
    partial.symlink_to("other") if kind == "link" else partial.hardlink_to(tmp_path / "other")
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    with pytest.raises(FileExistsError), replacing(tmp_path / "file"):
        pytest.fail("it was opened")
    assert (tmp_path / "other").read_bytes() == b"other" and not (tmp_path / "file").exists()


def test_links_are_replaced_or_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    atomic_write(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    atomic_write(link, b"newer", follow_links=False)
    assert not link.is_symlink() and link.read_bytes() == b"newer" and target.read_bytes() == b"new"


def test_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "file"):
        pytest.fail("it was opened")
    with pytest.raises(UsageError, match="cannot write"):
        atomic_write(tmp_path / "none" / "file", b"", follow_links=False)


def test_abandoned_files_are_deleted(tmp_path: Path) -> None:
    names = [f".{digit * 16}.partial" for digit in "abc"]
    for name in [*names, ".mine.partial", "file"]:
        (tmp_path / name).write_bytes(b"")
    for name in [*names[:2], ".mine.partial", "file"]:
        os.utime(tmp_path / name, (0, 0))
    delete_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([names[2], ".mine.partial", "file"])
