"""`query` given folders and words, and its report opened in the browser."""

import json
import os
import sys
from pathlib import Path

import click
import pytest

from simsearch.cli import console


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
    assert done.err.splitlines()[0] == "error: there is no picture 'red car', and simsearch cannot search by words"
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
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    page = tmp_path / "page.html"
    assert run("query", "id:1", "--open", *(("--html", page) if named else ())).code == 0
    (address,) = opened
    shown = Path(address.removeprefix("file://"))
    assert "<html" in shown.read_text() and (shown == page) == named
    assert json.dumps(address).count("file:///") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have a desktop")
def test_open_without_a_desktop(run, tmp_path, monkeypatch):
    monkeypatch.setattr(click, "launch", None)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    done = run("query", "id:1", "--open", "--html", tmp_path / "page.html")
    assert (done.code, f"note: there is no desktop to open {tmp_path / 'page.html'} on" in done.err) == (0, True)


@pytest.mark.parametrize("verb", [("query", "id:1"), ("duplicates", "--max-distance", 1000), ("eval", "search")])
def test_report_links_to_a_service(run, tmp_path, verb):
    page = tmp_path / "page.html"
    assert run(*verb, "--html", page, "--links", "http://localhost:8000/").code == 0
    assert 'href="http://localhost:8000/v1/items/2/image"' in page.read_text()
    for wrong, message in (
        (("--links", "localhost"), "is not the address"),
        (("--links", "http://a"), "needs an HTML report"),
    ):
        done = run(*verb, *wrong)
        assert (done.code, message in done.err, "hint: " in done.err) == (2, True, True)


def test_table_has_the_shorter_path(run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("query", "id:1", "-k", 1).out.splitlines()[2].split()[-1].startswith("pictures/")
    assert run("query", "id:1", "-k", 1, "--format", "paths").out.startswith(str(pictures))
    assert run("query", "id:1", "-k", 1, "--relative").out.splitlines()[2].split()[-1].count("/") == 1
    (tmp_path / "a" / "b" / "c" / "d" / "e" / "f" / "g").mkdir(parents=True)
    for folder in ("a/b/c/d/e/f/g", "pictures/red"):
        monkeypatch.chdir(tmp_path / folder)
        shown = run("query", "id:1", "-k", 1).out.splitlines()[2].split()[-1]
        assert Path(shown).samefile(run("query", "id:1", "-k", 1, "--format", "paths").out.strip())
        assert len(shown) <= len(run("query", "id:1", "-k", 1, "--format", "paths").out.strip())


@pytest.mark.parametrize(("term", "links"), [("xterm-256color", True), ("dumb", False), ("linux", False)])
def test_links_in_a_terminal(pictures, monkeypatch, term, links):
    monkeypatch.setenv("TERM", term)
    monkeypatch.chdir(Path(os.__file__).parent)  # from where no relative path is shorter, and shown
    path = str(pictures / "red" / "0.png")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert console.show_path(path) == path
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    uri = f"\x1b]8;;file://{path}\x1b\\"
    assert console.show_path(path) == (f"{uri}{path}\x1b]8;;\x1b\\" if links else path)
    assert console.show_path("photos.zip!/a.png") == "photos.zip!/a.png"
    assert console.show_path("/gone/\x1b.png") == r"/gone/\x1b.png"
