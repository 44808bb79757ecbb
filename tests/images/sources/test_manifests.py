"""CSV and JSON-lines manifests as sources."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import simsearch
from simsearch.errors import UsageError
from simsearch.images.sources import resolve
from simsearch.images.sources.base import Listing
from simsearch.indexing import options
from tests.helpers.models import CellModel
from tests.helpers.sources import listed, paths, png, put

# -- manifests


def manifest(tmp_path: Path, text: str, name: str = "m.csv") -> Listing:
    put(tmp_path, "a.png", "b/c.png")
    (tmp_path / name).write_bytes(text.encode())
    return listed(tmp_path / name)


def test_csv_gives_labels_and_typed_metadata(tmp_path: Path) -> None:
    first, second = manifest(
        tmp_path,
        'path, label,year,price,code,note,share\na.png,cat,1999,1.5,007,"a ""quoted"", note",-0.001\nb/c.png,7,,,,,\n',
    ).entries
    assert (first.path, first.label, second.label) == ("a.png", "cat", "7")
    assert first.metadata == {"year": 1999, "price": 1.5, "code": "007", "note": 'a "quoted", note', "share": -0.001}
    assert second.metadata is None
    assert first.size == (tmp_path / "a.png").stat().st_size
    assert first.problem is None


@pytest.mark.parametrize(
    "text", ["1.10", "12E4", "007", "1_000", "٧", "+1", "1.", ".5", "-0", "0x1", "1e3", " 7", "9" * 19]
)
def test_csv_text_stays_text(text: str, tmp_path: Path) -> None:
    (entry, _) = manifest(tmp_path, f"path,a\na.png,{text}\nb/c.png,1\n").entries
    assert entry.metadata == {"a": text}


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("-7", -7), ("1.5", 1.5), ("1.0", 1.0), ("0.00001", 1e-5), (str(2**63 - 1), 2**63 - 1), ("0", 0)],
)
def test_csv_number_in_full_is_a_number(text: str, number: float, tmp_path: Path) -> None:
    (entry, _) = manifest(tmp_path, f"path,a\na.png,{text}\nb/c.png,1\n").entries
    assert entry.metadata == {"a": number}
    assert type(entry.metadata["a"]) is type(number)


def test_json_integer_beyond_64_bits(tmp_path: Path) -> None:
    (entry,) = manifest(tmp_path, f'{{"path": "a.png", "a": {2**64 - 1}, "b": {2**63 - 1}}}', "m.jsonl").entries
    assert entry.metadata == {"a": str(2**64 - 1), "b": 2**63 - 1}


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    text = (
        '{"path": "a.png", "label": 3, "tags": ["x"], "ok": true, "none": null, "n": "5"}\n\n  \n{"path": "b/c.png"}\n'
    )
    first, second = manifest(tmp_path, text, "m.jsonl").entries
    assert (first.label, first.metadata) == ("3", {"tags": ["x"], "ok": True, "n": "5"})
    assert (second.path, second.label, second.metadata) == ("b/c.png", None, None)


def test_manifest_takes_relative_absolute_paths(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", "d.png")
    text = f"path\na.png\n{elsewhere}/d.png\nelsewhere/../b/c.png\n"
    assert [entry.problem for entry in manifest(tmp_path, text).entries] == [None] * 3
    source = resolve.resolve(str(tmp_path / "m.csv"))
    assert source.display("a.png") == str(tmp_path / "a.png")
    assert source.display(f"{elsewhere}/d.png") == f"{elsewhere}/d.png"
    assert source.read(f"{elsewhere}/d.png") == png()
    assert source.read("a.png") == png(0)


def test_missing_file_of_a_manifest_is_a_failure(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    manifest(tmp_path, "path\na.png\ngone.png\nb\n")
    summary = build(tmp_path / "m.csv")
    assert (summary.items, summary.failed) == (1, 2)
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert dict(engine.failures()) == {
            str(tmp_path / "gone.png"): "No such file or directory",
            str(tmp_path / "b"): "Is a directory",
        }


def test_repeated_path_is_taken_once(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b/c.png")
    (tmp_path / "m.csv").write_text("path,label\na.png,first\na.png,second\nb/c.png,x\n")
    assert [(entry.path, entry.label) for entry in listed(tmp_path / "m.csv", ["b"]).entries] == [("a.png", "first")]


def test_manifest_labels_are_not_folders(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    manifest(tmp_path, "path,label\na.png,\nb/c.png,mine\n")
    build(tmp_path / "m.csv")
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert {match.relative: match.label for match in engine.search(png())} == {"a.png": None, "b/c.png": "mine"}


def test_changed_metadata_needs_no_computation(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    manifest(tmp_path, "path,n\na.png,1\n")
    build(tmp_path / "m.csv")
    manifest(tmp_path, "path,n\na.png,2\n")
    os.utime(tmp_path / "a.png", (5, 5))
    assert build(tmp_path / "m.csv").computed == 0
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert [match.metadata for match in engine.search(png(), where={"n": 2})] == [{"n": 2}]


@pytest.mark.parametrize("text", ['a.png,5" pipe\n', 'a.png,"5"" pipe"', 'a.png,"x\ny"\n\n', "b.png,z\"\na.png,'\n"])
def test_quotation_marks_that_are_no_error(text: str, tmp_path: Path) -> None:
    assert "a.png" in paths(manifest(tmp_path, "path,label\n" + text))


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    listing = manifest(tmp_path, "path,label\na.png,first\na.png,second\na.png,third\n")
    assert [entry.label for entry in listing.entries] == ["first"]
    assert listing.skipped == sum(listing.left_out.values()) == 2


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ('["a", "b"]', "a, b"),
        ("[]", None),
        ('["", null]', None),
        ('{"x": 1}', '{"x": 1}'),
        ("7", "7"),
        ("0", "0"),
        ("NaN", None),
        ('""', None),
    ],
)
def test_labels_of_other_types(label: str, expected: str | None, tmp_path: Path) -> None:
    (entry,) = manifest(tmp_path, f'{{"path": "a.png", "label": {label}}}\n', "m.jsonl").entries
    assert entry.label == expected


@pytest.mark.parametrize(("name", "text"), [("m.csv", "path\na.png\n"), ("m.jsonl", '{"path": "a.png"}')])
def test_bom_and_windows_line_ends_do_not_matter(name: str, text: str, tmp_path: Path) -> None:
    assert paths(manifest(tmp_path, "\ufeff" + text.replace("\n", "\r\n"), name)) == ["a.png"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "the first line has no column 'path'"),
        ("m.csv", "file,label\na.png,x\n", "the first line has no column 'path'"),
        ("m.csv", "path,label\na.png,x\n,y\n", "line 3: 'path' is missing or not text"),
        ("m.jsonl", '{"path": "a.png"}\n\nnope\n', "line 3: Expecting value"),
        ("m.jsonl", '{"path": "a.png"}\n[1]\n', "line 2: not a JSON object"),
        ("m.jsonl", '{"label": "x"}\n', "line 1: 'path' is missing or not text"),
        ("m.jsonl", '{"path": 7}\n', "line 1: 'path' is missing or not text"),
        ("m.jsonl", '{"path": "a\\ud800.png"}\n', r"line 1: the path 'a\\ud800.png' cannot name a file"),
        ("m.jsonl", '{"path": "a.png", "n": %s}\n' % ("9" * 5000), "line 1: a number of 5,000 digits"),
        ("m.jsonl", '{"path": "a.png", "n": %s}\n' % ("[" * 100_000), r"line 1: its arrays and objects are nested"),
        ("m.csv", 'path,label\na.png,x\nb.png,"y\nc.png,z\n', "line 4: a quotation mark is not closed"),
        ("m.csv", 'path,label\na.png,"x', "line 2: a quotation mark is not closed"),
    ],
)
def test_bad_lines_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{name}(: |, ){message}"):
        manifest(tmp_path, text, name)


def test_manifest_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path\ncaf\xe9.png\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"m\.csv is not UTF-8 text"):
        listed(tmp_path / "m.csv")


def test_impossible_name_fails_its_line_only(tmp_path: Path) -> None:
    listing = manifest(tmp_path, '{"path": "a\\u0000b.png"}\n{"path": "a.png"}\n', "m.jsonl")
    assert [entry.problem for entry in listing.entries] == ["embedded null byte", None]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", '{"path": "a.png", "x": NaN, "n": 1}\n{"path": "b/c.png", "x": [Infinity, 1e999], "n": 2}\n'),
        ("m.csv", "path,x,n\na.png,1e999,1\nb/c.png,%s,2\n" % ("9" * 5000)),
    ],
)
def test_non_json_numbers_do_not_break_filters(
    name: str, text: str, tmp_path: Path, build: Callable[..., options.Summary]
) -> None:
    manifest(tmp_path, text, name)
    build(tmp_path / name)
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(png(), where={"n": 1})
        assert match.relative == "a.png"
        json.dumps([match.metadata for match in engine.search(png())], allow_nan=False)


def test_surrogates_in_label_are_replaced(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    manifest(tmp_path, '{"path": "a.png", "label": "a\\ud800b"}\n', "m.jsonl")
    build(tmp_path / "m.jsonl")
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert engine.search(png())[0].label == "a?b"
