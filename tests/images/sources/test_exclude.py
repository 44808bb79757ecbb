"""Patterns of what to leave out, in every kind of source."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from simsearch.errors import UsageError
from simsearch.images.sources.exclude import Exclusion
from simsearch.indexing import options
from tests.helpers.sources import listed, paths, put, write_tar, write_zip

NAMES = ("a.png", "cat/1.png", "cat/deep/2.png", "dog/3.png", "dog/cat/4.png", "#x/5.png")


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["cat"], "a.png #x/5.png dog/3.png"),
        (["cat/"], "a.png #x/5.png dog/3.png"),
        (["./cat"], "a.png #x/5.png dog/3.png dog/cat/4.png"),
        (["./cat/"], "a.png #x/5.png dog/3.png dog/cat/4.png"),
        (["/cat"], "a.png #x/5.png dog/3.png dog/cat/4.png"),
        (["cat/*"], "a.png #x/5.png dog/3.png dog/cat/4.png"),
        (["cat/**"], "a.png #x/5.png dog/3.png dog/cat/4.png"),
        (["**/cat/**"], "a.png #x/5.png dog/3.png"),
        (["**/deep"], "a.png #x/5.png cat/1.png dog/3.png dog/cat/4.png"),
        (["dog/*.png"], "a.png #x/5.png cat/1.png cat/deep/2.png dog/cat/4.png"),
        (["[ad]*"], "#x/5.png cat/1.png"),
        (["*.png", "!/a.png"], "a.png"),
        (["#x"], "a.png cat/1.png cat/deep/2.png dog/3.png dog/cat/4.png"),
        (["pictures/cat"], "a.png #x/5.png dog/3.png dog/cat/4.png"),
        (["./pictures/cat/"], "a.png #x/5.png dog/3.png dog/cat/4.png"),
        (["{root}/cat"], "a.png #x/5.png dog/3.png dog/cat/4.png"),
        (["{root}/**/deep"], "a.png #x/5.png cat/1.png dog/3.png dog/cat/4.png"),
        (["{root}"], ""),
        (["CAT", "nothing"], "a.png #x/5.png cat/1.png cat/deep/2.png dog/3.png dog/cat/4.png"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "csv"])
def test_rules_of_gitignore(
    kind: str, patterns: Sequence[str], left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = put(tmp_path / "pictures", *NAMES)
    root = str(place)
    if kind in {"zip", "tar"}:
        place = (write_zip if kind == "zip" else write_tar)(tmp_path / f"x.{kind}", *NAMES)
        root = f"{place}!"
        patterns = [pattern.replace("pictures/", f"x.{kind}!/") for pattern in patterns]
    elif kind == "csv":
        place = place / "m.csv"
        place.write_text("path\n" + "\n".join(NAMES))
    listing = listed(place, [pattern.format(root=root) for pattern in patterns])
    assert sorted(paths(listing)) == sorted(left.split())


def test_patterns_that_match_nothing(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    put(tmp_path / "a", "cat/1.png")
    put(tmp_path / "b", "dog/2.png", "3.png")
    summary = build(tmp_path / "a", tmp_path / "b", exclude=("cat", "dgo", "*.gif", "dog/"))
    assert (summary.items, summary.unmatched) == (1, ["dgo", "*.gif"])


def test_recorded_patterns_are_of_the_source(
    tmp_path: Path, build: Callable[..., options.Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern relative to the current folder means the same when the index is updated from elsewhere."""
    put(tmp_path / "photos", "cat/1.png", "dog/cat/2.png")
    monkeypatch.chdir(tmp_path)
    assert build(tmp_path / "photos", exclude=("photos/cat",)).items == 1
    monkeypatch.chdir(os.path.sep)
    summary = build()
    assert (summary.items, summary.unchanged, summary.unmatched) == (1, 1, [])


def test_pattern_that_cannot_be_used() -> None:
    with pytest.raises(UsageError, match="exclude pattern"):
        Exclusion(["!"], "/photos")
