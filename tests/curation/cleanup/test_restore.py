"""Restoring when the files have changed since, and journals that are none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from simsearch.curation.cleanup import restore as module
from simsearch.curation.cleanup.acts import Task, act
from simsearch.curation.cleanup.journal import Journal, read_journal
from simsearch.curation.cleanup.restore import restore
from simsearch.errors import UsageError


def done(task: Task, action: str, tmp_path: Path) -> Path:
    log = tmp_path / "journal.jsonl"
    with Journal(log, action, "index") as opened:
        act(task, action, opened)
    return log


def test_another_file_is_not_overwritten(task: Task, tmp_path: Path) -> None:
    log = done(task, "move", tmp_path)
    Path(task.path).write_text("new")
    assert restore(log).problems == [(task.path, f"another file is at its place; the picture is {task.target}")]
    assert Path(task.path).read_text() == "new" and Path(task.target).read_bytes() == b"picture"


def test_moved_file_that_changed(task: Task, tmp_path: Path) -> None:
    log = done(task, "move", tmp_path)
    Path(task.target).write_text("edited")
    assert restore(log).problems == [(task.path, f"{task.target} has changed")]
    os.unlink(task.target)
    assert restore(log).problems == [(task.path, f"{task.target} is gone")]


def test_copied_back_by_hand(task: Task, tmp_path: Path) -> None:
    log = done(task, "move", tmp_path)
    shutil.copy(task.target, task.path)
    assert restore(log).files == 1 and not Path(task.target).exists()


def test_both_names_after_half_a_rename(task: Task, tmp_path: Path) -> None:
    """Where the system has no rename that replaces nothing, a kill may leave both names of the file."""
    log = done(task, "move", tmp_path)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    os.link(task.target, task.path)
    assert restore(log).files == 1
    assert not Path(task.target).exists() and os.stat(task.path).st_nlink == 1


def test_both_names_after_half_a_rename_of_a_linked_file(task: Task, tmp_path: Path) -> None:
    log = done(task, "hardlink", tmp_path)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    (entry,) = [record.entry for record in read_journal(log)]
    os.unlink(task.path)
    Path(task.path).write_bytes(b"picture")
    os.link(task.path, entry.aside)  # killed while the file was put aside
    assert restore(log).problems == []
    assert not Path(entry.aside).exists() and os.stat(task.path).st_nlink == 1


def test_both_names_after_half_a_rename_of_a_copy(task: Task, tmp_path: Path) -> None:
    log = done(task, "move", tmp_path)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    (entry,) = [record.entry for record in read_journal(log)]
    shutil.copy(task.target, entry.aside)  # as if moved to another file system, killed while the copy got its name
    os.link(task.target, entry.partial)
    assert restore(log).files == 1
    assert Path(task.path).read_bytes() == b"picture"
    assert not any(Path(path).exists() for path in (task.target, entry.partial, entry.aside))


def test_two_kills_leave_no_copy(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move between file systems is killed before the file is deleted, and `restore` before the copy is."""
    log = done(task, "move", tmp_path)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    shutil.copy2(task.target, read_journal(log)[0].entry.aside)

    def killed(copy: str, path: str) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_unlink_copy", killed)
        restore(log)
    assert restore(log).files == 1
    assert not Path(task.target).exists() and sorted(path.name for path in (tmp_path / "in").iterdir()) == [
        "a.jpg",
        "b.jpg",
    ]


def test_one_name_seen_twice(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If two mounts show one folder, the file at its place and the moved one may be the same name."""
    log = done(task, "move", tmp_path)
    os.rename(task.target, task.path)
    real = os.lstat
    alias = lambda path: task.path if path == task.target else path  # noqa: E731
    monkeypatch.setattr(os, "lstat", lambda path, **named: real(alias(path), **named))
    monkeypatch.setattr(os.path, "lexists", lambda path: os.path.exists(alias(path)))
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, *flags, **named: opened(alias(path), *flags, **named))
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", lambda path, **named: unlink(alias(path), **named))
    restore(log)
    assert Path(task.path).read_bytes() == b"picture"


def test_folder_that_is_gone(task: Task, tmp_path: Path) -> None:
    log = done(task, "move", tmp_path)
    shutil.rmtree(tmp_path / "in")
    assert restore(log).files == 1 and Path(task.path).read_bytes() == b"picture"


def test_link_that_was_edited(task: Task, tmp_path: Path) -> None:
    log = done(task, "hardlink", tmp_path)
    Path(task.path).write_text("edited, and with it the original")
    assert restore(log).problems == [(task.path, "the hard link was changed later")]


def test_link_that_was_deleted(task: Task, tmp_path: Path) -> None:
    log = done(task, "hardlink", tmp_path)
    os.unlink(task.path)
    assert restore(log).files == 1 and Path(task.path).read_bytes() == b"picture"
    assert not os.path.samefile(task.path, task.original.path)


def test_emptied_trash(task: Task, tmp_path: Path) -> None:
    log = done(task, "trash", tmp_path)
    shutil.rmtree(tmp_path / "share")
    assert "is gone" in restore(log).problems[0][1]


HEAD = '{"cleanup": 1}\n'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "{}\n",
        '{"cleanup": 2}\n',
        "[]\n",
        HEAD + '{"n": 1, "done": true}\n',
        HEAD + '{"n": 1, "do": "move"}\n',
        HEAD + "no json\n",
        HEAD + '{"do": "move", "n": 1, "path": "relative", "to": "/x", "kept": "/y", "sha256": "' + "0" * 64 + '",'
        ' "token": "' + "0" * 32 + '", "mode": 0, "stamp": 0}\n',
        HEAD + '{"do": "move", "n": 1, "path": "/a", "to": "/x", "kept": "/y", "sha256": "' + "0" * 64 + '",'
        ' "token": "../../x", "mode": 0, "stamp": 0}\n',
        HEAD + '{"do": "delete", "n": 1, "path": "/a", "to": "/x", "kept": "/y", "sha256": "' + "0" * 64 + '",'
        ' "token": "' + "0" * 32 + '", "mode": 0, "stamp": 0}\n',
    ],
)
def test_what_is_no_journal(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    with pytest.raises(UsageError, match="not a journal"):
        restore(tmp_path / "journal")
