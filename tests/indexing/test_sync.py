"""Builds compute only what changed, and items keep their ids."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsearch.engine import Engine
from simsearch.errors import (
    UsageError,
)
from simsearch.indexing import sync
from simsearch.storage import reader
from simsearch.storage.database import Changes, Database
from simsearch.storage.reader import Item
from tests.helpers.models import Colours
from tests.helpers.pictures import CLASSES, EACH, draw
from tests.helpers.sync import ALL, _ticks, edit, failures, ids, items, labels, told, touch


def features_are_those_of_the_files(index: Path, colours: Colours, root: Path) -> None:
    """Every item's features are what its file gives now."""
    with Engine(index, model=colours) as engine, engine.reading() as reader:
        for item in reader.items():
            row = engine.shards.read(np.array([item.row]))[0].astype(np.float32)
            assert np.array_equal(row, engine.features([root / item.path])[0]), item.path


# -- what is recomputed


def test_first_build_then_nothing(build: Any, photos: Path, index: Path) -> None:
    assert told(build(photos)) == {"added": ALL, "computed": ALL}
    before = ids(index)
    assert sorted(before.values()) == list(range(1, ALL + 1))
    assert told(build(photos)) == {"unchanged": ALL}
    assert told(build()) == {"unchanged": ALL}
    assert ids(index) == before


