"""Sources of an index: overlapping, moved, relabelled, removed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsearch import api
from simsearch.engine import Engine
from simsearch.errors import (
    SimsearchError,
    UsageError,
)
from simsearch.storage.connections import Connections
from simsearch.storage.verify import verify
from tests.helpers.models import Colours
from tests.helpers.pictures import CLASSES, EACH, draw
from tests.helpers.sync import ALL, _ticks, edit, failures, ids, items, labels, sources, told

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
    """Folders, their subfolders and single files, built and added at random: each image is indexed exactly once."""
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
                opened = engine.opened_index.sources(reader)
                found = [opened[item.source].display(item.path) for item in reader.items()]
                assert verify(engine.index).problems == ()
            wanted = {str(f) for f in photos.rglob("*.png") if f in named or named & set(f.parents)}
            assert sorted(found) == sorted(wanted)


def test_failing_while_absorbing(build: Any, photos: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed while a source absorbs another leaves both or one, but never an image twice."""
    build(photos / "blue")
    connect = Connections.connect

    def deny(action: int, table: str | None, *_: Any) -> int:
        return sqlite3.SQLITE_DENY if (action, table) == (sqlite3.SQLITE_DELETE, "sources") else sqlite3.SQLITE_OK

    def guarded(connections: Connections, *mode: Any, **check: Any) -> sqlite3.Connection:
        connection = connect(connections, *mode, **check)
        connection.set_authorizer(deny)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(Connections, "connect", guarded)
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


def test_folder_is_added_after_its_single_file(build: Any, photos: Path, index: Path) -> None:
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


STRAYS: dict[str, bytes] = {
    "broken.jpg": b"\xff\xd8\xff\xe0 cut off",
    "empty.png": b"",
    "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    ".DS_Store": b"\0\0\0\1Bud1",
    "README.txt": b"hello",
    "film.mp4": b"\0\0\0\x18ftypmp42",
}
"""Files that lie about in folders of pictures, by name."""


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_stray_file_leaves_labels_alone(
    kind: str, stray: str, build: Any, photos: Path, index: Path, tmp_path: Path
) -> None:
    (photos / stray).write_bytes(STRAYS[stray])
    place = photos
    if kind != "folder":
        format_ = {"zip": "zip", "tar.gz": "gztar"}[kind]
        place = Path(shutil.make_archive(str(tmp_path / "packed"), format_, photos))
    assert build(place).items == ALL
    assert set(labels(index).values()) == set(CLASSES)


def test_picture_at_the_top_has_no_label(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = labels(index)
    assert set(before.values()) == set(CLASSES)
    draw(photos / "top.png", 950)
    assert told(build(photos)) == {"added": 1, "unchanged": ALL, "computed": 1}
    assert labels(index) == {**before, "top.png": None}
    assert told(build(photos / CLASSES[0])) == {"unchanged": EACH}  # a part of the source
    assert labels(index) == {**before, "top.png": None}


def test_labels_change_without_inference(build: Any, photos: Path, index: Path) -> None:
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


def test_manifest_changes_need_no_inference(build: Any, photos: Path, index: Path) -> None:
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


def test_moved_images_are_the_same_source(build: Any, photos: Path, tmp_path: Path) -> None:
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


# -- regressions


def test_a_renamed_folder_is_not_indexed_twice(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    before = set(ids(index).values())
    photos.rename(photos.with_name("renamed"))
    assert told(build(photos.with_name("renamed"))) == {"moved": ALL}
    assert set(ids(index).values()) == before
    assert len(sources(index)) == 1
    assert told(build()) == {"unchanged": ALL}


def test_emptied_missing_source_is_forgotten(build: Any, photos: Path, index: Path, tmp_path: Path) -> None:
    build(photos)
    draw(tmp_path / "more" / "x.png", 980)
    build(tmp_path / "more")
    with Engine(index, model=Colours()) as engine:
        engine.remove(str(tmp_path / "more"))
    (tmp_path / "more" / "x.png").unlink()
    (tmp_path / "more").rmdir()
    assert told(build()) == {"unchanged": ALL}
    assert len(sources(index)) == 1


def test_missing_single_file_is_removed(build: Any, photos: Path, index: Path) -> None:
    build(photos / "blue" / "0.png")
    (photos / "blue" / "0.png").unlink()
    assert build().removed == 1


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
        for bad in (["year==3"], ["year=>3"], {"label": [["a"]]}, 5):
            with pytest.raises(UsageError):
                engine.search_by_id(1, where=bad)  # type: ignore[arg-type]
