"""Clean-up on real file systems of other kinds, whose folders environment variables name.

Making one needs root and what the kernel has; `docs/contributing.md` says how. SIMSEARCH_TEST_CASELESS: a folder that
does not tell `A` from `a`. SIMSEARCH_TEST_FULL: one in a file system of a few MB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from simsearch import api
from tests.curation.cleanup.conftest import Contents
from tests.helpers.models import Colours
from tests.helpers.scripts import SCRIPTS


def folder_of(variable: str) -> Iterator[Path]:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no folder")
    with tempfile.TemporaryDirectory(dir=os.environ[variable]) as folder:
        yield Path(folder)


@pytest.fixture
def caseless() -> Iterator[Path]:
    yield from folder_of("SIMSEARCH_TEST_CASELESS")


@pytest.fixture
def small() -> Iterator[Path]:
    yield from folder_of("SIMSEARCH_TEST_FULL")


def kill(*options: str) -> str:
    script = [sys.executable, str(SCRIPTS / "bench" / "kill_cleanup.py"), "--times", "20", *options]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_kills_where_case_does_not_count(caseless: Path) -> None:
    assert "20 clean-ups: 0 not as claimed" in kill("--folder", str(caseless))


@pytest.mark.slow
def test_kills_while_a_disk_gets_full(small: Path) -> None:
    assert "20 clean-ups: 0 not as claimed" in kill("--full", str(small))


@pytest.mark.parametrize("action", ["move", "hardlink", "trash"])
def test_a_folder_by_two_names_loses_nothing(
    caseless: Path,
    photos: Path,
    tmp_path: Path,
    colours: Colours,
    contents: Contents,
    action: Literal["move", "hardlink", "trash"],
) -> None:
    shutil.copytree(photos / "amber", caseless / "Photos")
    assert (caseless / "PHOTOS").is_dir()
    before = contents(caseless / "Photos")
    with api.build([caseless / "Photos", caseless / "PHOTOS"], tmp_path / "index", colours) as engine:
        into = str(caseless / "out") if action == "move" else None
        journal = tmp_path / "journal.jsonl"
        engine.clean_up(action, into=into, max_distance=0, dry_run=False, journal=journal)
    assert contents(caseless / "Photos") == before
    assert not (caseless / "out").exists() or not list((caseless / "out").rglob("*.png"))