def test_touched_file_is_read_but_not_computed(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = items(index)
    touch(photos / "blue" / "3.png")
    assert told(build(photos)) == {"unchanged": ALL}
    after = items(index)
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {"blue/3.png"}  # its stamp
    assert after["blue/3.png"].row == before["blue/3.png"].row


def test_edited_file_alone_is_computed(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    build(photos)
    before = ids(index)
    edit(photos / "green" / "2.png", 900)
    assert told(build(photos)) == {"updated": 1, "unchanged": ALL - 1, "computed": 1}
    assert ids(index) == before
    features_are_those_of_the_files(index, colours, photos)


@pytest.mark.parametrize("target", ["green/0-renamed.png", "rose/of-blue.png", "new/deep/x.png"])
def test_moved_file_keeps_its_id(build: Any, photos: Path, index: Path, target: str) -> None:
    build(photos)
    before = items(index)
    (photos / target).parent.mkdir(parents=True, exist_ok=True)
    (photos / "blue" / "0.png").rename(photos / target)
    assert told(build(photos)) == {"moved": 1, "unchanged": ALL - 1}
    after = items(index)
    assert after[target].id == before["blue/0.png"].id
    assert after[target].label == Path(target).parent.name
    assert "blue/0.png" not in after


def test_renamed_folder_keeps_all_ids(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = ids(index)
    (photos / "blue").rename(photos / "azure")
    assert told(build(photos)) == {"moved": EACH, "unchanged": ALL - EACH}
    assert ids(index) == {path.replace("blue/", "azure/"): number for path, number in before.items()}
    assert labels(index)["azure/0.png"] == "azure"


def test_copy_gets_an_id_without_inference(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    build(photos)
    before = ids(index)
    shutil.copy(photos / "rose" / "1.png", photos / "rose" / "copy.png")
    assert told(build(photos)) == {"added": 1, "unchanged": ALL}
    assert ids(index) == before | {"rose/copy.png": ALL + 1}
    features_are_those_of_the_files(index, colours, photos)


def test_id_of_deleted_file_is_never_reused(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (photos / "rose" / "5.png").unlink()  # the last id
    assert told(build(photos)) == {"removed": 1, "unchanged": ALL - 1}
    draw(photos / "rose" / "new.png", 901)
    assert told(build(photos)) == {"added": 1, "unchanged": ALL - 1, "computed": 1}
    assert ids(index)["rose/new.png"] == ALL + 1


def test_swapped_names_need_no_inference(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    build(photos)
    before = ids(index)
    one, two, three = photos / "blue" / "0.png", photos / "rose" / "0.png", photos / "third.png"
    one.rename(three)
    two.rename(one)
    three.rename(two)
    for path in (one, two):
        touch(path)
    assert told(build(photos)) == {"updated": 2, "unchanged": ALL - 2}
    assert ids(index) == before
    features_are_those_of_the_files(index, colours, photos)


def test_everything_at_once(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    build(photos)
    before = ids(index)
    (photos / "amber" / "0.png").rename(photos / "blue" / "was-amber.png")  # moved
    draw(photos / "amber" / "0.png", 910)  # and another in its place
    touch(photos / "amber" / "0.png")
    (photos / "amber" / "1.png").unlink()
    edit(photos / "amber" / "2.png", 911)
    shutil.copy(photos / "rose" / "0.png", photos / "amber" / "copy.png")
    for first, second in (("3", "x"), ("4", "3"), ("5", "4"), ("x", "5")):  # a ring of three
        (photos / "green" / f"{first}.png").rename(photos / "green" / f"{second}.png")
    for name in "345":
        touch(photos / "green" / f"{name}.png")
    summary = build(photos)
    assert summary.computed == 2
    after = ids(index)
    kept = before.keys() - {"amber/1.png"}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    assert after.keys() - kept == {"blue/was-amber.png", "amber/copy.png"}
    features_are_those_of_the_files(index, colours, photos)
    assert told(build(photos)) == {"unchanged": ALL + 1}


def test_two_copies_in_a_first_build(build: Any, photos: Path, index: Path) -> None:
    shutil.copy(photos / "blue" / "0.png", photos / "rose" / "same.png")
    summary = build(photos)
    assert summary.added == ALL + 1
    assert summary.computed in {ALL, ALL + 1}  # by whether both were in flight at once
    found = items(index)
    assert found["blue/0.png"].digest == found["rose/same.png"].digest
    with Engine(index, model=Colours()) as engine:
        matches = engine.search(photos / "blue" / "0.png", k=2)
    assert [match.distance for match in matches] == [0, 0]
    assert [match.id for match in matches] == sorted(found[p].id for p in ("blue/0.png", "rose/same.png"))


def test_of_two_copies_one_deleted(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    shutil.copy(photos / "blue" / "0.png", photos / "rose" / "same.png")
    build(photos)
    before = ids(index)
    (photos / "blue" / "0.png").unlink()
    assert told(build(photos)) == {"removed": 1, "unchanged": ALL}
    assert ids(index) == {path: number for path, number in before.items() if path != "blue/0.png"}
    features_are_those_of_the_files(index, colours, photos)


@pytest.mark.parametrize("seed", range(4))
def test_random_histories(build: Any, photos: Path, index: Path, colours: Colours, seed: int) -> None:
    """Many random changes: only new content is computed, unchanged paths keep their ids, features fit the files."""
    random = np.random.default_rng(seed)
    build(photos)
    for step in range(5):
        before = items(index)
        files = sorted(path for path in photos.rglob("*.png"))
        for path in random.choice(np.array(files, dtype=object), 6, replace=False):
            match int(random.integers(6)):
                case 0:
                    touch(path)
                case 1:
                    edit(path, 1000 + next(_ticks))
                case 2:
                    path.rename(path.with_name(f"{step}-{path.name}"))
                case 3:
                    target = photos / str(random.choice(CLASSES)) / f"copy-{next(_ticks)}.png"
                    shutil.copy2(path, target)
                case 4:
                    path.unlink()
                case _:
                    other = files[int(random.integers(len(files)))]
                    if path.exists() and other.exists() and path != other:
                        path.rename(photos / "between")
                        other.rename(path)
                        (photos / "between").rename(other)
                        touch(path)
                        touch(other)
        summary = build(photos)
        after = items(index)
        assert after.keys() == {str(path.relative_to(photos)) for path in photos.rglob("*.png")}
        assert {path: after[path].id for path in after.keys() & before.keys()} == {
            path: before[path].id for path in after.keys() & before.keys()
        }
        fresh = {item.digest for item in after.values()} - {item.digest for item in before.values()}
        assert summary.computed >= len(fresh)
        assert summary.computed <= sum(item.digest in fresh for item in after.values())
        features_are_those_of_the_files(index, colours, photos)
        assert build(photos).unchanged == len(after)


# -- gone and broken images


def test_no_prune_keeps_items_of_gone_images(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = ids(index)
    (photos / "rose" / "5.png").unlink()
    (photos / "rose" / "4.png").rename(photos / "rose" / "moved.png")
    assert told(build(photos, prune=False)) == {"moved": 1, "unchanged": ALL - 2}
    assert ids(index) == {("rose/moved.png" if path == "rose/4.png" else path): n for path, n in before.items()}
    assert told(build(photos)) == {"removed": 1, "unchanged": ALL - 1}


def test_failure_is_recorded_and_healed(build: Any, photos: Path, index: Path) -> None:
    bad = photos / "blue" / "bad.png"
    bad.write_bytes(b"not an image")
    assert told(build(photos)) == {"added": ALL, "failed": 1, "computed": ALL}
    assert [path for path, _ in failures(index)] == ["blue/bad.png"]
    assert told(build(photos)) == {"unchanged": ALL, "failed": 1}
    edit(bad, 920)
    assert told(build(photos)) == {"added": 1, "unchanged": ALL, "computed": 1}
    assert failures(index) == []


def test_failure_of_a_deleted_file_is_forgotten(build: Any, photos: Path, index: Path) -> None:
    bad = photos / "blue" / "bad.png"
    bad.write_bytes(b"")
    build(photos)
    assert failures(index) == [("blue/bad.png", "empty file")]
    bad.unlink()
    build(photos)
    assert failures(index) == []


def test_file_broken_later_leaves_the_index(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    broken = photos / "green" / "1.png"
    data = broken.read_bytes()
    broken.write_bytes(data[: len(data) // 2])
    touch(broken)
    assert told(build(photos)) == {"removed": 1, "failed": 1, "unchanged": ALL - 1}
    assert "green/1.png" not in ids(index)
    assert [path for path, _ in failures(index)] == ["green/1.png"]
    broken.write_bytes(data)
    touch(broken)
    assert told(build(photos)).keys() == {"added", "unchanged", "computed"}
    assert failures(index) == []


def test_emptied_source_is_refused(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = items(index)
    photos.rename(photos.with_name("elsewhere"))
    photos.mkdir()  # as a mount point is when its disk is missing
    for names in ([photos], []):
        with pytest.raises(UsageError, match="holds no images, but the index has 24"):
            build(*names)
        assert items(index) == before
    assert told(build(photos, prune=False)) == {}
    assert items(index) == before


def test_missing_source_is_refused(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = items(index)
    photos.rename(photos.with_name("elsewhere"))
    with pytest.raises(UsageError):
        build()
    assert items(index) == before


def test_empty_folder_makes_an_empty_index(build: Any, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert told(build(tmp_path / "nothing")) == {}


def test_missing_source_leaves_no_index(build: Any, tmp_path: Path, index: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        build(tmp_path / "nowhere")
    assert not index.exists()


def test_renamed_file_keeps_features_if_replaced(
    build: Any, photos: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the item that had the features has been committed with others before the file is read."""
    build(photos)
    monkeypatch.setattr(sync, "COMMIT_IMAGES", 1)
    os.replace(photos / "amber" / "0.png", photos / "rose" / "z.png")
    draw(photos / "amber" / "0.png", 981)
    summary = build(photos, batch_size=1, workers=1)
    assert (summary.updated, summary.added, summary.computed) == (1, 1, 1)


def test_adding_one_image_reads_no_others(
    build: Any, photos: Path, index: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(photos)
    draw(photos / "rose" / "new.png", 982)
    shutil.copy(photos / "blue" / "1.png", photos / "rose" / "copy.png")
    read: set[int] = set()
    made = reader._item

    def noted(values: Sequence[Any]) -> Item:
        read.add(values[0])
        return made(values)

    monkeypatch.setattr(reader, "_item", noted)
    with Engine(index, model=colours) as engine:
        summary = engine.add([photos / "rose" / "new.png", photos / "rose" / "copy.png"])
        assert (summary.added, summary.computed, len(engine)) == (2, 1, ALL + 2)
        assert engine.add(photos / "rose" / "new.png").unchanged == 1
    assert len(read) <= 2


def test_items_and_failures_of_part_of_source(tmp_path: Path) -> None:
    names = ["a", "a/b", "a/b/c", "a.b", "a0", "ab", "A/b", "a\udcff/x"]
    items = Database(tmp_path / "items.sqlite", create=True)
    for kind in ("folder", "zip"):
        source = items.add_source(kind, "/pictures", tmp_path, {}).id
        new = [
            Item(0, source, name, None, {}, name.encode("utf-8", "surrogateescape"), 1, 1, 1, 1, 8 * source + n)
            for n, name in enumerate(names)
        ]
        items.apply(Changes(inserted=new, failed=[(source, name + "!", "why") for name in names]))
    with items.reading() as reader:
        for below in ("", "a", "a/b", "a/b/c", "b", "ab", "a\udcff"):
            expected = [name for name in names if not below or name == below or name.startswith(below + "/")]
            assert [item.path for item in reader.items(2, below)] == expected
            failed = {name + "!" for name in names if not below or name.startswith(below + "/")}
            assert {path for _, path, _ in reader.failures(2, below)} == failed
        assert len(list(reader.items())) == len(reader.failures()) == 2 * len(names)
        assert reader.has_items(2) and not reader.has_items(3)
    items.close()
