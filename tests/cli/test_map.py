"""`map`, and `export --map`."""

from __future__ import annotations

import sys

import pytest

import simsearch
from simsearch.storage import stored_map

needed = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("openTSNE") is None, reason="the [map] extra is not installed"
)


@needed
def test_map(run, tmp_path):
    file = tmp_path / "map.html"
    made = run("map", "-o", file)
    assert made.code == 0 and f"{file}: 12 items in " in made.out and "12 small pictures" in made.out
    page = file.read_text()
    assert "<title>Map of index</title>" in page and page.count('class="sheet"') == 1
    assert run("map", "-o", tmp_path / "again.html").code == 0
    assert (tmp_path / "again.html").read_text() == page
    bare = run("map", "-o", file, "--thumbnails", "0", "--title", "<b>Mine", "--clusters", "1", "--names", "numbers")
    assert bare.code == 0 and "in 1 cluster, 0 small pictures" in bare.out
    assert "<title>&lt;b&gt;Mine</title>" in file.read_text() and 'class="sheet"' not in file.read_text()


@needed
def test_names(run, index, pictures, tmp_path, tiny_weights):
    assert run("map", "-o", tmp_path / "map.html", "--names", "guesses").code == 0
    with simsearch.open(index) as engine:
        assert stored_map.read(engine.index.folder).facts["names"] == "guesses of the classifier"
    assert run("build", pictures, "--labels", "none", "-i", tmp_path / "bare", "--model", tiny_weights).code == 0
    moved = tiny_weights.rename(tmp_path / "moved.safetensors")
    try:
        numbered = run("map", "-i", tmp_path / "bare", "-o", tmp_path / "map.html")
        refused = run("map", "-i", tmp_path / "bare", "-o", tmp_path / "map.html", "--names", "guesses")
    finally:
        moved.rename(tiny_weights)
    assert numbered.code == 0 and "have numbers for names: no weights file" in numbered.err
    assert refused.code == 2 and "no weights file" in refused.err and "searching" not in refused.err


@needed
def test_map_of_pictures_that_are_gone(run, pictures, tmp_path):
    for file in pictures.rglob("*.png"):
        file.unlink()
    made = run("map", "-o", tmp_path / "map.html")
    assert made.code == 0 and "12 of 12 pictures cannot be read" in made.err and "0 small pictures" in made.out


@needed
def test_export_with_a_map(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    made = run("export", "--map", "-o", tmp_path / "out")
    assert made.code == 0 and made.out.endswith("12 items\n")
    table = parquet.read_table(tmp_path / "out" / "items.parquet")
    assert table.column_names[5:] == ["x", "y", "cluster", "cluster_name", "neighbours"]
    assert {*table.column("cluster_name").to_pylist()} <= {"red", "green", "blue"} | {
        f"{one}, {other}" for one in ("red", "green", "blue") for other in ("red", "green", "blue")
    }
    for row, near in enumerate(table.column("neighbours").to_pylist()):
        assert len(near["ids"]) == 11 and row not in near["ids"] and near["distances"] == sorted(near["distances"])


@needed
def test_wrong_uses(run, pictures, tmp_path):
    (tmp_path / "folder").mkdir()
    cases = [
        (("map", "-o", tmp_path / "no" / "map.html"), "its folder does not exist"),
        (("map", "-o", tmp_path / "folder"), "is a folder"),
        (("map", "--clusters", "0"), "0"),
        (("map", "--names", "words"), "words"),
        (("map", "--thumbnails", "-1"), "-1"),
        (("map", "-i", tmp_path / "nowhere"), "nowhere"),
        (("export", "--map", "--format", "npy", "-o", tmp_path / "out"), "--map adds columns to parquet"),
    ]
    for arguments, words in cases:
        refused = run(*arguments)
        assert refused.code == 2 and words in refused.err and refused.err.count("error:") == 1
    assert run("remove", "--yes", "*/red/*").code == 0
    few = run("map", "-o", tmp_path / "map.html")
    assert few.code == 2 and "the index has 8 items, and a map needs at least 10" in few.err
    assert not (tmp_path / "map.html").exists() and not (tmp_path / "out").exists()


def test_without_the_extra(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    for arguments in (("map", "-o", tmp_path / "map.html"), ("export", "--map", "-o", tmp_path / "out")):
        refused = run(*arguments)
        assert refused.code == 2 and "a map needs the [map] extra" in refused.err and "hint: " in refused.err
