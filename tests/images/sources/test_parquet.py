"""Parquet tables as sources."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simsearch
from simsearch.errors import ImageError, MissingExtraError, UsageError
from simsearch.images.sources import parquet, resolve
from simsearch.indexing import options
from simsearch.installation import install_line
from tests.helpers.models import CellModel
from tests.helpers.sources import listed, paths, png, put

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


# -- Parquet


def table(place: Path, columns: dict[str, Any], **options: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), place, **options)
    return place


@needs_pyarrow
def test_parquet_bytes_with_labels_and_metadata(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    data = [png(seed) for seed in range(3)]
    place = table(tmp_path / "x.parquet", {"n": [1, 2, 3], "photo": data, "label": ["cat", None, "dog"]})
    listing = listed(place)
    assert paths(listing) == ["row-00000000", "row-00000001", "row-00000002"]
    assert [entry.label for entry in listing.entries] == ["cat", None, "dog"]
    assert [entry.metadata for entry in listing.entries] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert build(place).items == 3
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(data[2], k=1, where={"n": 3})
    assert (match.path, match.label, match.distance) == (f"{place}!/row-00000002", "dog", 0)
    assert resolve.read_path(match.path) == data[2]
    assert build(place).unchanged == 3


@needs_pyarrow
def test_parquet_struct_of_hugging_face(tmp_path: Path) -> None:
    rows = [{"bytes": png(seed), "path": f"{seed}.png"} for seed in range(2)]
    place = table(tmp_path / "x.parquet", {"other": [b"1", b"2"], "image": rows, "label": [0, 1]})
    assert [entry.label for entry in listed(place).entries] == ["0", "1"]
    assert resolve.read_path(f"{place}!/row-00000001") == png(1)


def hugging_face(place: Path, columns: dict[str, Any], features: dict[str, Any]) -> Path:
    """A table with the metadata that `datasets` writes."""
    import pyarrow
    import pyarrow.parquet

    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), place)
    return place


@needs_pyarrow
@pytest.mark.parametrize("column", ["label", "class", "fine_label"])
def test_class_labels_have_names(column: str, tmp_path: Path) -> None:
    columns = {
        "other": [b"1", b"2", b"3"],
        "img": [{"bytes": png(seed), "path": None} for seed in range(3)],
        column: [1, 0, -1],
        "kinds": [[0, 1], [], None],
        "n": np.array([2**64 - 1, 1, 2], np.uint64),
    }
    names = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    features = {"img": {"_type": "Image"}, column: names, "kinds": {"feature": names, "_type": "List"}}
    found = listed(hugging_face(tmp_path / "x.parquet", columns, features)).entries
    assert [entry.label for entry in found] == ["dog", "cat", None]
    assert found[0].metadata == {"kinds": ["cat", "dog"], "n": str(2**64 - 1)}
    assert resolve.read_path(f"{tmp_path}/x.parquet!/row-00000001") == png(1)


@needs_pyarrow
def test_class_labels_that_pandas_made_floats(tmp_path: Path) -> None:
    columns = {"image": [png(seed) for seed in range(4)], "label": [1.0, None, float("nan"), 0.0]}
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    entries = listed(hugging_face(tmp_path / "x.parquet", columns, features)).entries
    assert [entry.label for entry in entries] == ["dog", None, None, "cat"]


@needs_pyarrow
def test_row_without_bytes_is_its_file(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    put(tmp_path, "cat/1.png")
    (tmp_path.parent / "outside.png").write_bytes(png(7))
    files = ["cat/1.png", "cat/gone.png", "../outside.png", str(tmp_path.parent / "outside.png"), None]
    rows = [{"bytes": None, "path": path} for path in files] + [{"bytes": b"", "path": "cat/1.png"}]
    place = table(tmp_path / "x.parquet", {"image": rows})
    problems = [entry.problem for entry in listed(place).entries]
    assert [problem is None for problem in problems] == [True, False, False, False, False, True]
    assert problems[1] == "No such file or directory"
    assert "outside the table's folder" in str(problems[2])
    assert problems[4] == parquet.NO_IMAGE
    assert (build(place).items, build(place).unchanged) == (2, 2)
    assert resolve.read_path(f"{place}!/row-00000000") == resolve.read_path(f"{place}!/row-00000005") == png(0)
    with pytest.raises(ImageError, match="outside the table's folder"):
        resolve.read_path(f"{place}!/row-00000002")


@needs_pyarrow
def test_row_outside_that_the_builder_permits(tmp_path: Path, colours: Any) -> None:
    (tmp_path / "table").mkdir()
    put(tmp_path, "outside.png")
    place = table(tmp_path / "table" / "x.parquet", {"image": [{"bytes": None, "path": "../outside.png"}]})
    with simsearch.build(place, tmp_path / "index", model=colours, allow_outside=True) as engine:
        assert len(engine) == 1
        assert engine.read(1) == (tmp_path / "outside.png").read_bytes()
        assert engine.search(tmp_path / "outside.png")[0].distance == 0
    with simsearch.build(place, tmp_path / "strict", model=colours) as engine:
        assert len(engine) == 0


@needs_pyarrow
def test_views_dictionaries_and_lists(tmp_path: Path) -> None:
    import pyarrow

    data = [png(seed) for seed in range(2)]
    columns = {
        "image": pyarrow.array(data, pyarrow.binary_view()),
        "label": pyarrow.array(["cat", "dog"], pyarrow.string_view()),
        "place": pyarrow.array(["here", "here"]).dictionary_encode(),
        "tags": pyarrow.array([["a", "b"], []], pyarrow.large_list(pyarrow.string())),
        "share": [[0.5, float("nan")], None],
    }
    first, second = listed(table(tmp_path / "x.parquet", columns)).entries
    assert (first.label, second.label) == ("cat", "dog")
    assert first.metadata == {"place": "here", "tags": ["a", "b"], "share": [0.5, None]}
    assert resolve.read_path(f"{tmp_path}/x.parquet!/row-00000001") == data[1]
    encoded = {"image": pyarrow.array([*data, data[0]]).dictionary_encode()}
    assert len(listed(table(tmp_path / "y.parquet", encoded)).entries) == 3
    assert resolve.read_path(f"{tmp_path}/y.parquet!/row-00000002") == data[0]


@needs_pyarrow
def test_rows_of_several_images(tmp_path: Path) -> None:
    rows = [
        [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}],
        None,
        [],
        [{"bytes": png(2), "path": ""}],
    ]
    place = table(tmp_path / "x.parquet", {"images": rows, "label": ["a", "b", "c", "d"]}, row_group_size=2)
    found = listed(place).entries
    assert [(entry.path, entry.label) for entry in found] == [
        ("row-00000000/0", "a"),
        ("row-00000000/1", "a"),
        ("row-00000003/0", "d"),
    ]
    assert [resolve.read_path(f"{place}!/{entry.path}") for entry in found] == [png(0), png(1), png(2)]
    for path in ("row-00000000/2", "row-00000001/0", "row-00000000", "row-00000000/x"):
        with pytest.raises(ImageError, match="no such row in the table"):
            resolve.read_path(f"{place}!/{path}")


@needs_pyarrow
def test_parquet_unique_path_column_names_rows(tmp_path: Path) -> None:
    data = [png(seed) for seed in range(2)]
    assert paths(listed(table(tmp_path / "x.parquet", {"i": data, "path": ["a/1.png", "b"]}))) == ["a/1.png", "b"]
    assert resolve.read_path(f"{tmp_path}/x.parquet!/b") == png(1)
    assert paths(listed(table(tmp_path / "y.parquet", {"i": data, "path": ["a", "a"]}))) == [
        "row-00000000",
        "row-00000001",
    ]
    with pytest.raises(ImageError, match="no such row in the table"):
        resolve.read_path(f"{tmp_path}/x.parquet!/c")


@needs_pyarrow
def test_parquet_rows_are_found_in_any_group(tmp_path: Path) -> None:
    data = [png(seed) for seed in range(20)]
    source = resolve.resolve(str(table(tmp_path / "x.parquet", {"image": data}, row_group_size=3)))
    assert [source.read(entry.path) for entry in reversed(source.listing().entries)] == data[::-1]
    source.close()


@needs_pyarrow
def test_parquet_groups_are_read_once_by_threads(tmp_path: Path) -> None:
    data = [png(seed) for seed in range(20)]
    source = resolve.resolve(str(table(tmp_path / "x.parquet", {"image": data}, row_group_size=5)))
    assert isinstance(source, parquet.ParquetSource)
    read: list[int] = []
    file = source._file

    class Counted:
        metadata, close = file.metadata, file.close

        def read_row_group(self, number: int, columns: list[str]) -> Any:
            read.append(number)
            return file.read_row_group(number, columns)

    source._file = Counted()
    for row in (0, 1, 2, 3, 5, 4, 6, 8, 10, 9, 7, 11, 15, 14):
        assert source.read(f"row-{row:08d}") == data[row]
    assert read == [0, 1, 2, 3]
    source.close()


@needs_pyarrow
def test_parquet_truncated_meanwhile_is_failure(tmp_path: Path) -> None:
    """In a process of its own, which a signal would end were the file mapped into its memory."""
    data = [np.random.default_rng(seed).bytes(200_000) for seed in range(20)]
    place = table(tmp_path / "x.parquet", {"image": data}, row_group_size=5, use_dictionary=False)
    code = (
        "import os, sys; from simsearch import errors; from simsearch.images.sources import resolve; source = resolve.resolve(sys.argv[1])\n"
        "source.read('row-00000000'); os.truncate(sys.argv[1], 1_500_000)\n"
        "try: source.read('row-00000019')\n"
        "except errors.ImageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot be read from the table: ")


@needs_pyarrow
def test_parquet_row_without_bytes_is_a_failure(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    rows = [{"bytes": png(), "path": None}, None, {"bytes": None, "path": "x"}]
    summary = build(table(tmp_path / "x.parquet", {"image": rows}))
    assert (summary.items, summary.failed) == (1, 2)
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert {reason for _, reason in engine.failures()} == {
            parquet.NO_IMAGE,
            "No such file or directory",
        }


@needs_pyarrow
def test_parquet_omits_unsupported_columns(tmp_path: Path) -> None:
    import pyarrow

    columns = {
        "image": [png()],
        "when": pyarrow.array([1], pyarrow.timestamp("ns")),
        "late": pyarrow.array([2**40], pyarrow.timestamp("s")),
        "lasts": pyarrow.array([1], pyarrow.duration("ns")),
        "nothing": [float("nan")],
        "null": pyarrow.array([None], pyarrow.int64()),
        "list": [[1, 2]],
        "more": [b"bytes"],
        "yes": [True],
        "word": pyarrow.array(["w"]).dictionary_encode(),
        "share": [0.5],
    }
    (entry,) = listed(table(tmp_path / "x.parquet", columns)).entries
    assert entry.metadata == {"yes": True, "word": "w", "share": 0.5, "list": [1, 2]}


@needs_pyarrow
def test_columns_that_occur_twice(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    images, others = [png(0), png(1)], pyarrow.array(["p", "q"])
    columns = [images, others, pyarrow.array([1, 2]), [png(2), png(3)], pyarrow.array(["a", "b"])]
    place = tmp_path / "x.parquet"
    names = ["image", "x", "x", "thumb", "label"]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(each) for each in columns], names), place)
    listing = listed(place)
    assert [(entry.label, entry.metadata) for entry in listing.entries] == [("a", None), ("b", None)]
    assert resolve.resolve(str(place)).read("row-00000001") == images[1]
    twice = pyarrow.Table.from_arrays([pyarrow.array(images)] * 2, ["image", "image"])
    pyarrow.parquet.write_table(twice, place)
    with pytest.raises(UsageError, match="no column holds image bytes"):
        listed(place)


@needs_pyarrow
@pytest.mark.parametrize("values", [["a", None, "b"], ["a", "", "b"], [["a"], ["b"], ["c"]], [1.5, 2.5, None]])
def test_columns_that_cannot_name_rows(values: list[Any], tmp_path: Path) -> None:
    place = table(tmp_path / "x.parquet", {"image": [png(n) for n in range(3)], "path": values})
    assert paths(listed(place)) == [f"row-0000000{number}" for number in range(3)]


@needs_pyarrow
def test_labels_that_are_binary_or_empty(tmp_path: Path) -> None:
    place = table(tmp_path / "x.parquet", {"image": [png(n) for n in range(3)], "label": [b"cat", b"", None]})
    assert [entry.label for entry in listed(place).entries] == ["cat", None, None]
    place = table(tmp_path / "x.parquet", {"label": ["", " ", None], "image": [png(n) for n in range(3)]})
    assert [entry.label for entry in listed(place).entries] == [None, " ", None]
    place = table(tmp_path / "x.parquet", {"label": [b"cat", b"dog"], "photo": [png(n) for n in range(2)]})
    assert [entry.size > 50 for entry in listed(place).entries] == [True, True]


@needs_pyarrow
def test_parquet_without_images_names_columns(tmp_path: Path) -> None:
    place = table(tmp_path / "x.parquet", {"a": [1], "b": ["x"]})
    with pytest.raises(UsageError, match="no column holds image bytes") as caught:
        resolve.resolve(str(place))
    assert caught.value.hint == "columns: a, b"


@needs_pyarrow
def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    place = table(tmp_path / "x.parquet", {"image": [png(seed) for seed in range(6)], "label": list("abcabc")})
    data = place.read_bytes()
    place.write_bytes(b"no parquet at all")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        resolve.resolve(str(place))
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for spot in generator.integers(0, len(data), 3):
            damaged[spot] = generator.integers(0, 256)
        place.write_bytes(damaged)
        try:
            source = resolve.resolve(str(place))
            for entry in source.listing().entries:
                source.read(entry.path)
        except (UsageError, ImageError) as refused:
            assert "\n" not in str(refused)


def test_parquet_without_extra_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(MissingExtraError, match=r"reading Parquet needs the \[parquet\] extra") as caught:
        resolve.resolve(str(tmp_path / "x.parquet"))
    assert caught.value.hint == install_line("parquet")
