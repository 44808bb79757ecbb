"""The commands of `curate`."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("outliers", "-n", "3"), {"score", "distance"}),
        (("diverse", "-n", "3"), {"radius"}),
        (("tags", "--tag", "id:1=a", "--tag", "id:12=b", "-n", "3"), {"confidence"}),
    ],
)
def test_formats(run, tmp_path, arguments, facts, monkeypatch):
    monkeypatch.chdir(Path(os.__file__).parent)  # from where no relative path is shorter, and shown
    found = run("curate", *arguments, "--format", "json").json
    assert len(found) == 3 and all({"id", "path", "label", *facts} <= entry.keys() for entry in found)
    paths = run("curate", *arguments, "--format", "paths").out.splitlines()
    assert paths == [entry["path"] for entry in found]
    rows = list(csv.DictReader(io.StringIO(run("curate", *arguments, "--format", "csv").out)))
    assert [int(row["id"]) for row in rows] == [entry["id"] for entry in found] and facts <= rows[0].keys()
    assert len(run("curate", *arguments, "--format", "jsonl").out.splitlines()) == 3
    report = tmp_path / "report.html"
    table = run("curate", *arguments, "--html", report)
    assert table.code == 0 and all(path in table.out for path in paths) and "wrote" in table.err
    assert report.read_text().count("<img") >= 3


def test_labels_and_leaks(run, pictures, tmp_path):
    shutil.move(pictures / "red" / "0.png", pictures / "blue" / "moved.png")
    assert run("build", pictures).code == 0
    found = run("curate", "labels", "-k", "5", "--format", "json").json
    assert [(entry["label"], entry["suggested"]) for entry in found] == [("blue", "red")]
    assert found[0]["path"].endswith("moved.png") and len(found[0]["neighbours"]) == 5
    other = tmp_path / "train"
    other.mkdir()
    assert run("curate", "leaks", "--against", other, "--max-distance", "0").code == 2  # no pictures there
    shutil.copy(pictures / "green" / "1.png", other / "x.png")
    leaked = run("curate", "leaks", "--against", other, "--max-distance", "0", "--html", tmp_path / "r.html")
    assert leaked.code == 0 and "x.png" in leaked.out and "1 of 12 items within 0" in leaked.err
    assert (tmp_path / "r.html").exists()
    shutil.copy(pictures / "green" / "1.png", tmp_path / "keep.png")
    (pictures / "green" / "1.png").unlink()
    assert run("build", pictures).code == 0
    assert run("curate", "leaks", "--against", other, "--max-distance", "0").code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("leaks",), "--against"),
        (("leaks", "--against", ""), "names no index"),
        (("leaks", "--against", "nowhere"), "nowhere"),
        (("diverse",), "--count"),
        (("diverse", "-n", "0"), "0"),
        (("outliers", "-k", "0"), "0"),
        (("tags",), "all items have labels"),
        (("tags", "--tag", "id:1"), "not NAME=LABEL"),
        (("tags", "--tag", "nothing*=a"), "nothing*"),
        (("tags", "--tag", "id:999=a"), "999"),
        (("tags", "--tag", "id:1=a"), "different labels"),
        (("outliers", "--html", "no/such/report.html"), "folder does not exist"),
    ],
)
def test_wrong_uses(run, arguments, words):
    refused = run("curate", *arguments)
    assert refused.code == 2 and words in refused.err and refused.err.count("error:") == 1
