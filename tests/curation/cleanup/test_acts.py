"""Single actions where something goes wrong: whatever it is, the picture stays, and nothing is overwritten."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simsearch.curation.cleanup import acts, files, journal, restore
from simsearch.curation.cleanup.acts import Task, act
from simsearch.curation.cleanup.files import Original, UnusableError
from simsearch.curation.cleanup.journal import Journal, read_journal

ACTIONS = ("move", "across", "trash", "hardlink")


@pytest.fixture
def do(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that does an action with the task; returns the journal."""

    def run(action: str, changed: Task = task) -> Path:
        if action == "across":

            def failing(old: str, new: str) -> None:
                if os.path.dirname(old) != os.path.dirname(new):
                    raise OSError(errno.EXDEV, "another file system")
                files.rename_new(old, new)

            monkeypatch.setattr(acts, "rename_new", failing)
            monkeypatch.setattr(restore, "rename_new", failing)
        log = tmp_path / f"{len(list(tmp_path.glob('*.jsonl')))}.jsonl"
        with Journal(log, action, "index") as opened:
            act(changed, "move" if action == "across" else action, opened)
        return log

    return run


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".jsonl"
    }


BEFORE = {"in/a.jpg": b"picture", "in/b.jpg": b"picture"}


@pytest.mark.parametrize("action", ACTIONS)
def test_done_and_restored(do: Callable[..., Path], task: Task, tmp_path: Path, action: str) -> None:
    os.utime(task.path, ns=(10**18, 10**18 + 1))
    os.chmod(task.path, 0o644)
    log = do(action)
    files_now = everything(tmp_path)
    assert len([name for name, content in files_now.items() if content == b"picture"]) == 2
    if action != "hardlink":
        assert "in/b.jpg" not in files_now
    if action in ("move", "across"):
        assert files_now["out/b.jpg"] == b"picture" and os.stat(task.target).st_mtime_ns == 10**18 + 1
    assert restore.restore(log).files == 1
    assert everything(tmp_path) == BEFORE and os.stat(task.path).st_mtime_ns == 10**18 + 1
    assert os.stat(task.path).st_nlink == 1


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["fsync", "rename", "link", "unlink", "open", "mkdir"])
def test_each_failure_keeps_the_pictures(
    do: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    code: int,
    name: str,
) -> None:
    """Each call of a system function fails once, the first, then the second and so on, until none is left to fail."""
    real = {
        "fsync": (os, "fsync"),
        "rename": (files if action == "across" else acts, "rename_new"),
        "link": (os, "link"),
        "unlink": (os, "unlink"),
        "open": (os, "open"),
        "mkdir": (os, "mkdir"),
    }[name]
    for number in range(1, 50):
        count = 0
        with monkeypatch.context() as patch:
            call = getattr(*real)

            def failing(*arguments: Any, call: Any = call, number: int = number, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    raise OSError(code, os.strerror(code))
                return call(*arguments, **named)

            patch.setattr(*real, failing)
            try:
                do(action)
                failed = False
            except (OSError, UnusableError, journal.JournalError):
                failed = True
        log = max(tmp_path.glob("*.jsonl"), key=lambda path: int(path.stem), default=None)
        assert list(everything(tmp_path).values()).count(b"picture") >= 2, (number, everything(tmp_path))
        if log is not None:
            assert restore.restore(log).problems == []
        assert everything(tmp_path) == BEFORE, number
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.rmtree(tmp_path / "share", ignore_errors=True)
        if not failed and count < number:
            return
    raise AssertionError("it never ended")


def test_full_disk_while_copying(do: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(old: str, new: str, digest: bytes) -> None:
        Path(new).write_bytes(b"pict")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), new)

    monkeypatch.setattr(acts, "copy_new", full)
    with pytest.raises(OSError, match="No space"):
        do("across")
    assert everything(tmp_path) == BEFORE


def test_torn_copy_is_not_believed(do: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "copy_facts", lambda old, new: Path(new).write_bytes(b"pictur\0"))
    with pytest.raises(UnusableError, match="copy differs"):
        do("across")
    assert everything(tmp_path) == BEFORE


@pytest.mark.parametrize("action", ACTIONS)
def test_two_names_of_one_file(do: Callable[..., Path], task: Task, tmp_path: Path, action: str) -> None:
    os.unlink(task.path)
    os.link(task.original.path, task.path)
    with pytest.raises(UnusableError, match="same file"):
        do(action)
    assert everything(tmp_path) == BEFORE


