"""The rules that choose what stays."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from simsearch import api
from simsearch.curation.cleanup.keep import KeepRule
from simsearch.curation.cleanup.plan import reason_to_stay
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.images.sources import resolve
from simsearch.search.duplicates import Member
from tests.helpers.models import Colours


def kept(engine: Engine, folder: Path, rule: str, reach: float = 0) -> list[str]:
    groups = engine.duplicates(reach, keep=rule)
    return [os.path.relpath(group[0].path, folder) for group in groups]


def test_rules(engine: Engine, copies: Path) -> None:
    assert kept(engine, copies, "largest") == ["amber/0.png", "blue/0.png"]
    assert kept(engine, copies, "oldest") == ["amber/0.png", "blue/0.png"]
    assert kept(engine, copies, "newest") == ["z/copy.png", "z/blue.png"]
    assert kept(engine, copies, "shortest-path") == ["z/copy.png", "blue/0.png"]
    assert kept(engine, copies, f"under:{copies / 'z'}") == ["z/copy.png", "z/blue.png"]


def test_distances_are_to_the_kept_one(engine: Engine) -> None:
    for group in engine.duplicates(0.5, keep="newest"):
        assert group[0].distance == 0


def test_larger_picture_is_kept(tmp_path: Path, photos: Path, colours: Colours) -> None:
    with Image.open(photos / "rose" / "0.png") as image:
        image.resize((64, 64), Image.Resampling.NEAREST).save(photos / "z.png", compress_level=9)
    with api.build(photos, tmp_path / "index", colours) as engine:
        assert kept(engine, photos, "largest", 0.1) == ["z.png"]


def test_link_is_never_kept(tmp_path: Path, photos: Path, colours: Colours) -> None:
    shutil.move(photos / "rose" / "0.png", tmp_path / "elsewhere.png")
    (photos / "0.png").symlink_to(tmp_path / "elsewhere.png")
    shutil.copy(tmp_path / "elsewhere.png", photos / "rose" / "copy.png")
    with api.build(photos, tmp_path / "index", colours) as engine:
        assert kept(engine, photos, "shortest-path") == ["rose/copy.png"]
        report = engine.clean_up("move", into=tmp_path / "out", keep="shortest-path", max_distance=0, dry_run=False)
        assert report.files == 0 and [d.reason for d in report.plan.groups[0]] == ["", "it is a link"]


def test_file_is_kept_before_an_archive(tmp_path: Path, photos: Path, colours: Colours) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(photos / "rose" / "0.png", "0.png")
    with api.build([tmp_path / "a.zip", photos], tmp_path / "index", colours) as engine:
        assert kept(engine, photos, "largest") == ["rose/0.png"]
        plan = engine.clean_up("trash", max_distance=0).plan
        assert [(d.action, d.reason) for d in plan.groups[0]] == [
            ("keep", ""),
            ("leave", "it is in an archive or a table"),
        ]


def test_what_is_kept_elsewhere_stays(engine: Engine) -> None:
    item = engine.item(1)
    source = resolve.RecordedSource("remote", "s3://bucket/photos")
    member = Member(item, source.display(item.path), 0.0, source)
    assert reason_to_stay(member) == "it is on another machine"


def test_all_under_a_folder_stay(engine: Engine, copies: Path) -> None:
    plan = engine.clean_up("trash", keep=f"under:{copies / 'amber'}", max_distance=0).plan
    assert [[(d.member.item.path, d.action) for d in group] for group in plan.groups] == [
        [("amber/0.png", "keep"), ("amber/copy.png", "keep"), ("z/copy.png", "trash")],
        [("blue/0.png", "leave"), ("z/blue.png", "leave")],
    ]


@pytest.mark.parametrize("rule", ["", "best", "under:", "under:/nowhere", "against", "under:DIR"])
def test_wrong_rules(rule: str) -> None:
    with pytest.raises(UsageError):
        KeepRule.parse(rule)
