"""Building and bringing in step: what is recomputed, what keeps its id, and what a build never does."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsearch import api, reader, sync
from simsearch.engine import Engine
from simsearch.errors import (
    IndexDamagedError,
    IndexLockedError,
    IndexNotFoundError,
    ModelMismatchError,
    SimsearchError,
    UsageError,
)
from simsearch.meta import writer_lock
from simsearch.store import Changes, Item, SourceRow, Store
from simsearch.verify import verify
from tests.conftest import CLASSES, EACH, Colours, draw

ALL = len(CLASSES) * EACH
_ticks = itertools.count(1)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def build(index: Path, colours: Colours) -> Callable[..., sync.Summary]:
    """Builds with the `colours` model, checks that what is left is in order, and returns what was done.

    `computed` must be the number of images that went through the model.
    """

    def run(*names: Path | str, model: Any = colours, place: Path = index, **options: Any) -> sync.Summary:
        before = model.computed
        roots = options.pop("roots", None)
        engine, summary = api.build_with_summary(
            names, place, model, device="cpu", options=sync.Options(**options), roots=roots
        )
        with engine:
            assert summary.computed == model.computed - before
            assert summary.items == len(engine)
            assert verify(engine.index).problems == ()
        return summary

    return run


def items(index: Path) -> dict[str, Item]:
    """All items by their stored path."""
    store = Store(index / "items.sqlite")
    with store.reading() as reader:
        found = list(reader.items())
    store.close()
    assert len({item.path for item in found}) == len(found)
    return {item.path: item for item in found}


def ids(index: Path) -> dict[str, int]:
    return {path: item.id for path, item in items(index).items()}


def labels(index: Path) -> dict[str, str | None]:
    return {path: item.label for path, item in items(index).items()}


def sources(index: Path) -> list[SourceRow]:
    store = Store(index / "items.sqlite")
    with store.reading() as reader:
        found = reader.sources()
    store.close()
    return found


def failures(index: Path) -> list[tuple[str, str]]:
    store = Store(index / "items.sqlite")
    with store.reading() as reader:
        found = [(path, reason) for _, path, reason in reader.failures()]
    store.close()
    return found


def touch(path: Path) -> None:
    """Gives a file a time that it never had."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 10**9 * next(_ticks)))


def edit(path: Path, seed: int) -> None:
    draw(path, seed)
    touch(path)


def told(summary: sync.Summary) -> dict[str, int]:
    """What a summary counts that is not 0."""
    names = ("added", "updated", "moved", "removed", "unchanged", "failed", "computed")
    return {name: getattr(summary, name) for name in names if getattr(summary, name)}


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


def test_deleted_file_leaves_and_its_id_is_never_given_again(build: Any, photos: Path, index: Path) -> None:
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


# -- sources within sources


