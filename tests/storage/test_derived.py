"""Derived files: damaged, exchanged and malicious ones cost time and no answers, and `verify` finds them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click.testing
import faiss
import numpy as np
import pytest

from simsearch.cli.main import main
from simsearch.common.pca import fit_pca
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError
from simsearch.indexing import tune
from simsearch.indexing.compact import compact
from simsearch.search import tuning
from simsearch.search.ann import AnnIndex, AnnSettings
from simsearch.search.ann_files import check_rows
from simsearch.search.binary_codes import BinaryCodeIndex
from simsearch.storage import derived
from simsearch.storage.folder import Folder
from simsearch.storage.verify import verify
from tests.helpers.clusters import D, clustered
from tests.helpers.codes import hyperplanes
from tests.helpers.filler import Filler

KINDS = ("hnsw", "ivf", "pq", "sq8", "rabitq", "codes")
QUERY = clustered(np.random.default_rng(7), 1)[0].astype(np.float32)
N = 400


def structure(kind: str, features: np.ndarray) -> AnnIndex:
    rows = np.arange(len(features))
    if kind == "codes":
        codes = hyperplanes(128, D)
        return BinaryCodeIndex(AnnSettings("codes", 128, 100, 0), codes, codes(features), rows, len(rows))
    onto = fit_pca(features, 32)
    return tuning.build(AnnSettings(kind, 32, 60, 64), onto, onto(features), rows, len(rows))


def tuned(path: Path, kind: str) -> Filler:
    """An index with a search structure that nobody measured."""
    filler = Filler(path, D)
    features = clustered(np.random.default_rng(0), N)
    filler.add(features)
    choice = tuning.Choice(kind, 1.0, 1.0, 1.0, 9, 0.0, 0.0, 0, {})
    tune.record_choice(filler.engine.index, structure(kind, features), choice, 0.9)
    return filler


def files(filler: Filler) -> list[Path]:
    return sorted(path for path in (filler.path / "derived").rglob("*") if path.is_file())


def assert_right(filler: Filler, exact: bool = True) -> None:
    with Engine(filler.path, model=filler.model) as engine:
        assert engine.exact == exact
        assert engine.search_by_vector(QUERY, 7) == engine.search_by_vector(QUERY, 7, exact=True)


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    return tuned(tmp_path / "index", "hnsw")


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_bit_means_exact_search(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    filler, random = tuned(tmp_path / "index", kind), np.random.default_rng(1)
    assert_right(filler, exact=False)
    assert verify(filler.engine.index).problems == ()
    for path in files(filler):
        whole = path.read_bytes()
        for place in (0, len(whole) - 40, len(whole) - 1, *random.integers(0, len(whole), 2)):
            data = bytearray(whole)
            data[place] ^= 1 << int(random.integers(8))
            path.write_bytes(data)
            caplog.clear()
            assert_right(filler)
            assert [record.levelno for record in caplog.records] == [logging.WARNING]
            (problem,) = verify(filler.engine.index).problems
            assert str(path) in problem and "tune" in problem
        path.write_bytes(whole)
    assert_right(filler, exact=False)


def replace_by(make: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    def act(file: Path, other: Path) -> None:
        file.unlink()
        make(file, other)

    return act


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "cut short": lambda file, other: os.truncate(file, 100),
    "emptied": lambda file, other: os.truncate(file, 0),
    "without its seal": lambda file, other: os.truncate(file, file.stat().st_size - derived.SEAL),
    "of another index": lambda file, other: shutil.copy(other, file),
    "a link": replace_by(lambda file, other: file.symlink_to(other)),
    "a pipe": replace_by(lambda file, other: os.mkfifo(file)),
    "a folder": replace_by(lambda file, other: file.mkdir()),
    "written by NumPy": lambda file, other: np.save(file, np.zeros(N, np.int64)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_damage_means_exact_search(filler: Filler, tmp_path: Path, damage: str) -> None:
    file = next(path for path in files(filler) if path.name == "rows.npy")
    other = next(path for path in files(tuned(tmp_path / "other", "hnsw")) if path.name == "rows.npy")
    DAMAGES[damage](file, other)
    assert_right(filler)
    (problem,) = verify(filler.engine.index).problems
    assert str(file) in problem
    run = click.testing.CliRunner().invoke
    found = run(main, ["verify", "-i", str(filler.path)])
    assert found.exit_code == 3
    assert "tune" in found.stderr
    found = run(main, ["query", "id:1", "-i", str(filler.path)])
    assert found.exit_code == 0
    assert [line for line in found.stderr.splitlines() if "searches are exact" in line and line.startswith("note: ")]
    assert "missing or damaged" in run(main, ["info", "-i", str(filler.path)]).output


def test_compaction_keeps_seals(filler: Filler) -> None:
    filler.remove(range(1, 40))
    compact(filler.engine.index)
    assert_right(filler, exact=False)
    assert verify(filler.engine.index).problems == ()
    path = next(path for path in files(filler) if path.name == "rows.1.npz")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert_right(filler)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0, 1, 1], "the same row twice"),
        ([0, 1, 3], "the row number 3, but covers only 3"),
        ([0, -2, 1], "the row number -2"),
        ([[0, 1, 2]], "not a list of integers"),
    ],
)
def test_sealed_rows_are_checked(rows: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_rows(np.array(rows, np.int64), 3)


def seal_rows(filler: Filler, rows: np.ndarray) -> None:
    """As somebody would who wants to do harm."""
    folder = Folder.at(filler.path).child("derived").child(files(filler)[0].parent.name)
    derived.write_array(folder, "rows.npy", rows)


def test_sealed_nonsense_is_refused(filler: Filler) -> None:
    for rows in (np.zeros(N, np.int64), np.arange(N) + 1, np.arange(N, dtype=np.float64), np.arange(N - 1)):
        seal_rows(filler, rows)
        assert_right(filler)


def test_graph_that_leaves_its_entries_is_refused(filler: Filler) -> None:
    folder = Folder.at(filler.path).child("derived").child(files(filler)[0].parent.name)
    index = faiss.deserialize_index(derived.read(folder, "index.faiss"))
    neighbours = faiss.vector_to_array(index.hnsw.neighbors)
    neighbours[5] = 1 << 30
    faiss.copy_array_to_vector(neighbours, index.hnsw.neighbors)
    derived.write(folder, "index.faiss", faiss.serialize_index(index).data)
    assert_right(filler)


@pytest.mark.parametrize("folder", ["..", "../../x", "/etc", "", "a" * 17, ".", "work"])
def test_folder_names_in_meta_lead_nowhere(filler: Filler, folder: str) -> None:
    facts = json.loads((filler.path / "meta.json").read_text())
    facts["search"]["parameters"]["folder"] = folder
    (filler.path / "meta.json").write_text(json.dumps(facts))
    assert_right(filler)
    filler.remove([1])
    compact(Engine(filler.path, model=filler.model).index)
    assert_right(filler)


@pytest.mark.parametrize(
    "change", [{"covered": 1 << 50}, {"covered": "9"}, {"dimensions": 1 << 40}, {"candidates": -1}, {"kind": ["hnsw"]}]
)
def test_odd_parameters_mean_exact_search(filler: Filler, change: dict[str, object]) -> None:
    facts = json.loads((filler.path / "meta.json").read_text())
    facts["search"]["parameters"].update(change)
    (filler.path / "meta.json").write_text(json.dumps(facts))
    assert_right(filler)


def test_sealed_file_is_one_of_its_folder(tmp_path: Path) -> None:
    one, two = (Folder.at(tmp_path).child(name, create=True) for name in ("one", "two"))
    derived.write(one, "x", b"content")
    assert bytes(derived.read(one, "x")) == b"content"
    shutil.copy(tmp_path / "one" / "x", tmp_path / "two" / "x")
    shutil.copy(tmp_path / "one" / "x", tmp_path / "one" / "y")
    for folder, name in ((two, "x"), (one, "y"), (one, "z")):
        with pytest.raises(IndexDamagedError, match=name):
            derived.read(folder, name)


def test_unpickled_is_nothing(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    np.save(tmp_path / "x.npy", np.array([replace], object), allow_pickle=True)
    derived.write(folder, "x.npy", (tmp_path / "x.npy").read_bytes())
    with pytest.raises(IndexDamagedError, match=r"x\.npy"):
        derived.read_array(folder, "x.npy")
