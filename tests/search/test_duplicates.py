"""Duplicate images are found in groups."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simsearch import api
from simsearch.cli.main import main
from simsearch.curation.cleanup.keep import KeepRule
from simsearch.curation.cleanup.plan import make_plan
from simsearch.errors import UsageError
from simsearch.search import duplicates, near_rows
from simsearch.search.copy_threshold import Threshold
from tests.helpers.filler import Filler
from tests.helpers.models import Colours


def expected(features: np.ndarray, reach: float) -> list[list[int]]:
    """The groups, ids from 1, by comparing all pairs."""
    x = features.astype(np.float64)
    near = np.linalg.norm(x[:, None] - x[None], axis=2) <= reach
    group = np.arange(len(x))
    while True:
        lowest = np.array([group[near[i]].min() for i in range(len(x))])
        if (lowest == group).all():
            break
        group = lowest
    found = [(1 + np.flatnonzero(group == g)).tolist() for g in np.unique(group)]
    return sorted((g for g in found if len(g) > 1), key=lambda g: (-len(g), g[0]))


@pytest.mark.parametrize("reach", [0.0, 0.5, 3.0, 8.0, 1e30, 1e200, np.inf])
def test_groups_are_those_of_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reach: float) -> None:
    monkeypatch.setattr(near_rows, "BLOCK", 32)
    monkeypatch.setattr(near_rows, "WINDOW", 64)
    monkeypatch.setattr(near_rows, "PAIRS", 16)
    random = np.random.default_rng(1)
    features = np.maximum(random.normal(0, 2, (400, 80)), 0)
    copies = random.integers(0, 400, 120)
    features[random.integers(0, 400, 120)] = features[copies] + random.normal(0, 0.05, (120, 80))
    features[:40] = features[40]
    features = features.astype(np.float16)
    filler = Filler(tmp_path / "index", 80, rows_per_shard=128)
    filler.add(features)
    found = duplicates.duplicate_groups(filler.engine.snapshots, reach)
    assert [[member.item.id for member in group] for group in found] == expected(features, reach)
    for group in found:
        first = features[group[0].item.id - 1].astype(np.float64)
        for member in group:
            distance = np.linalg.norm(features[member.item.id - 1].astype(np.float64) - first)
            assert member.distance == pytest.approx(distance)


def test_large_indexes_are_compared_list_by_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    features = np.maximum(random.normal(0, 2, (3000, 80)), 0)
    features[random.permutation(3000)[:400]] = features[:400] + random.normal(0, 0.05, (400, 80))
    features[1000:1060] = features[7] + random.normal(0, 0.02, (60, 80))  # more than an item's nearest
    filler = Filler(tmp_path / "index", 80)
    filler.add(features)
    filler.remove(range(1, 100, 9))

    def ids(found: list[list[duplicates.Member]]) -> list[list[int]]:
        return [[member.item.id for member in group] for group in found]

    exact = duplicates.duplicate_groups(filler.engine.snapshots, 1.5)
    assert (
        duplicates.checked(filler.engine.snapshots, exact, 1.5)[0]
        == duplicates.checked(filler.engine.snapshots, exact, 1.5)[1]
        > 20
    )
    monkeypatch.setattr(near_rows, "EXACT", 1000)
    found = duplicates.duplicate_groups(filler.engine.snapshots, 1.5)
    assert ids(duplicates.duplicate_groups(filler.engine.snapshots, 1.5, exact=True)) == ids(exact)
    pairs, together = duplicates.checked(filler.engine.snapshots, found, 1.5)
    assert together >= 0.95 * pairs
    linked = {number for group in ids(found) for number in group}
    assert linked <= {number for group in ids(exact) for number in group}
    assert max(map(len, found)) >= 60
    assert duplicates.checked(filler.engine.snapshots, [], 1.5) == (pairs, 0)


def test_removed_items_are_in_no_group(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 4)
    assert duplicates.duplicate_groups(filler.engine.snapshots, 1) == []
    filler.add(np.ones((3, 4)))
    filler.remove([2])
    assert [[m.item.id for m in group] for group in duplicates.duplicate_groups(filler.engine.snapshots, 0)] == [[1, 3]]
    filler.remove([1])
    assert duplicates.duplicate_groups(filler.engine.snapshots, 5) == []
    with pytest.raises(UsageError, match="not negative"):
        duplicates.duplicate_groups(filler.engine.snapshots, -1)


def test_names_of_one_file_are_no_pair(tmp_path: Path, photos: Path, colours: Colours) -> None:
    """Deleting all paths that are listed never deletes the last copy of a picture."""
    (photos / "amber" / "0link.png").symlink_to("1.png")
    os.link(photos / "blue" / "0.png", photos / "blue" / "hard.png")
    shutil.copy(photos / "rose" / "0.png", photos / "rose" / "copy.png")
    (photos / "amber" / "0.link.png").symlink_to("../rose/copy.png")
    (tmp_path / "alias").symlink_to("photos")
    (tmp_path / "m.csv").write_text("path\n" + "\n".join(f"photos/blue/{n}.png" for n in range(6)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(photos / "green" / "0.png", "g/0.png")
    (tmp_path / "b.zip").symlink_to("a.zip")
    places = [photos, tmp_path / "m.csv", tmp_path / "alias", tmp_path / "a.zip", tmp_path / "b.zip"]
    for place in places:
        api.build(place, tmp_path / "index", colours).close()
    with api.open(tmp_path / "index", model=colours) as engine:
        found = duplicates.duplicate_groups(engine.snapshots, 0)
        pairs = [[str(Path(member.path).relative_to(tmp_path)) for member in group] for group in found]
        assert sorted(pairs) == [
            ["photos/green/0.png", "a.zip!/g/0.png"],
            ["photos/rose/0.png", "photos/rose/copy.png"],
        ]
        together = duplicates.checked(engine.snapshots, found, 0)
        assert together[0] == together[1] > 0


def test_gone_and_changed_files_are_no_pair(tmp_path: Path, photos: Path, colours: Colours) -> None:
    """An index that has not been updated makes nobody delete the last copy, or a picture that took a copy's place."""
    for name in ("amber", "blue", "green", "rose"):
        shutil.copy(photos / name / "0.png", photos / name / "copy.png")
    with api.build(photos, tmp_path / "index", colours) as engine:

        def pairs() -> list[list[str]]:
            found = duplicates.duplicate_groups(engine.snapshots, 0)
            return sorted([str(Path(m.path).relative_to(photos)) for m in group] for group in found)

        assert len(pairs()) == 4
        (photos / "amber" / "0.png").unlink()
        shutil.copy(photos / "blue" / "1.png", photos / "blue" / "0.png")
        os.utime(photos / "green" / "copy.png", (5, 5))
        assert pairs() == [["green/0.png", "green/copy.png"], ["rose/0.png", "rose/copy.png"]]
        photos.rename(tmp_path / "away")
        assert len(pairs()) == 4


