"""`kill -9` during a build, at chosen lines of the code that writes the index; see also `scripts/bench/kill.py`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simsearch import api
from simsearch.engine import Engine
from simsearch.indexing import sync
from simsearch.storage import database, feature_files, meta, reader
from simsearch.storage.verify import verify
from tests.helpers.data import ROOT
from tests.helpers.dying import trace
from tests.helpers.models import Colours
from tests.helpers.pictures import draw

WATCHED = (sync, database, feature_files, meta)


def build(photos: Path, index: Path) -> int:
    """Builds and verifies once; returns the number of images computed."""
    model = Colours()
    with api.build(photos, index, model, batch_size=4, workers=1) as engine:
        assert verify(engine.index).problems == ()
    return model.computed


def items(index: Path) -> dict[str, reader.Item]:
    with Engine(index, model=Colours()) as engine, engine.reading() as reader:
        assert verify(engine.index).problems == ()
        found = list(reader.items())
    assert len({item.path for item in found}) == len(found)
    return {item.path: item for item in found}


def killed(photos: Path, base: Path | None, folder: Path, fatal: int) -> dict[str, int]:
    """Kills a build at a line, checks the index, and checks the next build.

    base: the index to start from, brought in step by an undisturbed build in `folder / "whole"`.
    """
    index = folder / "index"
    shutil.rmtree(index, ignore_errors=True)
    if base is not None:
        shutil.copytree(base, index)
    child = os.fork()
    if child == 0:
        trace(fatal, *WATCHED)
        build(photos, index)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = items(index) if (index / "meta.json").exists() else {}
    computed = build(photos, index)
    after, whole, start = items(index), items(folder / "whole"), items(base) if base is not None else {}
    assert {path: item.digest for path, item in after.items()} == {path: item.digest for path, item in whole.items()}
    assert {path: item.label for path, item in after.items()} == {path: item.label for path, item in whole.items()}
    for path in after.keys() & start.keys():
        assert after[path].id == whole[path].id
    if base is None:
        assert all((after[path].id, after[path].row) == (item.id, item.row) for path, item in before.items())
    missing = {item.digest for item in whole.values()} - {item.digest for item in before.values()}
    assert computed == len(missing), (computed, len(missing))
    return {"line": fatal, "committed": len(before), "computed": computed}


def harness(folder: Path, changed: bool, times: int, seed: int) -> None:
    """Kills builds at `times` random lines: first builds, or builds that find changed files."""
    sync.COMMIT_IMAGES = 1
    photos, base = folder / "photos", None
    for number in range(24):
        draw(photos / "abc"[number % 3] / f"{number:02d}.png", number)
    if changed:
        base = folder / "base"
        build(photos, base)
        for number in (3, 8, 21):
            draw(photos / "abc"[number % 3] / f"{number:02d}.png", 100 + number)
            os.utime(photos / "abc"[number % 3] / f"{number:02d}.png", ns=(1, 10**18 + number))
        for number in range(30, 36):
            draw(photos / "new" / f"{number}.png", number)
        (photos / "a" / "06.png").rename(photos / "c" / "moved.png")
        (photos / "b" / "01.png").rename(photos / "01.png")  # removes all labels
        shutil.copy(photos / "c" / "02.png", photos / "new" / "copy.png")
        (photos / "c" / "05.png").write_bytes(b"broken")
        (photos / "a" / "09.png").unlink()
        shutil.copytree(base, folder / "whole")
    count = trace(-1, *WATCHED)
    build(photos, folder / "whole")
    sys.settrace(None)
    lines = sorted(random.Random(seed).sample(range(1, count[0]), times))
    print(json.dumps([killed(photos, base, folder, line) for line in lines]))


@pytest.mark.parametrize("changed", [False, True], ids=["first build", "changed files"])
def test_killed_at_any_line(tmp_path: Path, changed: bool) -> None:
    code = f"from tests.indexing.test_kill import *\nharness(Path({str(tmp_path)!r}), {changed}, times=16, seed=7)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)
    assert len(rounds) == 16
    assert len({entry["committed"] for entry in rounds}) > 1  # the kills came at different stages