@pytest.mark.parametrize("action", ACTIONS)
def test_names_that_no_inode_tells_of(
    do: Callable[..., Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """A case-insensitive or twice mounted file system without inodes: the original vanishes with the copy."""
    os.unlink(task.original.path)
    state_at, read_state = files.State.at, files.read_state

    def other_name(path: str) -> str:
        return task.path if path == task.original.path else path

    def at(path: str) -> files.State | None:
        found = state_at(other_name(path))
        return replace(found, inode=found.inode + 1) if found and path == task.original.path else found

    class Read(Original):
        def check(self) -> None:
            assert read_state(other_name(self.path))[0] == self.digest
            self.state = at(self.path)

    monkeypatch.setattr(files.State, "at", staticmethod(at))
    if action == "hardlink":  # link() needs the name
        os.link(task.path, task.original.path)
    with pytest.raises((UnusableError, OSError)):
        do(action, replace(task, original=Read(task.original.path, task.digest)))
    assert everything(tmp_path)["in/b.jpg"] == b"picture"


@pytest.mark.parametrize("action", ACTIONS)
def test_original_that_vanishes(
    do: Callable[..., Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Another clean-up takes the original at the worst moment."""
    sync = files.sync_folders

    def vanish(*paths: str) -> None:
        sync(*paths)
        if os.path.lexists(task.original.path):
            os.rename(task.original.path, tmp_path / "taken")

    monkeypatch.setattr(acts, "sync_folders", vanish)
    with pytest.raises(UnusableError, match="vanished"):
        do(action)
    assert everything(tmp_path) == {"in/b.jpg": b"picture", "taken": b"picture"}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("victim", ["a.jpg", "b.jpg"])
@pytest.mark.parametrize("kind", ["gone", "changed", "link", "folder", "fifo"])
def test_unusable_files(do: Callable[..., Path], tmp_path: Path, action: str, victim: str, kind: str) -> None:
    path = tmp_path / "in" / victim
    path.unlink()
    if kind == "changed":
        path.write_bytes(b"picturE")
    elif kind == "link":
        (tmp_path / "target").write_bytes(b"picture")
        path.symlink_to(tmp_path / "target")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    before = everything(tmp_path)
    with pytest.raises(UnusableError):
        do(action)
    assert everything(tmp_path) == before


def test_hard_link_needs_the_same_bytes(do: Callable[..., Path], task: Task, tmp_path: Path) -> None:
    Path(task.original.path).write_bytes(b"near")
    digest = files.read_state(task.original.path)[0]
    with pytest.raises(UnusableError, match="bytes differ"):
        do("hardlink", replace(task, original=Original(task.original.path, digest)))
    os.chmod(task.path, 0o600)
    Path(task.original.path).write_bytes(b"picture")
    with pytest.raises(UnusableError, match="permissions"):
        do("hardlink")


@pytest.mark.parametrize("lacking", [True, False])
def test_rename_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: bool) -> None:
    """With the system's own call and without it."""
    if lacking:
        monkeypatch.setattr(files, "_renameat2", None)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    with pytest.raises(FileExistsError):
        files.rename_new(str(one), str(two))
    assert (one.read_text(), two.read_text()) == ("1", "2")
    two.unlink()
    files.rename_new(str(one), str(two))
    assert two.read_text() == "1" and not one.exists() and two.stat().st_nlink == 1


def test_torn_journal(do: Callable[..., Path], task: Task, tmp_path: Path) -> None:
    log = do("move")
    whole = log.read_bytes()
    for end in range(len(whole)):
        log.write_bytes(whole[:end])
        if whole[:end].count(b"\n") > 1:
            assert len(read_journal(log)) == 1
    with log.open("ab") as file:
        file.write(b'{"n": 2, "do')
    assert restore.restore(log).files == 1
    assert everything(tmp_path) == BEFORE


@pytest.mark.parametrize("action", ACTIONS)
def test_folders_that_cannot_be_synced(
    do: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Some network file systems sync files, but not folders."""

    def refuse(path: str, folder: int | None = None) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)

    monkeypatch.setattr(files, "sync_folder", refuse)
    assert restore.restore(do(action)).files == 1
    assert everything(tmp_path) == BEFORE