def scenes(folder: Path, count: int) -> None:
    """Writes pictures of coarse shapes and details, different ones."""
    folder.mkdir()
    for seed in range(count):
        random = np.random.default_rng(seed)
        coarse = random.integers(40, 216, (6, 8, 3)).astype(np.uint8)
        shapes = np.asarray(Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC), np.float64)
        pixels = np.clip(shapes + random.normal(0, 14, (30, 40, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")


def names(found: list[list[duplicates.Member]]) -> list[list[str]]:
    return sorted(sorted(Path(member.path).name for member in group) for group in found)


def test_pictures_decide_within_the_reach(tmp_path: Path, colours: Colours) -> None:
    """Everything is within the reach: only what agrees pixel by pixel is grouped, however near or far it is."""
    scenes(tmp_path / "p", 12)
    with Image.open(tmp_path / "p" / "3.png") as image:
        image.resize((120, 90)).save(tmp_path / "p" / "3-small.jpg", quality=60)
    with Image.open(tmp_path / "p" / "7.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "p" / "7-mirrored.png")
    shutil.copy(tmp_path / "p" / "5.png", tmp_path / "p" / "5-same.png")
    with api.build(tmp_path / "p", tmp_path / "index", colours) as engine:
        wanted = [["3-small.jpg", "3.png"], ["5-same.png", "5.png"], ["7-mirrored.png", "7.png"]]
        for distance in (0.0, 1e3):
            limit = Threshold(distance, {}, 1e3)
            found = duplicates.duplicate_groups(engine.snapshots, limit)
            assert names(found) == wanted
            assert all(member.is_copy for group in found for member in group)
            together = duplicates.checked(engine.snapshots, found, limit)
            assert together[0] == together[1] > 0
        assert len(duplicates.duplicate_groups(engine.snapshots, 1e3)[0]) == 15
        assert names(duplicates.duplicate_groups(engine.snapshots, Threshold(0.0, {}, 1e-9))) == wanted[1:2]


def test_unreadable_pictures_go_by_distance(tmp_path: Path, colours: Colours) -> None:
    scenes(tmp_path / "p", 6)
    with api.build(tmp_path / "p", tmp_path / "index", colours) as engine:
        (tmp_path / "p").rename(tmp_path / "away")
        assert len(duplicates.duplicate_groups(engine.snapshots, Threshold(1e3, {}, 2e3))[0]) == 6
        assert duplicates.duplicate_groups(engine.snapshots, Threshold(0.0, {}, 2e3)) == []


def test_clean_up_leaves_what_only_others_link(tmp_path: Path, colours: Colours) -> None:
    """A picture at any distance goes only if its own pixels agree with those of the one that stays."""
    scenes(tmp_path / "p", 4)
    with Image.open(tmp_path / "p" / "1.png") as image:
        for number, width in enumerate((152, 148, 140)):  # each cut a little more, the last one too much for the first
            image.crop((0, 0, width, 120)).save(tmp_path / "p" / f"1-{number}.png")
    with api.build(tmp_path / "p", tmp_path / "index", colours) as engine:
        limit = Threshold(0.0, {}, 1e3)
        found = duplicates.duplicate_groups(engine.snapshots, limit, keep=KeepRule.parse("largest", False))
        assert names(found) == [["1-0.png", "1-1.png", "1-2.png", "1.png"]]
        plan = make_plan(found, KeepRule.parse("largest", False), "trash", limit.distance)
        actions = {Path(decision.member.path).name: decision.action for decision in plan.groups[0]}
        assert actions == {"1.png": "keep", "1-0.png": "trash", "1-1.png": "trash", "1-2.png": "leave"}


def test_duplicates_from_the_command_line(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    filler = Filler(tmp_path / "index", 4)
    filler.add(np.array([[0, 0, 0, 0], [9, 0, 0, 0], [0, 0, 0, 1], [0, 5, 0, 0]]))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["duplicates", "-i", str(filler.path), *arguments])
        out = capsysbinary.readouterr()
        return int(end.value.code or 0), out.out.decode(), out.err.decode()

    code, out, err = run("--max-distance", "1", "--format", "json")
    assert code == 0 and [[m["id"] for m in group] for group in json.loads(out)] == [[1, 3]]
    assert "1 group of 2 items" in err
    assert json.loads(run("--max-distance", "1", "--format", "jsonl")[1])[1]["distance"] == 1
    assert run("--max-distance", "1", "--format", "paths")[1] == "/nowhere/000002\n"
    rows = list(csv.DictReader(io.StringIO(run("--max-distance", "1", "--format", "csv")[1])))
    assert [(row["group"], row["id"]) for row in rows] == [("1", "1"), ("1", "3")]
    report = tmp_path / "report.html"
    assert "group 1: 2 items" in run("--max-distance", "1", "--html", str(report))[1]
    page = report.read_text()
    assert "Near-identical pictures" in page and page.count("distance 1") == 1  # of the second one to the first
    assert run("--max-distance", "0.5")[0] == 1
    assert run("--html", str(tmp_path / "none" / "report.html"))[0] == 2
