"""`query` given folders and words, and its report opened in the browser."""

import json
from pathlib import Path

import click
import pytest


def test_folder_stands_for_its_pictures(run, pictures):
    (pictures / "red" / "notes.txt").write_text("no picture")
    done = run("query", pictures / "red", "id:1", "-k", 1, "--format", "json")
    names = [answer["query"] for answer in done.json]
    assert names == [*(str(pictures / "red" / f"{n}.png") for n in range(4)), "id:1"]
    assert all(answer["matches"][0]["distance"] == 0 for answer in done.json[:4])


def test_folder_without_pictures(run, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("query", tmp_path / "empty")
    assert (done.code, done.err) == (2, f"error: the folder {tmp_path / 'empty'} has no pictures\n")


def test_folder_without_pictures_among_others(run, pictures, tmp_path):
    """As one bad picture among good ones: the good answers, the error, exit 2."""
    (tmp_path / "empty").mkdir()
    done = run("query", "id:1", tmp_path / "empty", pictures / "red" / "0.png", "-k", 1, "--format", "json")
    assert (done.code, done.err) == (2, f"error: the folder {tmp_path / 'empty'} has no pictures\n")
    assert [answer["query"] for answer in done.json] == ["id:1", str(pictures / "red" / "0.png")]


def test_words_are_not_searched_for(run):
    done = run("query", "red car")
    assert done.code == 2
    assert done.err.splitlines()[0] == "error: there is no picture 'red car', and words are not searched for"
    assert done.err.splitlines()[1].startswith("hint: give a picture to search by")


@pytest.mark.parametrize("name", ["gone.jpg", "folder/gone"])
def test_missing_file_is_no_text(run, name):
    done = run("query", name)
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {name}: No such file or directory")


def test_file_without_suffix_is_a_picture(run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "red car").write_bytes((pictures / "red" / "0.png").read_bytes())
    assert run("query", "red car", "-k", 1, "--format", "json").json[0]["matches"][0]["distance"] == 0


@pytest.mark.parametrize("named", [True, False])
def test_open_shows_the_report(run, tmp_path, monkeypatch, named):
    opened: list[str] = []
    monkeypatch.setattr(click, "launch", opened.append)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    page = tmp_path / "page.html"
    assert run("query", "id:1", "--open", *(("--html", page) if named else ())).code == 0
    (address,) = opened
    shown = Path(address.removeprefix("file://"))
    assert "<html" in shown.read_text() and (shown == page) == named
    assert json.dumps(address).count("file:///") == 1
