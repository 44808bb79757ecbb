"""Scripts as users write them: type checkers accept them, and they run; mistakes are found by both."""

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import simsearch
from simsearch.errors import SimsearchError, UsageError
from tests.helpers.client import Client
from tests.helpers.pictures import draw
from tests.user_scripts import building, mistakes, searching, serving

FOLDER = Path(mistakes.__file__).parent
REPOSITORY = Path(simsearch.__file__).parents[1]

MYPY = """\
[mypy]
strict = true
[mypy-torch.*,torchvision.*,faiss.*,pandas.*,pyarrow.*,onnxruntime.*,jinja2.*,rich.*]
follow_imports = skip
ignore_missing_imports = true
[mypy-simsearch.*]
follow_imports = silent
"""

PYRIGHT = """\
{"include": ["."], "extraPaths": ["%s"], "typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The scripts in a folder of their own, as those of a user are, with the settings of the checkers."""
    folder = tmp_path_factory.mktemp("scripts")
    for path in FOLDER.glob("*.py"):
        shutil.copy(path, folder)
    (folder / "mypy.ini").write_text(MYPY)
    (folder / "pyrightconfig.json").write_text(PYRIGHT % REPOSITORY)
    return folder


def check(folder, module, *arguments):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed (the [dev] extra)")
    environment = {**os.environ, "MYPYPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_mypy(scripts):
    done = check(scripts, "mypy", *(path.name for path in sorted(scripts.glob("[!_]*.py"))))
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright(scripts):
    if (started := check(scripts, "pyright", "--version")).returncode:
        pytest.skip(f"pyright cannot start: {(started.stderr or started.stdout).strip().splitlines()[-1:]}")
    done = check(scripts, "pyright", "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout


@pytest.fixture
def engine(photos, tmp_path, tiny_weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with simsearch.build(photos, "index", model=str(tiny_weights)) as engine:
        yield engine


def test_searching_runs(engine, photos):
    path = photos / "amber" / "0.png"
    assert searching.pictures(path) == [1] * 7
    assert searching.options(engine, path) == 1.0  # distance 0, similarity 1
    assert len(searching.items(engine)) == 6
    assert asyncio.run(searching.concurrent(engine, [path, photos / "rose" / "5.png"])) == [
        str(path),
        str(photos / "rose" / "5.png"),
    ]
    assert "mypy.ini" in searching.reason(Path("mypy.ini"))
    assert "nowhere" in searching.missing()


def test_building_runs(photos, tmp_path, tiny_weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "more" / "0.png", 300)
    draw(tmp_path / "new.png", 301)
    assert building.build(photos, str(tiny_weights)) == 24 + 3


def test_serving_runs(engine):
    client = Client(serving.make(engine))
    assert client("GET", "/like/1").json() == [match.path for match in engine.search_by_id(1, 3, dedup=True)]
    assert client("GET", "/similar/v1/items/1").status_code == 401
    assert client("GET", "/several/v1/items/1").json()["label"] == "amber"


def test_mistakes_are_usage_errors(engine, photos):
    made = list(mistakes.mistakes(engine, photos / "amber" / "0.png"))
    for mistake in made:
        with pytest.raises(SimsearchError) as raised:
            mistake()
        assert isinstance(raised.value, UsageError), raised.value
    assert len(made) == sum("# type: ignore" in line for line in Path(mistakes.__file__).read_text().splitlines())
