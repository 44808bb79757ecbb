"""An index that is removed, replaced or moved while it is open: answers come whole from one, and no writer harms another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import simsearch
from simsearch import api
from simsearch.engine import Engine
from simsearch.errors import IndexReplacedError, SimsearchError
from simsearch.indexing import meta_update, options, sync
from simsearch.indexing.compact import compact
from simsearch.indexing.merge import merge_indexes
from simsearch.indexing.tune import tune
from simsearch.search import duplicates
from simsearch.search.results import Matches
from simsearch.storage.database import Database
from simsearch.storage.export import export_npy
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.index import Index
from simsearch.storage.lock import writer_lock
from simsearch.storage.verify import verify
from tests.helpers.filler import Filler
from tests.helpers.models import Colours
from tests.helpers.pictures import draw


class Other(Colours):
    """Another model, of another size: the mean colours of the left and the right half."""

    name, weights_sha256, dimension = "halves", "ab" * 32, 6

    def features(self, pixels: np.ndarray) -> np.ndarray:
        self.computed += len(pixels)
        cells: np.ndarray = (pixels.reshape(-1, 16, 2, 8, 3).mean((1, 3)) / 255).astype(np.float32)
        return cells.reshape(len(cells), 6)


class Renamed(Colours):
    """A model of the same size whose features are others."""

    name, weights_sha256 = "inverse", "cd" * 32

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return 1 - super().features(pixels)


def pictures(folder: Path, first: int, count: int) -> Path:
    for number in range(count):
        draw(folder / f"{number:03}.png", first + number)
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """20 pictures."""
    return pictures(tmp_path / "old", 0, 20)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """30 other pictures."""
    return pictures(tmp_path / "new", 1000, 30)


def delete(folder: Path) -> None:
    """Who opens an index meanwhile makes files in it."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def removed_and_built(index: Path, build: Callable[[Path], None]) -> None:
    delete(index)
    build(index)


def emptied_and_built(index: Path, build: Callable[[Path], None]) -> None:
    for child in index.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink(missing_ok=True)  # a reader may have done so
    build(index)


def renamed_over(index: Path, build: Callable[[Path], None]) -> None:
    build(index.with_name("fresh"))
    index.rename(index.with_name("before"))
    index.with_name("fresh").rename(index)


def link_turned(index: Path, build: Callable[[Path], None]) -> None:
    build(index.with_name("fresh"))
    if not index.is_symlink():
        index.rename(index.with_name("before"))
    index.with_name("link").symlink_to("fresh")
    os.replace(index.with_name("link"), index) if index.is_symlink() else index.with_name("link").rename(index)


WAYS = [removed_and_built, emptied_and_built, renamed_over, link_turned]
MODELS = [Colours, Renamed, Other]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> Callable[[Path, Callable[[Path], None]], None]:
    found: Callable[[Path, Callable[[Path], None]], None] = request.param
    return found


@pytest.fixture
def index(tmp_path: Path, old: Path) -> Path:
    with simsearch.build(old, index=tmp_path / "index", model=Colours()):
        return tmp_path / "index"


def content(path: Path) -> dict[str, bytes]:
    """Every file of an index but those that a reader may touch."""
    with Index(path) as opened:
        assert verify(opened).problems == ()
        with opened.reading() as reader:
            items = [(item.id, item.path, item.digest, item.row) for item in reader.items()]
            rows = reader.shards.read(np.arange(reader.state("rows")))
    return {"items": repr(items).encode(), "rows": rows.tobytes(), "meta": (path / "meta.json").read_bytes()}


def told(matches: Matches) -> list[tuple[int, str, float]]:
    return [(match.id, match.path, match.distance) for match in matches]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_answers_stay_whole(index, old, new, way, model):
    """faults/202 and its siblings: every way to replace it, the same model, another one, another size."""
    with Engine(index, model=Colours()) as engine:
        query = old / "007.png"
        before = told(engine.search(query, 5)), told(engine.search_by_id(3, 5)), len(engine)
        way(index, lambda path: simsearch.build(new, index=path, model=model()).close())
        assert (told(engine.search(query, 5)), told(engine.search_by_id(3, 5)), len(engine)) == before
        assert engine.search(query, 1)[0].path == str(query)
        assert engine.meta.dimension == 12 and engine.info()["items"] == 20
    with Engine(index, model=model()) as again:
        assert len(again) == 30 and again.search(new / "003.png", 1)[0].path == str(new / "003.png")


