"""`duplicates` with its actions, and `restore`."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from simsearch.cli import duplicate_groups
from simsearch.curation.cleanup import run as cleaning
from simsearch.search.copy_threshold import Threshold
from simsearch.search.duplicates import Member
from simsearch.storage.reader import Item


@pytest.fixture
def copied(pictures, tmp_path, monkeypatch, run, index):
    """The index of the pictures and of two copies: red/copy.png and z.png."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    shutil.copy(pictures / "red" / "0.png", pictures / "red" / "copy.png")
    shutil.copy(pictures / "blue" / "1.png", pictures / "z.png")
    assert run("build", pictures).code == 0
    return pictures


def journal_of(tmp_path: Path) -> Path:
    (found,) = tmp_path.glob("simsearch-cleanup-*.jsonl")
    return found


def test_move_and_restore(copied, run, tmp_path):
    out = tmp_path / "out"
    planned = run("duplicates", "--max-distance", "0", "--move-to", out)
    assert planned.code == 0 and "2 files" in planned.err and "--yes does it" in planned.err
    assert "keep" in planned.out and "-> out/red/copy.png" in planned.out
    assert not out.exists() and (copied / "z.png").exists()
    done = run("duplicates", "--max-distance", "0", "--move-to", out, "--yes")
    assert done.code == 0 and f"moved to {out}" in done.err and "simsearch restore" in done.err
    assert sorted(path.name for path in out.rglob("*.png")) == ["copy.png", "z.png"]
    assert run("duplicates", "--max-distance", "0").code == 1
    assert run("restore", journal_of(tmp_path)).out == "2 files restored\n"
    assert (copied / "red" / "copy.png").exists()
    assert run("restore", journal_of(tmp_path)).out == "0 files restored, 2 at their places already\n"


def test_formats_show_the_plan(copied, run):
    limit = ("--max-distance", "0")
    group = run("duplicates", *limit, "--trash", "--format", "json").json[0]
    assert [(each["action"], each["target"]) for each in group] == [("keep", ""), ("trash", "")]
    group = run("duplicates", *limit, "--format", "json").json[0]
    assert "action" not in group[0]
    rows = list(csv.DictReader(io.StringIO(run("duplicates", *limit, "--keep", "oldest", "--format", "csv").out)))
    assert [row["keep"] == "true" for row in rows] == [row["action"] == "keep" for row in rows]
    assert [row["action"] for row in rows] == ["keep", "copy"] * 2
    paths = run("duplicates", *limit, "--keep", f"under:{copied / 'red'}", "--format", "paths").out
    assert paths == ""  # all of one group are there, and none of the other
    paths = run("duplicates", *limit, "--keep", "shortest-path", "--format", "paths").out.splitlines()
    assert sorted(map(os.path.basename, paths)) == ["1.png", "copy.png"]


def test_largest_is_named_without_a_rule(copied, run):
    with Image.open(copied / "red" / "copy.png") as image:
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(copied / "red" / "copy.png")
    assert run("build", copied).code == 0
    near = ("--max-distance", "20")
    rows = list(csv.DictReader(io.StringIO(run("duplicates", *near, "--format", "csv").out)))
    (kept,) = (row for row in rows if row["path"].endswith("red/copy.png"))
    group = [row for row in rows if row["group"] == kept["group"]]
    assert len(group) > 1 and [row["keep"] for row in group].count("true") == 1
    assert kept["keep"] == "true" and kept != group[0]
    entries = run("duplicates", *near, "--format", "json").json
    assert [sum(entry["keep"] for entry in group) for group in entries] == [1] * len(entries)


def test_summary_says_what_the_distances_are():
    """A group is a chain: the last member is farther from the first than the limit."""

    def member(distance):
        item = Item(1, 1, "a.png", None, {}, b"", 1, 1, 1, 1, 1)
        return Member(item, "a.png", distance, source=None)  # type: ignore[arg-type]

    chain = [[member(0.0), member(4.0), member(5.5)]]
    said = "1 group of 3 items; each is at most 5 from another one of its group"
    larger = ". The listed distances are those to the first of the group, so some are larger"
    assert duplicate_groups.summary([chain[0][:2]], Threshold(5)) == said.replace("3", "2")
    assert duplicate_groups.summary(chain, Threshold(5)) == said + larger
    measured = Threshold(3, {"JPEG 50": 0.906, "scaled to 75 %, JPEG 60": 1.0}, 6)
    assert duplicate_groups.summary(chain, measured).splitlines() == [
        "1 group of 3 items; each is at most 6 from another one of its group, and their pixels agree",
        "percentage of changed copies found: JPEG of quality 50: 91; scaled to 75 %, JPEG of quality 60: 100",
    ]
    assert duplicate_groups.summary([], Threshold(5)) == "0 groups; no two images are at most 5 apart"
    assert "0 groups; no two images at most 6 apart have pixels that agree" in duplicate_groups.summary([], measured)


