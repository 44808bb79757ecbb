"""Builds on a cluster make the same index as local builds; a push survives a restart of its server.

Tests that need a cluster of Ray or a Milvus server run with `scripts/test-cluster`; the others compute chunks here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import simsearch
from simsearch import api
from simsearch.cli.main import main
from simsearch.cluster import work as cluster_work
from simsearch.cluster.extractor import ClusterExtractor
from simsearch.cluster.ray import on_ray
from simsearch.cluster.work import WorkFolder, WorkItem
from simsearch.cluster.worker import Worker
from simsearch.engine import Engine
from simsearch.errors import ModelMismatchError, SimsearchError, UnavailableError, UsageError
from simsearch.indexing import options as indexing_options
from simsearch.installation import install_line
from simsearch.storage.verify import verify
from tests.helpers.data import DATA
from tests.helpers.filler import Filler
from tests.helpers.milvus_server import PYTHON, Server
from tests.helpers.pictures import draw

TINY_IMAGENET = DATA / "tiny-imagenet"
RAY = pytest.mark.skipif("SIMSEARCH_TEST_RAY" not in os.environ, reason="Ray is tested by scripts/test-cluster")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """60 files in folders; some have the same content, and some are not images."""
    folder = tmp_path / "pictures"
    for number in range(60):
        draw(folder / "abc"[number % 3] / f"{number:02d}.png", number % 50)
    (folder / "a" / "03.png").write_bytes(b"no picture")
    (folder / "b" / "broken.png").write_bytes((folder / "b" / "01.png").read_bytes()[:60])
    (folder / "c" / "empty.png").write_bytes(b"")
    return folder


def content(path: Path) -> dict[str, Any]:
    """All that an index holds, but for times."""
    with Engine(path) as engine, engine.reading() as reader:
        items = list(reader.items())
        features = engine.shards.read(np.array([item.row for item in items], np.int64))
        return {
            "items": items,
            "failures": reader.failures(),
            "features": features.tobytes(),
            "sources": [(row.kind, row.root, row.options) for row in reader.sources()],
            "blocks": sum(rows for _, rows, _ in reader.blocks()),
            "problems": verify(engine.index).problems,
        }


def here(count: Callable[[int], None] = lambda chunk: None) -> ClusterExtractor:
    """A cluster of one worker in this process. count: called with each chunk that is computed."""

    def run(work: WorkFolder, chunks: Sequence[int]) -> Iterator[int]:
        worker = Worker(str(work.folder), "cpu", 2)
        worker.ready()
        for chunk in chunks:
            if work.read(chunk) is None:
                count(chunk)
            worker.compute(chunk)
            yield chunk

    return ClusterExtractor(run)


def build(source: Path, path: Path, model: Path, **options: Any) -> indexing_options.Summary:
    engine, summary = api.build_with_summary(
        [str(source)], path, str(model), device="cpu", options=indexing_options.BuildOptions(**options), roots=None
    )
    engine.close()
    return summary


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_work, "SMALLEST", 8)


@pytest.mark.usefixtures("small")
def test_the_index_is_that_of_a_local_build(pictures: Path, tmp_path: Path, tiny_weights: Path) -> None:
    local = build(pictures, tmp_path / "local", tiny_weights)
    away = build(pictures, tmp_path / "away", tiny_weights, extractor=here())
    assert content(tmp_path / "local") == content(tmp_path / "away")
    for name in ("added", "failed", "computed", "items", "unchanged"):
        assert getattr(local, name) == getattr(away, name)
    assert (away.failed, away.items, away.computed) == (3, 59, 50)
    assert not (tmp_path / "away" / "derived" / "work").exists()
    (pictures / "a" / "00.png").unlink()
    (pictures / "a" / "06.png").rename(pictures / "c" / "moved.png")
    draw(pictures / "b" / "01.png", 77)
    for path, options in ((tmp_path / "local", {}), (tmp_path / "away", {"extractor": here()})):
        again = build(pictures, path, tiny_weights, **options)
        assert (again.removed, again.moved, again.updated, again.failed) == (1, 1, 1, 3)
    assert content(tmp_path / "local") == content(tmp_path / "away")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("last", [0, 3, 7])
def test_an_interrupted_build_is_continued(
    pictures: Path, tmp_path: Path, tiny_weights: Path, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver dies: chunks that are computed are not computed again, and new pictures come last."""
    build(pictures, tmp_path / "local", tiny_weights)
    first, asked = here().run, list[int]()

    def dying(work: WorkFolder, chunks: Sequence[int]) -> Iterator[int]:
        for chunk in first(work, chunks):
            yield chunk
            if chunk == last:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(pictures, tmp_path / "away", tiny_weights, extractor=ClusterExtractor(dying))
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "away" / "derived" / "work").glob("*.npz")}
    assert len(done) == last + 1
    (tmp_path / "away" / "derived" / "work" / "000000.npz").write_bytes(b"torn")  # as no write of ours leaves it
    build(pictures, tmp_path / "away", tiny_weights, extractor=here(asked.append))
    assert asked == [0, *range(last + 1, 8)]  # 0 has an image that failed, which a build tries again
    assert content(tmp_path / "local") == content(tmp_path / "away")
    draw(pictures / "a" / "new.png", 99)
    build(pictures, tmp_path / "local", tiny_weights)
    build(pictures, tmp_path / "away", tiny_weights, extractor=here())
    assert content(tmp_path / "local") == content(tmp_path / "away")