def test_folder_within_a_source_belongs_to_it(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = ids(index)
    draw(photos / "blue" / "new.png", 930)
    draw(photos / "rose" / "new.png", 931)
    (photos / "rose" / "0.png").unlink()
    assert told(build(photos / "blue")) == {"added": 1, "unchanged": EACH, "computed": 1}
    assert ids(index) == before | {"blue/new.png": ALL + 1}
    assert [row.root for row in sources(index)] == [str(photos)]


def test_broader_source_absorbs_narrower_ones(build: Any, photos: Path, index: Path) -> None:
    build(photos / "blue")
    build(photos / "rose")
    assert len(sources(index)) == 2
    assert told(build(photos)) == {"added": ALL - 2 * EACH, "unchanged": 2 * EACH, "computed": ALL - 2 * EACH}
    assert [row.root for row in sources(index)] == [str(photos)]
    found = ids(index)
    assert [found[f"blue/{n}.png"] for n in range(EACH)] == list(range(1, EACH + 1))
    assert [found[f"rose/{n}.png"] for n in range(EACH)] == list(range(EACH + 1, 2 * EACH + 1))


@pytest.mark.parametrize("names", [("", "blue"), ("blue", ""), ("", ""), ("blue/0.png", "blue/0.png")])
def test_overlapping_sources_in_one_call(build: Any, photos: Path, index: Path, names: Sequence[str]) -> None:
    build(*(photos / name for name in names))
    assert len(sources(index)) == 1
    assert len(ids(index)) == (1 if "blue/0.png" in names else ALL)


def test_a_file_named_before_its_folder(build: Any, photos: Path, index: Path) -> None:
    build(photos / "blue" / "0.png", photos / "blue")
    assert len(ids(index)) == EACH


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_overlapping_sources(photos: Path, index: Path, colours: Colours, seed: int) -> None:
    """Folders, folders in them and single files, built and added at random: each image is indexed once, for good."""
    names = [photos, *(photos / name for name in ("blue", "blue/deep", "blue/deep/er", "rose"))]
    for number, name in enumerate(names):
        for each in "xy":
            draw(name / f"{each}.png", 2000 + 10 * number + ord(each) % 2)
    names += [name / "x.png" for name in names] + [photos / "blue" / "y.png"]
    random = np.random.default_rng(seed)
    for _ in range(6):
        shutil.rmtree(index, ignore_errors=True)
        named: set[Path] = set()
        for step in range(5):
            chosen = [names[n] for n in random.choice(len(names), int(random.integers(1, 4)), replace=False)]
            with api.build([*chosen], index, colours, prune=bool(random.integers(2))):
                named |= set(chosen)
            folder = names[int(random.integers(5))]
            draw(folder / f"new-{next(_ticks)}.png", 3000 + next(_ticks))
            if step % 2:
                continue
            with api.build([], index, colours) as engine, engine.reading() as reader:
                opened = engine.opened(reader)
                found = [opened[item.source].display(item.path) for item in reader.items()]
                assert verify(engine.index).problems == ()
            wanted = {str(f) for f in photos.rglob("*.png") if f in named or named & set(f.parents)}
            assert sorted(found) == sorted(wanted)


def test_failing_while_absorbing(build: Any, photos: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends while the narrower source is handed over leaves both or one, never the images of both."""
    build(photos / "blue")
    connect = Store._connect

    def deny(action: int, table: str | None, *_: Any) -> int:
        return sqlite3.SQLITE_DENY if (action, table) == (sqlite3.SQLITE_DELETE, "sources") else sqlite3.SQLITE_OK

    def guarded(store: Store) -> sqlite3.Connection:
        connection = connect(store)
        connection.set_authorizer(deny)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_connect", guarded)
        with pytest.raises(SimsearchError, match="not authorized"):
            build(photos)
    build()
    assert len(ids(index)) in {EACH, ALL}


def test_single_files(build: Any, photos: Path, index: Path) -> None:
    files = [photos / "blue" / "0.png", photos / "blue" / "1.png"]
    assert told(build(*files)) == {"added": 2, "computed": 2}
    assert told(build()) == {"unchanged": 2}  # not the rest of their folder
    edit(files[0], 940)
    assert told(build()) == {"updated": 1, "unchanged": 1, "computed": 1}
    files[1].unlink()
    assert build().removed == 1
    assert ids(index) == {"0.png": 1}
    build()
    assert failures(index) == []


def test_folder_after_a_single_file_of_it(build: Any, photos: Path, index: Path) -> None:
    build(photos / "blue" / "0.png")
    assert told(build(photos / "blue")) == {"added": EACH - 1, "unchanged": 1, "computed": EACH - 1}
    draw(photos / "blue" / "new.png", 941)
    assert told(build()) == {"added": 1, "unchanged": EACH, "computed": 1}
    assert len(sources(index)) == 1


def test_adding_a_folder_after_a_single_file_of_it(build: Any, photos: Path, index: Path) -> None:
    build(photos / "blue" / "0.png")
    with Engine(index, model=Colours()) as engine:
        engine.add([photos / "blue"])
    draw(photos / "blue" / "new.png", 941)
    assert build().added == 1


def test_add_and_remove(build: Any, photos: Path, index: Path, tmp_path: Path) -> None:
    build(photos)
    extra = draw(tmp_path / "extra" / "x.png", 942)
    with Engine(index, model=Colours()) as engine:
        assert told(engine.add([extra])) == {"added": 1, "computed": 1}
        assert told(engine.add([extra])) == {"unchanged": 1}
        assert len(engine) == ALL + 1
        assert engine.search(extra, k=1)[0].path == str(extra)
        assert engine.remove([str(photos / "blue"), "id:1"]) == EACH + 1
        assert len(engine) == ALL - EACH
        assert verify(engine.index).problems == ()
    assert extra.exists()
    assert (photos / "blue" / "0.png").exists()


# -- labels


def test_labels_auto_needs_all_in_folders(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    assert set(labels(index).values()) == set(CLASSES)
    draw(photos / "top.png", 950)
    build(photos)
    assert set(labels(index).values()) == {None}
    (photos / "top.png").unlink()
    assert told(build(photos)) == {"removed": 1, "unchanged": ALL}
    assert set(labels(index).values()) == set(CLASSES)


def test_labels_none_and_folder_without_inference(build: Any, photos: Path, index: Path) -> None:
    draw(photos / "top.png", 950)
    build(photos, labels="none")
    assert set(labels(index).values()) == {None}
    before = ids(index)
    assert told(build(photos, labels="folder")) == {"unchanged": ALL + 1}
    assert labels(index) == {path: path.rpartition("/")[0] or None for path in before}
    assert told(build(photos, labels="none")) == {"unchanged": ALL + 1}
    assert set(labels(index).values()) == {None}
    assert told(build()) == {"unchanged": ALL + 1}  # the rule is remembered
    assert set(labels(index).values()) == {None}
    assert ids(index) == before


def test_manifest_labels_and_metadata_follow_without_inference(build: Any, photos: Path, index: Path) -> None:
    manifest = photos.parent / "list.jsonl"
    lines = [{"path": f"photos/blue/{n}.png", "label": "sky", "year": 2000 + n} for n in range(EACH)]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    assert told(build(manifest)) == {"added": EACH, "computed": EACH}
    lines[2] |= {"label": "sea", "year": 1900}
    manifest.write_text("\n".join(map(json.dumps, lines)))
    assert told(build()) == {"unchanged": EACH}
    item = next(item for item in items(index).values() if item.path.endswith("2.png"))
    assert (item.label, item.metadata) == ("sea", {"year": 1900})


# -- moving


def test_index_moved_together_with_its_images(build: Any, photos: Path, colours: Colours, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    photos.rename(home / "photos")
    build(home / "photos", place=home / "index")
    home.rename(tmp_path / "away")
    place = tmp_path / "away" / "index"
    with Engine(place, model=colours) as engine:
        assert Path(engine.search_by_id(1, k=1)[0].path).is_file()
    assert told(build(place=place)) == {"unchanged": ALL}


def test_moved_images_named_again_are_the_same_source(build: Any, photos: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    photos.rename(home / "photos")
    build(home / "photos", place=home / "index")
    home.rename(tmp_path / "away")
    summary = build(tmp_path / "away" / "photos", place=tmp_path / "away" / "index")
    assert told(summary) == {"unchanged": ALL}


@pytest.mark.parametrize("whole", [True, False])
def test_roots_say_where_the_images_are(
    build: Any, photos: Path, index: Path, colours: Colours, tmp_path: Path, whole: bool
) -> None:
    build(photos)
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    photos.rename(moved)
    roots = {str(photos) if whole else "": str(moved)}
    with Engine(index, model=colours, roots=roots) as engine:
        assert engine.search_by_id(1, k=1)[0].path.startswith(str(moved))
        assert engine.read(1) == (moved / "amber" / "0.png").read_bytes()
    assert told(build(roots=roots)) == {"unchanged": ALL}  # and recorded
    assert told(build()) == {"unchanged": ALL}
    assert told(build(moved)) == {"unchanged": ALL}
    with pytest.raises(UsageError, match="no source /nowhere"):
        build(roots={"/nowhere": str(moved)})


# -- dry runs


def test_dry_run_counts_and_changes_nothing(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    build(photos)
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file() and path.name != "writer.lock"}
    edit(photos / "blue" / "0.png", 960)
    draw(photos / "blue" / "new.png", 961)
    (photos / "rose" / "0.png").unlink()
    computed = colours.computed
    for names in ([], [photos / "blue", photos / "rose"]):
        summary = api.plan(names, index, colours, sync.Options())
        assert (summary.to_read, summary.removed) == (2, 1)
    assert colours.computed == computed
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_dry_run_of_a_new_index(photos: Path, index: Path, colours: Colours) -> None:
    summary = api.plan([photos], index, colours, sync.Options())
    assert (summary.to_read, summary.items, colours.computed) == (ALL, 0, 0)
    assert not index.exists()
    with pytest.raises(UsageError):
        api.build_with_summary([], index, colours, device="cpu", options=sync.Options())
    assert not index.exists()


def test_dry_run_records_no_source(build: Any, photos: Path, index: Path, colours: Colours) -> None:
    build(photos / "blue", labels="none")
    before = sources(index)
    api.plan([photos / "blue"], index, colours, sync.Options())
    api.plan([photos], index, colours, sync.Options())
    assert sources(index) == before


def test_refused_build_records_nothing(build: Any, photos: Path, index: Path) -> None:
    build(photos, labels="none")
    before = sources(index)
    photos.rename(photos.with_name("elsewhere"))
    photos.mkdir()
    with pytest.raises(UsageError):
        build(photos)
    assert sources(index) == before


# -- writers, interruptions, mismatches


def test_second_writer_is_refused_while_readers_go_on(
    build: Any, photos: Path, index: Path, colours: Colours, tmp_path: Path
) -> None:
    build(photos)
    inside, on = threading.Event(), threading.Event()

    def wait(done: int, total: int) -> None:
        inside.set()
        assert on.wait(30)

    draw(tmp_path / "more" / "x.png", 970)
    with Engine(index, model=Colours()) as writer, Engine(index, model=colours) as reader:
        thread = threading.Thread(target=writer.add, args=([tmp_path / "more"],), kwargs={"progress": wait})
        thread.start()
        try:
            assert inside.wait(30)
            with pytest.raises(IndexLockedError, match=f"process {os.getpid()} is writing"):
                build(photos)
            with pytest.raises(IndexLockedError):
                reader.remove([1])
            assert len(reader.search(photos / "blue" / "0.png", k=30)) == ALL
        finally:
            on.set()
            thread.join()
        assert len(reader.search(photos / "blue" / "0.png", k=30)) == ALL + 1


def test_lock_is_free_again(index: Path) -> None:
    index.mkdir()
    with writer_lock(index), pytest.raises(IndexLockedError), writer_lock(index):
        pass
    with writer_lock(index):
        pass


@pytest.mark.parametrize("every", [1, 4, 1000])
def test_interrupted_build_keeps_what_is_done(
    build: Any, photos: Path, index: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(sync, "COMMIT_IMAGES", every)

    def interrupt(done: int, total: int) -> None:
        assert total == ALL
        if done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(photos, progress=interrupt, batch_size=3)
    with Engine(index, model=colours) as engine:
        assert len(engine) == 9
        assert verify(engine.index).problems == ()
        assert engine.meta.items == 9
    before = ids(index)
    assert told(build(photos)) == {"added": ALL - 9, "unchanged": 9, "computed": ALL - 9}
    assert before.items() <= ids(index).items()


def test_interrupted_build_prunes_nothing(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (photos / "rose" / "0.png").unlink()
    edit(photos / "blue" / "0.png", 980)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(photos, progress=interrupt)
    assert "rose/0.png" in ids(index)
    assert told(build(photos)) == {"removed": 1, "unchanged": ALL - 1}


def test_a_renamed_file_keeps_its_features_though_another_has_taken_its_name(
    build: Any, photos: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the item that had the features has been committed with others before the file is read."""
    build(photos)
    monkeypatch.setattr(sync, "COMMIT_IMAGES", 1)
    os.replace(photos / "amber" / "0.png", photos / "rose" / "z.png")
    draw(photos / "amber" / "0.png", 981)
    summary = build(photos, batch_size=1, workers=1)
    assert (summary.updated, summary.added, summary.computed) == (1, 1, 1)


def test_adding_one_image_reads_nothing_of_the_others(
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


def test_items_and_failures_of_a_part_of_a_source(tmp_path: Path) -> None:
    names = ["a", "a/b", "a/b/c", "a.b", "a0", "ab", "A/b", "a\udcff/x"]
    items = Store(tmp_path / "items.sqlite", create=True)
    for kind in ("folder", "zip"):
        source = items.add_source(kind, "/pictures", tmp_path, {}).id
        new = [Item(0, source, name, None, {}, name.encode("utf-8", "surrogateescape"), 1, 1, 1, 1, 8 * source + n)
               for n, name in enumerate(names)]  # fmt: skip
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


@pytest.mark.parametrize("when", [
    "before",
    "after",
])  # fmt: skip
def test_interrupted_in_a_commit(
    build: Any, photos: Path, index: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Ctrl-C in the middle of a build, while a commit begins or when it is just done."""
    monkeypatch.setattr(sync, "COMMIT_IMAGES", 4)
    apply, calls = Store.apply, itertools.count()

    def interrupted(store: Store, changes: Any) -> None:
        if next(calls) == 1:
            if when == "after":
                apply(store, changes)
            raise KeyboardInterrupt
        apply(store, changes)

    monkeypatch.setattr(Store, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(photos, batch_size=4)
    done = len(ids(index))
    assert done >= 4
    assert told(build(photos)) == {"added": ALL - done, "unchanged": done, "computed": ALL - done}


def test_other_weights_are_refused_naming_both_hashes(build: Any, photos: Path, index: Path) -> None:
    build(photos)

    class Other(Colours):
        weights_sha256 = "ab" * 32

    for action in (lambda: Engine(index, model=Other()), lambda: build(photos, model=Other())):
        with pytest.raises(ModelMismatchError) as caught:
            action()
        assert Other.weights_sha256 in str(caught.value)
        assert Colours.weights_sha256 in str(caught.value)


def test_future_format_is_refused(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    meta = json.loads((index / "meta.json").read_text())
    (index / "meta.json").write_text(json.dumps(meta | {"format": meta["format"] + 1, "unheard": "of"}))
    with pytest.raises(UsageError, match=f"format {meta['format'] + 1}"):
        Engine(index, model=Colours())
    with pytest.raises(UsageError, match="format"):
        build(photos)
    assert (index / "items.sqlite").exists()


def test_place_that_holds_other_things_is_left_alone(build: Any, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for place in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(UsageError, match="not an index"):
            build(photos, place=place)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    with pytest.raises(IndexNotFoundError):
        Engine(tmp_path / "nowhere")


def test_lost_meta_is_not_replaced_by_another_model(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (index / "meta.json").unlink()

    class Other(Colours):
        weights_sha256 = "ab" * 32

    draw(photos / "blue" / "new.png", 990)
    with pytest.raises(Exception, match=r"meta\.json"):
        build(photos, model=Other())


def test_meta_counts_follow(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (photos / "blue" / "bad.png").write_bytes(b"")
    (photos / "rose" / "0.png").unlink()
    build(photos)
    meta = json.loads((index / "meta.json").read_text())
    assert (meta["items"], meta["rows"], meta["failures"]) == (ALL - 1, ALL, 1)
    with sqlite3.connect(index / "items.sqlite") as connection:
        assert meta["generation"] == connection.execute("SELECT value FROM state WHERE key='generation'").fetchone()[0]
    connection.close()


# -- what a review found


def test_a_renamed_folder_is_not_indexed_twice(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = set(ids(index).values())
    photos.rename(photos.with_name("renamed"))
    assert told(build(photos.with_name("renamed"))) == {"moved": ALL}
    assert set(ids(index).values()) == before
    assert len(sources(index)) == 1
    assert told(build()) == {"unchanged": ALL}


def test_a_gone_source_that_was_emptied_is_forgotten(build: Any, photos: Path, index: Path, tmp_path: Path) -> None:
    build(photos)
    draw(tmp_path / "more" / "x.png", 980)
    build(tmp_path / "more")
    with Engine(index, model=Colours()) as engine:
        engine.remove(str(tmp_path / "more"))
    (tmp_path / "more" / "x.png").unlink()
    (tmp_path / "more").rmdir()
    assert told(build()) == {"unchanged": ALL}
    assert len(sources(index)) == 1


def test_a_single_file_that_is_gone_is_no_unmounted_disk(build: Any, photos: Path, index: Path) -> None:
    build(photos / "blue" / "0.png")
    (photos / "blue" / "0.png").unlink()
    assert build().removed == 1


def test_lost_features_are_noticed_before_anything_is_added(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (index / "features" / "000000.f16").unlink()
    draw(photos / "blue" / "new.png", 981)
    for _ in range(2):
        with pytest.raises(IndexDamagedError):
            build(photos)
    assert not (index / "features" / "000000.f16").exists()


def test_a_file_called_like_a_database_hides_nothing(build: Any, photos: Path, index: Path) -> None:
    (photos / "blue" / "items.sqlite").touch()
    assert build(photos).added == ALL


def test_a_lone_string_is_one_name(build: Any, photos: Path, index: Path) -> None:
    build(photos, exclude="*0.png")
    left = len(ids(index))
    assert 0 < left < ALL
    with Engine(index, model=Colours()) as engine:
        with pytest.raises(UsageError, match="empty name"):
            engine.remove("")
        assert engine.add(photos / "blue" / "0.png").added == 1  # named, so wanted
        assert engine.remove("id:1") == 1
        assert engine.remove(2) == 1
        found = engine.search_many(str(photos / "blue" / "1.png"), 1, plus=str(photos / "blue" / "1.png"))
        assert len(found) == 1
        with pytest.raises(UsageError):
            engine.search(None)  # type: ignore[arg-type]
        for k in ("2", 2.5, None, True):
            with pytest.raises(UsageError):
                engine.search(photos / "blue" / "1.png", k)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="closed"):
        len(engine)


def test_an_indexed_file_is_at_distance_nought(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    with Engine(index, model=Colours()) as engine:
        for path in sorted(photos.rglob("*.png")):
            match = engine.search(path, 1, max_distance=0)[0]
            assert match.path == str(path)
            assert (match.distance, match.similarity) == (0, 1)


def test_copies_do_not_spoil_similarity(build: Any, photos: Path, index: Path) -> None:
    for number in range(4):
        shutil.copytree(photos, photos.with_name(f"copy{number}"))
        build(photos.with_name(f"copy{number}"))
    with Engine(index, model=Colours()) as engine:
        assert engine.meta.distances[0] > 0


def test_roots_must_be_there(build: Any, photos: Path, index: Path, tmp_path: Path) -> None:
    build(photos)
    for roots in ({"": str(tmp_path / "typo")}, {"/unknown": str(photos)}):
        with pytest.raises(UsageError):
            Engine(index, model=Colours(), roots=roots)
        with pytest.raises(UsageError):
            build(roots=roots)
    assert told(build()) == {"unchanged": ALL}


def test_filters_by_printed_path(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    with Engine(index, model=Colours()) as engine:
        for where in ([f"path={photos}/blue/1.png"], ["path=blue/1.png"], [f"path~{photos}/blue/1*"]):
            assert [match.relative for match in engine.search_by_id(1, 9, where=where)] == ["blue/1.png"]
        assert len(engine.search_by_id(1, 99, where=[f"path!={photos}/blue/1.png"])) == ALL - 2
        for bad in (["year==3"], ["year=>3"], {"label": ["a"]}, 5):
            with pytest.raises(UsageError):
                engine.search_by_id(1, where=bad)  # type: ignore[arg-type]
