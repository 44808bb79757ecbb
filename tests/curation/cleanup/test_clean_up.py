"""Clean-ups of an index and their restoration."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from simsearch import api
from simsearch.curation.cleanup import ignored
from simsearch.curation.cleanup.restore import restore
from simsearch.curation.cleanup.run import carry_out
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, ModelMismatchError, UsageError
from tests.curation.cleanup.conftest import Contents
from tests.helpers.models import CellModel, Colours


def test_dry_run_changes_nothing(engine: Engine, tmp_path: Path, contents: Contents) -> None:
    before = contents(tmp_path / "photos")
    report = engine.clean_up("move", into=tmp_path / "out", max_distance=0)
    assert (report.plan.count, report.files, report.journal) == (3, 0, None)
    assert contents(tmp_path / "photos") == before and not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize("action", ["move", "trash", "hardlink"])
def test_action_and_restore(engine: Engine, tmp_path: Path, contents: Contents, action: str) -> None:
    photos = tmp_path / "photos"
    before = contents(photos)
    into = tmp_path / "out" if action == "move" else None
    report = engine.clean_up(action, into=into, max_distance=0, dry_run=False)  # type: ignore[arg-type]
    assert (report.files, report.problems) == (3, []) and report.journal is not None
    if action == "hardlink":
        assert (photos / "z" / "copy.png").samefile(photos / "amber" / "0.png")
    else:
        assert len(contents(photos)) == len(before) - 3
    if into:
        assert sorted(contents(into)) == ["amber/copy.png", "z/blue.png", "z/copy.png"]
    assert (restore(report.journal).files, contents(photos)) == (3, before)
    assert all(path.stat().st_nlink == 1 for path in photos.rglob("*.png"))
    assert not list((tmp_path / "share").rglob("*.*")) and not (into and list(into.iterdir()))
    again = restore(report.journal)
    assert (again.files, again.untouched, again.problems) == (0, 3, [])


def test_trash_has_records(engine: Engine, tmp_path: Path) -> None:
    engine.clean_up("trash", max_distance=0, dry_run=False)
    trash = tmp_path / "share" / "Trash"
    assert sorted(path.name for path in (trash / "files").iterdir()) == ["blue.png", "copy 2.png", "copy.png"]
    record = (trash / "info" / "blue.png.trashinfo").read_text().splitlines()
    assert record[:2] == ["[Trash Info]", f"Path={tmp_path}/photos/z/blue.png"] and record[2].startswith(
        "DeletionDate=2"
    )


def test_names_that_are_taken(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "out" / "z").mkdir(parents=True)
    (tmp_path / "out" / "z" / "copy.png").write_text("other")
    engine.clean_up("move", into=tmp_path / "out", max_distance=0, dry_run=False)
    assert (tmp_path / "out" / "z" / "copy.png").read_text() == "other"
    assert (tmp_path / "out" / "z" / "copy-2.png").exists()


def test_changed_files_are_left(engine: Engine, tmp_path: Path) -> None:
    """Between planning and acting the kept picture of one group is replaced, and a copy of the other one."""
    plan = engine.clean_up("move", into=tmp_path / "out", max_distance=0).plan
    photos = tmp_path / "photos"
    shutil.copy(photos / "rose" / "0.png", photos / "amber" / "0.png")
    shutil.copy(photos / "rose" / "1.png", photos / "z" / "blue.png")
    report = carry_out(plan, "index")
    assert report.files == 0 and len(report.problems) == 3
    assert {reason for _, reason in report.problems} == {"it has changed since it was indexed"}
    assert not list((tmp_path / "out").rglob("*.png"))


def test_chains_are_not_followed(tmp_path: Path, photos: Path, colours: Colours) -> None:
    """A picture that is only like another copy stays."""
    for number in range(4):
        Image.new("RGB", (16, 16), (100 + 10 * number, 100, 100)).save(photos / f"{number}.png")
    with api.build(photos, tmp_path / "index", colours) as engine:
        step = 2 * 10 / 255  # four quarters, one colour
        plan = engine.clean_up("trash", keep="oldest", max_distance=step * 1.1).plan
        group = plan.groups[0]
        assert len(group) == 4 and [d.action for d in group].count("trash") in (1, 2)
        assert {d.reason for d in group if d.action == "leave"} == {
            "it is near another picture of the group, but not near the one to keep"
        }


def test_against_another_index(engine: Engine, tmp_path: Path, colours: Colours) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    other.mkdir()
    shutil.copy(photos / "green" / "0.png", other / "g.png")
    shutil.copy(photos / "rose" / "0.png", tmp_path / "rose.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "rose.png", "r.png")
    with api.build([other, tmp_path / "a.zip"], tmp_path / "second", colours) as second:
        found = engine.duplicates(0, against=second)
        assert [[(m.own, m.item.path) for m in group] for group in found] == [
            [(True, "green/0.png"), (False, "g.png")],
            [(True, "rose/0.png"), (False, "r.png")],
        ]
        report = engine.clean_up("move", into=tmp_path / "out", keep="against", against=second, max_distance=0)
        assert report.plan.count == 2
        report = engine.clean_up(
            "move", into=tmp_path / "out", keep="against", against=second, max_distance=0, dry_run=False
        )
        assert report.files == 2 and (other / "g.png").exists() and not (photos / "rose" / "0.png").exists()
        assert engine.clean_up("trash", keep="against", against=second, max_distance=0).plan.count == 0


def test_against_the_same_files(engine: Engine, tmp_path: Path, colours: Colours) -> None:
    """A file that both indexes have is no copy of itself."""
    (tmp_path / "alias").symlink_to("photos")
    with api.build(tmp_path / "alias", tmp_path / "second", colours) as second:
        assert engine.duplicates(0, against=second) == []
    with api.build(tmp_path / "alias", tmp_path / "third", CellModel()) as third, pytest.raises(ModelMismatchError):
        engine.duplicates(0, against=third)


def test_move_into_a_source_is_refused(engine: Engine, tmp_path: Path) -> None:
    for into in (tmp_path / "photos", tmp_path / "photos" / "new", tmp_path / "photos" / "z" / ".." / "new"):
        with pytest.raises(UsageError, match="inside the source"):
            engine.clean_up("move", into=into, max_distance=0)
    assert engine.clean_up("move", into=tmp_path / "photos" / ".hidden", max_distance=0).plan.count == 3


def test_wrong_arguments(engine: Engine, tmp_path: Path) -> None:
    for action, into in [("delete", None), ("move", None), ("trash", tmp_path)]:
        with pytest.raises(UsageError, match="cannot be used with into="):
            engine.clean_up(action, into=into)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    for wrong, told in (("12", "not a number"), (-1, "not negative"), (float("nan"), "not negative")):
        with pytest.raises(UsageError, match=told):
            engine.clean_up("trash", max_distance=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a folder"):
        engine.clean_up("move", into=tmp_path / "file", max_distance=0, dry_run=False)
    with pytest.raises(UsageError, match="exists already"):
        engine.clean_up("trash", max_distance=0, dry_run=False, journal=tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


def test_ignored_groups(engine: Engine, tmp_path: Path, colours: Colours) -> None:
    found = engine.duplicates(0)
    ignored.ignore(engine.opened_index, found[:1])
    assert engine.duplicates(0) == found[1:] and engine.duplicates(0, ignored=True) == found
    assert not engine.verify().problems
    os.rename(tmp_path / "photos" / "z" / "copy.png", tmp_path / "photos" / "moved.png")
    api.build(tmp_path / "photos", tmp_path / "index", colours).close()
    assert len(engine.duplicates(0)) == 1
    shutil.copy(tmp_path / "photos" / "moved.png", tmp_path / "photos" / "fourth.png")  # one more is news
    api.build(tmp_path / "photos", tmp_path / "index", colours).close()
    assert len(engine.duplicates(0)) == 2
    (tmp_path / "index" / "ignored.json").write_text('{"ignored": [[1]]}')
    with pytest.raises(IndexDamagedError):
        engine.duplicates(0)