def test_hard_links(copied, run, tmp_path):
    assert run("duplicates", "--max-distance", "0", "--hardlink", "-y", "--journal", "j").code == 0
    assert (copied / "z.png").samefile(copied / "blue" / "1.png")
    assert run("restore", "j").code == 0 and not (copied / "z.png").samefile(copied / "blue" / "1.png")


def test_against_folder_and_index(copied, run, tmp_path, tiny_weights):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(copied / "green" / "2.png", other / "here.png")
    for place in (other, tmp_path / "second"):
        found = run("duplicates", "--max-distance", "0", "--against", place, "--format", "json")
        assert [(each["id"] is None, each["action"]) for each in found.json[0]] == [(True, "keep"), (False, "copy")]
        assert len(found.json) == 1
        assert run("build", other, "-i", tmp_path / "second", "--model", tiny_weights).code == 0
    assert run("duplicates", "--max-distance", "0", "--against", other, "--move-to", "out", "--yes").code == 0
    assert not (copied / "green" / "2.png").exists() and (other / "here.png").exists()
    refused = run("duplicates", "--against", tmp_path / "nowhere")
    assert refused.code == 2 and "nowhere" in refused.err


def test_ignored_groups(copied, run):
    refused = run("duplicates", "--max-distance", "0", "--ignore", copied / "green" / "1.png")
    assert refused.code == 2 and "not in any group" in refused.err
    assert run("duplicates", "--max-distance", "0", "--ignore", copied / "z.png").code == 0
    assert len(run("duplicates", "--max-distance", "0", "--format", "json").json) == 1
    assert len(run("duplicates", "--max-distance", "0", "--format", "json", "--all").json) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--yes",), "--yes needs an action"),
        (("--journal", "j"), "--journal needs an action"),
        (("--trash", "--hardlink"), "exclude each other"),
        (("--move-to", ""), "names no folder"),
        (("--keep", "best"), "there is no rule 'best'"),
        (("--keep", "against"), "the rule 'against' needs another index"),
        (("--keep", "under:nowhere"), "no folder 'nowhere'"),
        (("--trash", "--ignore", "id:1"), "--ignore only marks groups"),
        (("--trash", "--journal", "no/j"), "its folder does not exist"),
        (("--against", ""), "names no index"),
    ],
)
def test_wrong_uses(copied, run, arguments, words):
    refused = run("duplicates", "--max-distance", "0", *arguments)
    assert refused.code == 2 and words in refused.err and refused.err.count("error:") == 1


def test_journal_is_not_overwritten(copied, run, tmp_path):
    (tmp_path / "j").write_text("mine")
    refused = run("duplicates", "--max-distance", "0", "--trash", "--yes", "--journal", "j")
    assert refused.code == 2 and "exists already" in refused.err
    assert (tmp_path / "j").read_text() == "mine" and (copied / "z.png").exists()


def test_files_that_could_not_be_moved(copied, run, tmp_path, monkeypatch):
    def act(task, do, journal):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cleaning, "act", act)
    failed = run("duplicates", "--max-distance", "0", "--move-to", "out", "--yes")
    assert failed.code == 2 and "left alone: 1 file" in failed.err and "No space left" in failed.err


def test_interrupted_run_names_its_journal(copied, run, monkeypatch):
    def act(task, do, journal):
        raise KeyboardInterrupt

    monkeypatch.setattr(cleaning, "act", act)
    stopped = run("duplicates", "--max-distance", "0", "--move-to", "out", "--yes", "--journal", "j")
    assert stopped.code == 130 and "/j takes back what was done" in stopped.err


def test_restore_of_what_is_no_journal(run, tmp_path):
    assert run("restore", tmp_path / "none").code == 2
    (tmp_path / "text").write_text("hello\n")
    refused = run("restore", tmp_path / "text")
    assert refused.code == 2 and "not a journal" in refused.err