def test_an_engine_that_has_not_searched_yet(index, old, new, way):
    with Engine(index, model=Colours()) as engine:
        way(index, lambda path: simsearch.build(new, index=path, model=Other()).close())
        for number in range(20):
            found = engine.search(old / f"{number:03}.png", 1)[0]
            assert (found.path, found.distance) == (str(old / f"{number:03}.png"), 0)
        assert [item.path for item in engine.find(str(old))] == [f"{number:03}.png" for number in range(20)]


def test_many_threads_after_the_files_are_gone(index, old, new, way):
    """More connections are needed than were open when the database went."""
    with Engine(index, model=Colours()) as engine:
        want = told(engine.search(old / "001.png", 5))
        way(index, lambda path: simsearch.build(new, index=path, model=Colours()).close())
        with engine.reading() as one, engine.reading() as two, engine.reading() as three:
            assert one.count() == two.count() == three.count() == 20
            assert [item.path for item in three.items()] == [item.path for item in one.items()]
        found: list[object] = []

        def search() -> None:
            try:
                found.extend(told(engine.search(old / "001.png", 5)) == want for _ in range(10))
            except BaseException as error:
                found.append(error)

        threads = [threading.Thread(target=search) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 80


def test_threads_search_while_it_is_replaced(index, old, new, way):
    """Each answer is that of the old index, whole; engines opened meanwhile answer from one of the two."""
    query = old / "004.png"
    problems: list[object] = []
    done = threading.Event()

    def search(engine: Engine) -> None:
        want = told(engine.search(query, 20))
        while not done.is_set():
            found = told(engine.search(query, 20))
            if found != want:
                problems.append(found)

    def reopen() -> None:
        while not done.is_set():
            try:
                with Engine(index, model=Colours()) as engine:
                    found = engine.search(query, 40)
                    if len({os.path.dirname(match.path) for match in found}) > 1 or len(found) not in {0, 20, 30}:
                        problems.append(told(found))
            except SimsearchError:  # taken away half-way through the opening
                continue
            except BaseException as error:
                problems.append(error)

    with Engine(index, model=Colours()) as engine:
        engine.search(query, 1)
        threads = [threading.Thread(target=search, args=[engine]) for _ in range(3)] + [threading.Thread(target=reopen)]
        for thread in threads:
            thread.start()
        for number in range(4):
            source = new if number % 2 else old
            for rest in ("before", "fresh"):
                if not (index.is_symlink() and os.readlink(index) == rest):
                    delete(index.with_name(rest))
            if index.is_symlink():
                target = index.resolve()
                index.unlink()
                target.rename(index)
            way(index, lambda path, source=source: simsearch.build(source, index=path, model=Colours()).close())
        done.set()
        for thread in threads:
            thread.join()
    assert problems == []


def test_removed_for_good(index, old):
    with Engine(index, model=Colours()) as engine:
        want = told(engine.search(old / "001.png", 5))
        shutil.rmtree(index)
        assert told(engine.search(old / "001.png", 5)) == want
        with pytest.raises(IndexReplacedError):
            engine.add(old / "001.png")
        with pytest.raises(IndexReplacedError):
            engine.remove(3)
    assert not index.exists()


def test_moved_away_and_back(index, old, tmp_path):
    """A folder that was renamed is read where it is now, and is writable again when it is back."""
    with Engine(index, model=Colours()) as engine:
        index.rename(tmp_path / "away")
        with engine.reading() as one, engine.reading() as two, engine.reading() as three:
            assert one.count() == two.count() == three.count() == 20
        with pytest.raises(IndexReplacedError, match="removed or replaced") as caught:
            engine.remove(1)
        assert str(index) in str(caught.value) and caught.value.hint
        (tmp_path / "away").rename(index)
        assert engine.remove(1) == 1 and len(engine) == 19
    with Index(index) as opened:
        assert verify(opened).problems == () and len(opened) == 19


def writers() -> Iterator[tuple[str, Callable[[Engine, Path], object]]]:
    yield "add", lambda engine, picture: engine.add(picture)
    yield "remove", lambda engine, picture: engine.remove(3)
    yield "sync", lambda engine, picture: sync.sync(engine.index, engine.model, [], options.BuildOptions())
    yield "compact", lambda engine, picture: compact(engine.index)
    yield "tune", lambda engine, picture: tune(engine.index, 1.0)
    yield "relocate", lambda engine, picture: engine.relocate({"": str(picture.parent)})


WRITERS = dict(writers())


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_stops(index, new, tmp_path, way, writer):
    """faults/212 and its siblings: one clear error, and the index that took the place is as it was."""
    check_writer(index, new, tmp_path, way, Colours, writer)


@pytest.mark.parametrize("model", [Renamed, Other])
def test_writer_of_another_models_index_stops(index, new, tmp_path, model):
    check_writer(index, new, tmp_path, renamed_over, model, "add")


def check_writer(index, new, tmp_path, way, model, writer):
    picture = draw(tmp_path / "more" / "x.png", 5000)
    with Engine(index, model=Colours()) as engine:
        engine.search_by_id(1, 2)
        way(index, lambda path: simsearch.build(new, index=path, model=model()).close())
        before = content(index)
        with pytest.raises(IndexReplacedError, match="removed or replaced while it was open"):
            WRITERS[writer](engine, picture)
        assert len(engine) == 20
    assert content(index) == before


def test_merging_into_a_replaced_index(index, old, new, tmp_path, way):
    with simsearch.build(new, index=tmp_path / "second", model=Colours()) as second, Index(index) as target:
        way(index, lambda path: simsearch.build(old, index=path, model=Colours()).close())
        before = content(index)
        with pytest.raises(IndexReplacedError):
            merge_indexes(target, second.index)
        assert content(index) == before


@pytest.mark.parametrize("when", ["reading", "writing", "committing", "refreshing"])
def test_a_swap_during_a_build(index, old, new, tmp_path, way, when, monkeypatch):
    """At several moments of a build the index is replaced; the build fails, and the other one verifies."""
    check_swap(index, old, new, tmp_path, way, Colours, when, monkeypatch)


@pytest.mark.parametrize("model", [Renamed, Other])
def test_a_swap_for_an_index_of_another_model(index, old, new, tmp_path, model, monkeypatch):
    check_swap(index, old, new, tmp_path, removed_and_built, model, "writing", monkeypatch)


def check_swap(index, old, new, tmp_path, way, model, when, monkeypatch):
    more = pictures(tmp_path / "more", 2000, 12)
    swapped: list[dict[str, bytes]] = []

    def swap() -> None:
        if not swapped:
            swapped.append({})
            way(index, lambda path: simsearch.build(new, index=path, model=model()).close())
            swapped[0] = content(index)

    place, name = {
        "reading": (sync, "extract"),
        "writing": (FeatureFiles, "write"),
        "committing": (Database, "apply"),
        "refreshing": (meta_update, "refresh_meta"),
    }[when]
    call = getattr(place, name)

    def late(*arguments: object, **options: object) -> object:
        if threading.current_thread() is threading.main_thread():
            swap()
        return call(*arguments, **options)

    monkeypatch.setattr(place, name, late)
    monkeypatch.setattr(sync, "COMMIT_IMAGES", 3)
    with pytest.raises(IndexReplacedError, match="removed or replaced while it was open"):
        simsearch.build([old, more], index=index, model=Colours())
    monkeypatch.undo()
    assert swapped and content(index) == swapped[0]
    with Engine(index, model=model()) as engine:
        assert len(engine) == 30


def test_first_build_keeps_another_index(tmp_path, old, new, monkeypatch):
    """A build that turns out to be a mistake deletes what it has made, and nothing that came in its place."""
    index, begin = tmp_path / "index", sync.sync

    def late(*arguments: object, **options: object) -> object:
        monkeypatch.undo()
        shutil.rmtree(index)
        simsearch.build(new, index=index, model=Colours()).close()
        return begin(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sync, "sync", late)
    with pytest.raises(SimsearchError):
        simsearch.build(old, index=index, model=Colours())
    with Index(index) as opened:
        assert len(opened) == 30 and verify(opened).problems == ()


def test_new_index_at_same_place_has_own_lock(index, new, way):
    """Who waits to write the old one does not keep others from the new one."""
    with Index(index) as opened, writer_lock(opened.folder):
        way(index, lambda path: simsearch.build(new, index=path, model=Colours()).close())
        with Engine(index, model=Colours()) as engine:
            assert engine.remove(1) == 1


def test_tuned_indexes(tmp_path, way):
    """Search structures are files as well: those of the other index are never asked."""
    random = np.random.default_rng(0)
    filler = Filler(tmp_path / "index", 12)
    filler.add(random.normal(0, 1, (3000, 12)))
    tune(filler.engine.index, 0.9)
    queries = random.normal(0, 1, (5, 12)).astype(np.float32)

    def build(path: Path) -> None:
        other = Filler(path, 6)
        other.add(random.normal(0, 1, (3000, 6)))
        tune(other.engine.index, 0.9)
        other.engine.close()

    with Engine(tmp_path / "index", model=filler.model) as engine:  # which has not searched yet
        before = [told(filler.engine.search_by_vector(query, 5, exact=True)) for query in queries]
        filler.engine.close()
        way(tmp_path / "index", build)
        assert [told(engine.search_by_vector(query, 5, exact=True)) for query in queries] == before
        for query in queries:
            assert len(engine.search_by_vector(query, 5)) == 5
        assert engine.structure is None or engine.structure.search is not None


def test_reports_over_a_replaced_index(index, new, tmp_path, way):
    """Duplicates and exports read the index that was opened."""
    with Engine(index, model=Colours()) as engine:
        before = duplicates.duplicate_groups(engine.snapshots, 5.0)
        export_npy(engine.opened_index, tmp_path / "first")
        way(index, lambda path: simsearch.build(new, index=path, model=Other()).close())
        assert duplicates.duplicate_groups(engine.snapshots, 5.0) == before
        export_npy(engine.opened_index, tmp_path / "second")
    for name in ("features.npy", "items.jsonl"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_relative_paths_outlive_change_of_folder(index, old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Engine("index", model=Colours()) as engine:
        monkeypatch.chdir("/")
        with engine.reading() as one, engine.reading() as two:
            assert one.count() == two.count() == 20
        assert engine.add(draw(tmp_path / "more" / "y.png", 6000)).added == 1
        assert len(engine) == 21


def test_without_proc(index, old, new, tmp_path, way, monkeypatch):
    """Where the system does not tell where a folder is now, a moved index is read from what is open, or refused."""
    from simsearch.storage import folder

    monkeypatch.setattr(os, "readlink", lambda path: (_ for _ in ()).throw(OSError("no /proc here")))
    exists = folder.identity_of
    monkeypatch.setattr(folder, "identity_of", lambda p: (0, 0) if str(p).startswith("/proc/") else exists(p))
    with Engine(index, model=Colours()) as engine:
        want = told(engine.search(old / "002.png", 5))
        if way is not link_turned:
            way(index, lambda path: simsearch.build(new, index=path, model=Other()).close())
        with engine.reading() as one, engine.reading() as two, engine.reading() as three:
            assert one.count() == two.count() == three.count() == 20
        assert told(engine.search(old / "002.png", 5)) == want


def test_no_descriptor_is_left_open(index, old, new, way):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    with Engine(index, model=Colours()) as engine:
        engine.search(old / "000.png", 1)
    del engine
    before = count()
    for _ in range(3):
        with Engine(index, model=Colours()) as engine:
            engine.search(old / "000.png", 1)
        del engine
    import gc

    gc.collect()
    assert count() <= before


def test_plan_sees_the_index_that_it_opened(index, old, tmp_path):
    summary = api.plan([old], index, Colours(), options.BuildOptions())
    assert summary.unchanged == 20


def test_the_log_goes_with_the_last_to_close(index, tmp_path):
    """SQLite's log is emptied into the database, and deleted by whoever closes last, other processes included."""
    log = index / "items.sqlite-wal"
    one, two = Engine(index, model=Colours()), Engine(index, model=Colours())
    one.add(draw(tmp_path / "more" / "z.png", 7000))
    assert log.stat().st_size
    one.close()
    assert log.exists() and len(two) == 21
    code = (
        "import sys, simsearch; e = simsearch.engine.Index(sys.argv[1]); print(len(e), flush=True); input(); e.close()"
    )
    command = [sys.executable, "-c", f"import simsearch.engine; {code}", str(index)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "21\n"
        two.close()
        assert log.exists()
        other.communicate("\n", timeout=60)
    assert not log.exists() and not (index / "items.sqlite-shm").exists()
    with Index(index) as opened:
        assert len(opened) == 21 and verify(opened).problems == ()
    assert not log.exists()


def test_closing_leaves_the_other_index_log(index, new, tmp_path, way):
    with Engine(index, model=Colours()) as engine:
        engine.remove(1)
        way(index, lambda path: simsearch.build(new, index=path, model=Colours()).close())
        other = Engine(index, model=Colours())
        other.remove(2)
        size = (index / "items.sqlite-wal").stat().st_size
    assert size and (index / "items.sqlite-wal").stat().st_size == size
    assert len(other) == 29
    other.close()
    assert not (index / "items.sqlite-wal").exists()
    with Index(index) as opened:
        assert len(opened) == 29 and verify(opened).problems == ()
