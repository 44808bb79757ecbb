"""One suite for all engines: local, Milvus Lite and (with `scripts/test-cluster`) a Milvus server give equal answers.

Each operation runs on the index and on the collection that was pushed from it, and every result is compared: ids,
paths, labels, metadata, order, distances to 1e-9, errors by type.
"""

from __future__ import annotations

import functools
import operator
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simsearch
from simsearch.cluster.milvus.push import PushOptions, push
from simsearch.engine import Engine
from simsearch.errors import SimsearchError, UsageError
from simsearch.storage.database import Changes
from tests.helpers.filler import Filler
from tests.helpers.milvus_server import PYTHON
from tests.helpers.models import Colours
from tests.helpers.pictures import draw

pytest.importorskip("pymilvus", reason="pymilvus is not installed")

ENGINES = ["lite", pytest.param("server", marks=pytest.mark.skipif(not PYTHON, reason="see scripts/test-cluster"))]


@pytest.fixture(params=ENGINES)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a new collection may be made."""
    if request.param == "lite":
        pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
        yield f"milvus://{tmp_path}/lite.db"
        return
    from simsearch.cluster.milvus.client import MilvusClient
    from simsearch.common.milvus_address import parse_address

    found = request.getfixturevalue("milvus_server").address(f"test_{uuid.uuid4().hex}")
    yield found + "?consistency=strong"
    rows = MilvusClient(parse_address(found))
    if rows.exists():
        rows.drop()
    rows.close()


Both = tuple[Engine, Engine]


def outcome(call: Callable[[], Any]) -> Any:
    """Returns the result of a call, or the type of the error that it raises."""
    try:
        return call()
    except SimsearchError as error:
        return type(error)


def alike(both: Both, call: str | Callable[[Engine], Any], *arguments: Any, **options: Any) -> Any:
    """Runs an operation, or a method by its name, on both engines and compares."""
    named = isinstance(call, str)
    method: Callable[[Engine], Any] = operator.methodcaller(call, *arguments, **options) if named else call  # type: ignore[arg-type, assignment]
    here, there = (outcome(functools.partial(method, engine)) for engine in both)
    if isinstance(here, list):
        pairs = zip(here, there, strict=True)
        for mine, theirs in [*pairs]:
            if isinstance(mine, list):
                same_matches(mine, theirs)
        if not any(isinstance(matches, list) for matches in here):
            same_matches(here, there)
    else:
        assert here == there
    return here


def same_matches(here: list[Any], there: list[Any]) -> None:
    facts = [[(m.rank, m.id, m.path, m.label, m.metadata, m.relative) for m in found] for found in (here, there)]
    assert facts[0] == facts[1]
    for name in ("distance", "similarity"):
        pair = [[getattr(m, name) for m in found] for found in (here, there)]
        np.testing.assert_allclose(pair[0], pair[1], rtol=1e-9, atol=1e-9)


@pytest.fixture
def filled(tmp_path: Path, address: str) -> Iterator[Both]:
    """300 items whose distances tie all the time, rows against the order of ids, some removed."""
    random = np.random.default_rng(5)
    filler = Filler(tmp_path / "index", 24, rows_per_shard=64)
    features = random.integers(0, 3, (300, 24))
    features[200:] = features[:100]
    filler.add(features)
    filler.edit(list(range(1, 60)), features[100:159])
    filler.remove([7, 8, 250, 300])
    push(filler.engine.index, address)
    with filler.engine as here, simsearch.open(address, model=filler.model) as there:
        yield here, there


def test_vectors_ties_and_limits(filled: Both) -> None:
    random = np.random.default_rng(6)
    for number in range(12):
        vector = random.integers(0, 3, 24).astype(np.float32) if number % 2 else random.normal(1, 1, 24)
        for k in (1, 2, 6, 40, 296, 1000):
            found = alike(filled, "search_by_vector", vector, k)
            assert len(found) == min(k, 296)
        alike(filled, "search_by_vector", vector, 50, max_distance=4.0)
        alike(filled, "search_by_vector", vector, 9, dedup=True)
        alike(filled, "search_by_vector", vector, 9, exact=True)


CONDITIONS = [
    ["label=one"],
    ["label!=one"],
    ["label=two", "n>100"],
    ["label=none"],
    ["label~t*"],
    ["label~*o"],
    ["label<p"],
    ["label>=three"],
    ["label="],
    ["label!="],
    ["n=7"],
    ["n!=7"],
    ["n=10"],
    ["n>7.5"],
    ["n<=3"],
    ["n=07"],
    ["n=1e400"],
    ["metadata.n=11"],
    ["n~1*"],
    ["none=1"],
    ["none!=1"],
    ["n=true"],
    ["n=1.0"],
    ["n<text"],
    ["n>text"],
    ["n=text"],
    ["id=9"],
    ["id!=9"],
    ["id>290", "id<=296"],
    ["id=7"],
    ["id=text"],
    ["id<text"],
    ["id>4.5"],
    ["id=5.0"],
    ["id<99999999999999999999"],
    ["width=1"],
    ["height>1"],
    ["bytes>=280"],
    ["path=000003"],
    ["path!=000003"],
    ["path~0000*"],
    ["path~*[45]"],
    ["path~00?01*"],
    ["path=/nowhere/000004"],
    ["path~/nowhere/0002*"],
    ["path~/now*"],
    ["path~/elsewhere/*"],
    ['label=a"b'],
    ["label=a\\b"],
    ["label=\udcff"],
    ["n\udcff=1"],
    ["label~%*"],
    ["label=o_e"],
    ["path~0001_*"],
    ['n"x=1'],
    ["=x"],
    ["label"],
    ["label=one", "label=two"],
    ["label=one", "label=two", "n=3", "n=5"],
    ["größe=3"],
    ["größe!=3"],
    ["größe<4"],
    ['a"b=3'],
    ["a.b=3", "a.b=4"],
    ["n=1.10"],
]


@pytest.mark.parametrize("where", CONDITIONS, ids=str)
def test_filters(pushed_once: Both, where: list[str]) -> None:
    vector = np.ones(24, np.float32)
    alike(pushed_once, "search_by_vector", vector, 8, where=where)
    alike(pushed_once, "search_by_vector", vector, 500, where=where)
    alike(pushed_once, lambda engine: " ".join(engine.unmet(where)))


def test_counts_of_values(pushed_once: Both) -> None:
    assert alike(pushed_once, lambda engine: engine.info()["label_counts"])


def test_permission_to_leave_a_folder_is_pushed(tmp_path: Path, address: str) -> None:
    draw(tmp_path / "elsewhere.png", 1)
    (tmp_path / "photos").mkdir()
    draw(tmp_path / "photos" / "own.png", 2)
    (tmp_path / "photos" / "link.png").symlink_to("../elsewhere.png")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "link.png").symlink_to("../elsewhere.png")
    with simsearch.build(tmp_path / "photos", tmp_path / "index", model=Colours(), allow_outside=True) as here:
        here.add(tmp_path / "more")
        push(here.index, address)
        with simsearch.open(address, model=Colours()) as there:
            for number in (1, 2, 3):
                alike((here, there), "read", number)
            names = [(item.source, item.path) for item in here.find("*")]
            assert names == [(1, "link.png"), (1, "own.png"), (2, "link.png")]
            assert there.read(1) == (tmp_path / "elsewhere.png").read_bytes()
            with pytest.raises(SimsearchError, match="outside"):
                there.read(3)


@pytest.fixture(scope="module", params=ENGINES)
def pushed_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """One collection for all conditions; nothing changes it."""
    folder = tmp_path_factory.mktemp("once")
    filler = Filler(folder / "index", 24)
    filler.add(np.random.default_rng(8).integers(0, 3, (300, 24)))
    filler.remove([7])
    with filler.engine.reading() as reader:
        odd = {"größe": 3, 'a"b': 3, "a.b": 4}
        changed = [replace(item, metadata={**item.metadata, **odd}) for item in list(reader.items())[::9]]
    filler.engine.index.database.apply(Changes(updated=changed))
    if request.param == "lite":
        pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
        address = f"milvus://{folder}/a.db"
    else:
        address = request.getfixturevalue("milvus_server").address("once")
    push(filler.engine.index, address)
    with filler.engine as here, simsearch.open(address + "?consistency=strong", model=filler.model) as there:
        yield here, there
        if request.param == "server":
            there.opened_index.client.drop()  # type: ignore[attr-defined]


def test_where_as_a_mapping(pushed_once: Both) -> None:
    where: Any
    for where in (
        {"label": "one", "n": 3},
        {"n": 3.0},
        {"n": "3"},
        {"label": None},
        {"n": None},
        {"label": 3},
        {"path": "000003"},
        {"n": True},
        {},
        {"n": [1]},
        {"n": [1, 3, 77], "label": ["one", "two"]},
        {"n": []},
        {"größe": 3},
        {"größe": [3, "4.50"]},
        {'a"b': 3},
        {"metadata.a.b": 3},
    ):
        alike(pushed_once, "search_by_vector", np.zeros(24), 20, where=where)


def test_errors(pushed_once: Both) -> None:
    calls: list[Callable[[Engine], Any]] = [
        lambda engine: engine.search_by_vector(np.zeros(23)),
        lambda engine: engine.search_by_vector(np.full(24, np.nan)),
        lambda engine: engine.search_by_vector(np.zeros(24), 0),
        lambda engine: engine.search_by_vector(np.zeros(24), max_distance=-1),
        lambda engine: engine.search_by_vector(np.zeros(24), unknown=1),  # type: ignore[call-arg]
        lambda engine: engine.search_by_id(7),
        lambda engine: engine.search_by_id(10**30),
        lambda engine: engine.search_by_id("7"),  # type: ignore[arg-type]
        lambda engine: engine.item(0),
    ]
    for call in calls:
        assert isinstance(alike(pushed_once, call), type)


def test_items(pushed_once: Both) -> None:
    here, there = pushed_once
    assert len(here) == len(there) == 299
    for number in (1, 100, 300):
        mine, theirs = here.item(number), there.item(number)
        assert (mine.path, mine.label, mine.metadata, mine.digest) == (
            theirs.path,
            theirs.label,
            theirs.metadata,
            theirs.digest,
        )
        alike(pushed_once, "search_by_id", number, 9)
        assert here.paths([mine]) == there.paths([theirs])
    alike(pushed_once, "search_many", [3, 5, 9], 4, plus=[11], minus=[12])
    alike(
        pushed_once,
        "search_by_vectors",
        np.random.default_rng(1).random((30, 24), np.float32),
        5,
        without=[[], *([number] for number in range(10, 39))],
    )


def test_odd_items(tmp_path: Path, address: str) -> None:
    """Names that are no UTF-8, no labels, empty labels, metadata of all kinds."""
    from dataclasses import replace

    from simsearch.storage.database import Changes

    filler = Filler(tmp_path / "index", 4)
    filler.add(np.arange(28).reshape(7, 4))
    odd: list[dict[str, Any]] = [
        {"path": "caf\udce9.png", "label": None, "metadata": {}},
        {
            "path": "a'b\"c\\d.png",
            "label": "",
            "metadata": {"a": None, "b": True, "c": 1.5, "d": "\u2603", "e": [1, "x"]},
        },
        {"path": "x/\u00e9.png", "label": "it's", "metadata": {'q"u': {"deep": 1}}},
        {"path": "n%_l.png", "label": "a\nb", "metadata": {"b": False, "c": 2**53 + 1}},
        {"path": "*.png", "label": "100%", "metadata": {"c": "2"}},
    ]
    items = [replace(filler.engine.item(n), **facts) for n, facts in enumerate(odd, 1)]
    filler.engine.index.database.apply(Changes(updated=items))
    push(filler.engine.index, address)
    with filler.engine as here, simsearch.open(address, model=filler.model) as there:
        both = here, there
        alike(both, "search_by_vector", np.zeros(4), 9)
        for where in (
            "label=",
            "label!=",
            "label=it's",
            "label=a\nb",
            "label~100%",
            "path~caf*",
            "path~*\udce9.png",
            "path=caf\udce9.png",
            "path=/nowhere/caf\udce9.png",
            "b=true",
            "b!=true",
            "b=1",
            "c=2",
            "c>1",
            "c!=2",
            "a=x",
            "a!=x",
            "d=\u2603",
            "e~*x*",
            'q"u=1',
            "c=9007199254740993",
            "path~n%*",
            "path=x/\u00e9.png",
            "path~x*",
        ):
            alike(both, "search_by_vector", np.zeros(4), 9, where=[where])


def test_pictures(photos: Path, tmp_path: Path, address: str, colours: Colours) -> None:
    here = simsearch.build(photos, tmp_path / "index", colours)
    push(here.index, address)
    with here, simsearch.open(address, model=colours) as there:
        both = here, there
        stranger = draw(tmp_path / "stranger.png", 99)
        for options in (
            {},
            {"flip": True},
            {"crop": (2, 2, 9, 9)},
            {"plus": [3]},
            {"minus": [stranger]},
            {"where": {"label": "blue"}},
            {"dedup": True},
            {"flip": True, "dedup": True},
        ):
            for picture in (stranger, photos / "amber" / "0.png", stranger.read_bytes()):
                alike(both, "search", picture, 6, **options)
            alike(both, "search_by_id", 4, 30, **options)
        assert there.search(photos / "amber" / "0.png", 1)[0].distance == 0
        assert there.read(1) == here.read(1)
        assert there.thumbnail(1) is not None
        assert alike(both, "search", "nowhere.png") is not None
        facts = there.info()
        assert (facts["items"], facts["model"], facts["labels"]) == (24, "colours", 4)
        for change in (there.add, there.remove, there.find, there.relocate):
            with pytest.raises(UsageError, match="not an index on disk"):
                change(str(photos))  # type: ignore[arg-type]


def test_pushes_follow_changes(tmp_path: Path, address: str) -> None:
    """Additions, edits and deletions: each push sends the difference only, and the collection is the index again."""
    random = np.random.default_rng(3)
    filler = Filler(tmp_path / "index", 8)
    vectors = random.normal(0, 3, (4, 8)).astype(np.float32)

    def check(sent: int, deleted: int, unchanged: int) -> None:
        done = push(filler.engine.index, address)
        assert (done.sent, done.deleted, done.unchanged) == (sent, deleted, unchanged)
        with simsearch.open(address, model=filler.model) as there:
            assert len(there) == len(filler.engine)
            for vector in vectors:
                alike((filler.engine, there), "search_by_vector", vector, 99)

    check(0, 0, 0)
    filler.add(random.normal(0, 3, (50, 8)))
    check(50, 0, 0)
    check(0, 0, 50)
    filler.add(random.normal(0, 3, (5, 8)))
    filler.edit([3, 4], random.normal(0, 3, (2, 8)))
    filler.remove([10, 11, 55])
    check(6, 2, 46)
    check(0, 0, 52)
    filler.remove(range(1, 60))
    check(0, 52, 0)
    filler.engine.close()


def test_an_interrupted_push_is_continued(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from simsearch.cluster.milvus import push as module
    from simsearch.cluster.milvus.client import MilvusClient

    filler = Filler(tmp_path / "index", 8)
    filler.add(np.random.default_rng(0).normal(0, 3, (200, 8)))
    monkeypatch.setattr(module, "PORTION", 8 * 4 * 16)
    whole, sent = MilvusClient.upsert, [0]

    def breaking(self: MilvusClient, rows: list[dict[str, Any]]) -> None:
        if sent[0] >= 100:
            raise KeyboardInterrupt
        sent[0] += len(rows)
        whole(self, rows)

    monkeypatch.setattr(MilvusClient, "upsert", breaking)
    with pytest.raises(KeyboardInterrupt):
        push(filler.engine.index, address)
    monkeypatch.setattr(MilvusClient, "upsert", whole)
    with simsearch.open(address, model=filler.model) as there:
        assert there.info()["complete"] is False
        assert len(there.search_by_vector(np.zeros(8), 500)) == sent[0]
    done = push(filler.engine.index, address)
    assert (done.sent, done.unchanged, done.compared) == (200 - sent[0], sent[0], 64)
    with filler.engine as here, simsearch.open(address, model=filler.model) as there:
        assert there.info()["complete"] is True
        alike((here, there), "search_by_vector", np.zeros(8), 500)


@pytest.mark.parametrize("kind", ["HNSW", "IVF_FLAT"])
def test_approximate_indexes(tmp_path: Path, address: str, kind: str) -> None:
    """With enough effort they find what the exact search does; where they cannot be exact, they say so."""
    random = np.random.default_rng(2)
    filler = Filler(tmp_path / "index", 16)
    filler.add(random.normal(0, 3, (400, 16)))
    parameters = {"nlist": 16} if kind == "IVF_FLAT" else {}
    push(filler.engine.index, address, PushOptions(kind, parameters))
    asked = address + ("&" if "?" in address else "?") + "effort=400"
    with filler.engine as here, simsearch.open(asked, model=filler.model) as there:
        assert not there.exact
        for vector in random.normal(0, 3, (8, 16)).astype(np.float32):
            for where in ([], ["label=two"], ["n<10"], ["n=5"]):
                alike((here, there), "search_by_vector", vector, 6, where=where)
        with pytest.raises(UsageError, match="does not search exactly"):
            there.search_by_vector(np.zeros(16), exact=True)


def test_reading_verbs(photos: Path, tmp_path: Path, address: str, colours: Colours) -> None:
    """Export, evaluation and duplicates read a collection as they read an index."""
    from simsearch.evaluation import retrieval
    from simsearch.search import duplicates
    from simsearch.storage.export import export_npy

    here = simsearch.build(photos, tmp_path / "index", colours)
    push(here.index, address)
    with here, simsearch.open(address, model=colours) as there:
        for name, engine in (("here", here), ("there", there)):
            assert export_npy(engine.opened_index, tmp_path / name) == 24
        assert np.array_equal(np.load(tmp_path / "here" / "features.npy"), np.load(tmp_path / "there" / "features.npy"))
        assert (tmp_path / "here" / "items.jsonl").read_text() == (tmp_path / "there" / "items.jsonl").read_text()
        assert retrieval.evaluate_retrieval(here).scores == retrieval.evaluate_retrieval(there).scores
        grouped = [
            [[m.item.id for m in group] for group in duplicates.duplicate_groups(e.snapshots, 0.9)]
            for e in (here, there)
        ]
        assert grouped[0] == grouped[1]


def test_maps(photos: Path, tmp_path: Path, address: str, colours: Colours) -> None:
    """A collection has the map of the index that it was pushed from."""
    pytest.importorskip("openTSNE", reason="the [map] extra is not installed")
    here = simsearch.build(photos, tmp_path / "index", colours)
    push(here.index, address)
    with here, simsearch.open(address, model=colours) as there:
        mine, theirs = here.map(), there.map()
        assert [member.path for member in mine.members] == [member.path for member in theirs.members]
        np.testing.assert_array_equal(mine.places, theirs.places)
        np.testing.assert_allclose(mine.distances, theirs.distances, atol=1e-4)
        assert [cluster.name for cluster in mine.clusters] == [cluster.name for cluster in theirs.clusters]
        there.export(tmp_path / "out", "parquet", drawn=theirs)
