"""`kill -9` during a build: at random moments as a user's machine would, and at chosen lines of what writes the index."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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

OFTEN = (
    "from simsearch import sync\nfrom simsearch.cli.main import main\n"
    "sync.COMMIT_IMAGES, sync.COMMIT_SECONDS = 1, 0.0\n"  # after every batch
    "main()"
)


@pytest.fixture
def script() -> ModuleType:
    """`scripts/bench/kill.py` as a module."""
    loader = importlib.machinery.SourceFileLoader("bench_kill", str(ROOT / "scripts" / "bench" / "kill.py"))
    spec = importlib.util.spec_from_loader("bench_kill", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_kill"] = module
    loader.exec_module(module)
    return module


@pytest.mark.slow
def test_killed_at_random_moments(
    script: ModuleType, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The benchmark itself, small: builds of 200 pictures through the command line, committed after every batch."""
    for number in range(200):
        draw(tmp_path / "photos" / "abcde"[number % 5] / f"{number}.png", number)
    monkeypatch.setattr(script, "SIMSEARCH", [sys.executable, "-c", OFTEN])
    monkeypatch.chdir(ROOT)
    arguments = ["--source", tmp_path / "photos", "--model", tiny_weights, "--device", "cpu", "--times", 3, "--seed", 2]
    monkeypatch.setattr(sys, "argv", ["kill", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        script.main()
    out = capsys.readouterr().out
    assert caught.value.code == 0, out
    assert "200 images" in out
    assert "3 kills:" in out
    assert "0 not as claimed" in out


# -- at chosen lines, in a process of its own that forks before it has any threads

WATCHED = (sync, database, feature_files, meta)


def build(photos: Path, index: Path) -> int:
    """One build, verified; returns how many images were computed."""
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
    """Kills a build at a line and checks what is left and what the next build makes of it.

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
    """Kills builds at `times` random lines: first builds, or such that find changed files."""
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
        (photos / "b" / "01.png").rename(photos / "01.png")  # takes all labels away
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