@pytest.mark.usefixtures("small")
def test_a_copy_outlives_what_it_is_a_copy_of(pictures: Path, tmp_path: Path, tiny_weights: Path) -> None:
    """Chunks are computed but not committed; then the first of two equal pictures is deleted."""

    def dying(work: WorkFolder, chunks: Sequence[int]) -> Iterator[int]:
        list(here().run(work, chunks))
        yield from ()
        raise KeyboardInterrupt

    (pictures / "a" / "copy.png").write_bytes((pictures / "a" / "00.png").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        build(pictures, tmp_path / "away", tiny_weights, extractor=ClusterExtractor(dying))
    (pictures / "a" / "00.png").unlink()
    build(pictures, tmp_path / "away", tiny_weights, extractor=here())
    with Engine(tmp_path / "away") as engine:
        [copy] = [match for match in engine.search(pictures / "a" / "copy.png", 60) if match.path.endswith("copy.png")]
        assert copy.distance == 0
        assert verify(engine.index).problems == ()


def test_shares_are_written_whole(tmp_path: Path) -> None:
    from simsearch.indexing.load import LoadedImage

    items = [WorkItem(0, f"{n}\udcff", n, n) for n in range(600)]
    work = WorkFolder.create(tmp_path / "work", "name", "aa", [("folder", "/x\udcff")], items, 0)
    found = WorkFolder.open(tmp_path / "work")
    assert found is not None
    assert (found.info, found.items(), len(found)) == (work.info, items, 3)
    assert [job for chunk in range(3) for job in found.chunk_items(items, chunk)] == items
    results = [LoadedImage(b"d" * 32, 5, 6, 7, np.arange(3, dtype=np.float16)), LoadedImage(problem="no\udcff")]
    work.write(2, results)
    again = work.read(2)
    assert again is not None
    assert again[1] == results[1]
    assert np.array_equal(again[0].features, results[0].features)  # type: ignore[arg-type]
    assert work.read(1) is None
    whole = work.path(2).read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        work.path(2).write_bytes(whole[:length])
        assert work.read(2) is None
    (tmp_path / "work" / "work.json").unlink()
    assert WorkFolder.open(tmp_path / "work") is None
    with pytest.raises(UsageError, match="does not see"):
        cluster_work.open_on_worker(str(tmp_path / "work"))


def test_another_model_on_a_node_is_refused(pictures: Path, tmp_path: Path, tiny_weights: Path) -> None:
    work = WorkFolder.create(tmp_path / "work", str(tiny_weights), "f" * 64, [("folder", str(pictures))], [], 0)
    with pytest.raises(ModelMismatchError, match="f" * 64):
        Worker(str(work.folder), "cpu", None).ready()


@pytest.mark.parametrize("where", ["ray:", "ray://", "ray://host", "raya", "ray://host:x", "dask://host:1"])
def test_where_no_cluster_can_be(where: str) -> None:
    with pytest.raises(UsageError, match="names no cluster"):
        on_ray(where)


def test_without_ray_the_pip_line(pictures: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(
        main, ["build", str(pictures), "--on", "ray", "-i", str(tmp_path / "index"), "--model", str(tiny_weights)]
    )
    assert result.exit_code == 2
    assert install_line("cluster") in result.output


def test_ray_that_is_away(pictures: Path, tmp_path: Path, tiny_weights: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(UnavailableError, match="no answer from Ray"):
        build(pictures, tmp_path / "index", tiny_weights, extractor=on_ray("ray://127.0.0.1:9"))


# -- by scripts/test-cluster


def manifest(path: Path, count: int) -> Path:
    """The first `count` training images over the zips of Tiny-ImageNet, unpacked beside the manifest, and one broken."""
    import zipfile

    folder = path / "images"
    folder.mkdir(parents=True)
    names: list[str] = []
    for number in range(4):
        with zipfile.ZipFile(TINY_IMAGENET / f"train-{number}.zip") as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            for name in members[:: len(members) // (count // 4)][: count // 4]:
                names.append(f"{number}-{name.replace('/', '-')}")
                (folder / names[-1]).write_bytes(archive.read(name))
    (folder / names[count // 2]).write_bytes(b"broken")
    (path / "images.csv").write_text("path,n\n" + "".join(f"images/{name},{n}\n" for n, name in enumerate(names)))
    return path / "images.csv"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not TINY_IMAGENET.is_dir():
        pytest.skip(f"the images of {TINY_IMAGENET} are not there")
    return manifest(tmp_path_factory.mktemp("source"), int(os.environ.get("SIMSEARCH_TEST_IMAGES", "5000")))


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("expected") / "index"
    run = subprocess.run([*SIMSEARCH, "build", str(source), "-i", str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    return content(path)


SIMSEARCH = [sys.executable, "-m", "simsearch"]
LIMIT = 900  # seconds; a driver that hangs is a failure


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of two nodes."""
    from ray.cluster_utils import Cluster as Nodes

    found = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    yield found
    found.shutdown()


def start(source: Path, path: Path, nodes: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ADDRESS": nodes.address}
    return subprocess.Popen(
        [*SIMSEARCH, "build", str(source), "-i", str(path), "--on", "ray"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, chunks: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT
    while len(list((path / "derived" / "work").glob("*.npz"))) < chunks:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


@RAY
def test_ray_loses_a_node(source: Path, expected: dict[str, Any], nodes: Any, tmp_path: Path) -> None:
    process = start(source, tmp_path / "index", nodes)
    wait_for(tmp_path / "index", 4, process)
    nodes.remove_node(nodes.list_all_nodes()[1], allow_graceful=False)
    out, _ = process.communicate(timeout=LIMIT)
    print(out)
    assert process.returncode == 0, out
    assert content(tmp_path / "index") == expected


@RAY
def test_ray_loses_the_driver(source: Path, expected: dict[str, Any], nodes: Any, tmp_path: Path) -> None:
    process = start(source, tmp_path / "index", nodes)
    wait_for(tmp_path / "index", 6, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with Engine(tmp_path / "index", device="cpu") as engine:
        print(f"after the kill: {len(engine)} items")
        assert verify(engine.index).problems == ()
    process = start(source, tmp_path / "index", nodes)
    out, _ = process.communicate(timeout=LIMIT)
    print(out)
    assert process.returncode == 0, out
    assert content(tmp_path / "index") == expected


@pytest.mark.skipif(not PYTHON, reason="a Milvus server is tested by scripts/test-cluster")
@pytest.mark.parametrize("returns", [False, True], ids=["resumed", "waited for"])
def test_a_push_outlives_its_server(milvus_server: Server, tmp_path: Path, returns: bool, monkeypatch: Any) -> None:
    """kill -9 of the server in the middle of a push, which is resumed, or waits until the server is back."""
    from simsearch.cluster.milvus import push as module
    from simsearch.cluster.milvus.push import push

    monkeypatch.setattr(module, "PATIENCE", 180.0 if returns else 3.0)
    monkeypatch.setattr(module, "PORTION", 256 << 10)
    random = np.random.default_rng(1)
    filler = Filler(tmp_path / "index", 512)
    filler.add(np.maximum(random.normal(0, 3, (4000, 512)), 0))
    address = milvus_server.address("killed_" + str(returns)) + "?consistency=strong"
    killed = threading.Event()

    def progress(done: int, total: int) -> None:
        if done >= 1500 and not killed.is_set():
            milvus_server.kill()
            killed.set()

    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(push(filler.engine.index, address, module.PushOptions(progress=progress)))
        except SimsearchError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert killed.wait(180)
    if not returns:
        thread.join(60)
        assert isinstance(outcome[0], UnavailableError)
    took = milvus_server.start()
    thread.join(240)
    monkeypatch.setattr(module, "PATIENCE", 180.0)  # it answers before it has loaded its collections again
    again = push(filler.engine.index, address)
    print(f"killed after 1,500 of 4,000 rows; the server was back after {took:.0f} s; then {again.sent:,} sent")
    assert (again.items, again.sent + again.unchanged, again.deleted) == (4000, 4000, 0)
    if returns:
        assert isinstance(outcome[0], module.PushReport)
        assert again.sent == 0
    else:
        assert 0 < again.sent <= 2500 + 128
    with filler.engine as here, simsearch.open(address, model=filler.model) as there:
        ids = np.arange(1, 4001)
        assert len(there) == 4000
        with there.reading() as reader:
            assert np.array_equal(here.shards.read(ids - 1), reader.shards.read(ids))
        query = np.zeros(512, np.float32)
        found = [
            [(match.id, match.label) for match in engine.search_by_vector(query, 4000)] for engine in (here, there)
        ]
        assert found[0] == found[1]
