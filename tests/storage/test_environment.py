"""A system that refuses files, space or permission is not a damaged index: exit code 2 with the reason, or an answer."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import click.testing
import numpy as np
import pytest

from simsearch.cli.main import main
from simsearch.engine import Engine
from simsearch.indexing import meta_update
from tests.helpers.data import ROOT
from tests.helpers.filler import Filler

COMMANDS = (["query", "id:1"], ["verify"], ["info"])


def run(*arguments: str) -> tuple[int, str]:
    result = click.testing.CliRunner().invoke(main, arguments)
    assert "Traceback" not in result.output
    assert "this is a bug" not in result.output
    return result.exit_code, result.stderr


def filled(path: Path) -> Filler:
    filler = Filler(path, 8, 64)
    filler.add(np.random.default_rng(0).normal(size=(300, 8)))
    with Engine(path, model=filler.model) as engine:
        meta_update.refresh_meta(engine.index)
    return filler


@pytest.fixture
def index(public: Path) -> Path:
    filler = filled(public / "index")
    filler.engine.close()
    assert not (public / "index" / "items.sqlite-wal").exists()
    return public / "index"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_too_many_open_files_is_no_damage(index: Path, command: list[str]) -> None:
    assert run(*command, "-i", str(index))[0] == 0  # imports what it needs
    limits, found = resource.getrlimit(resource.RLIMIT_NOFILE), []
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < used:  # so that no lower number is free
        taken.append(os.open(os.devnull, os.O_RDONLY))
    used = max(used, taken[-1])
    for more in (*range(1, 14), 20, 30, 60):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, limits[1]))
        hard = pytest.MonkeyPatch()
        hard.setattr(resource, "setrlimit", lambda *_: None)
        try:
            code, stderr = run(*command, "-i", str(index))
        finally:
            hard.undo()
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        found.append(code)
        assert code in {0, 2}, stderr
        assert code == 0 or "open" in stderr, stderr
    for descriptor in taken:
        os.close(descriptor)
    assert found[0] == 2
    assert found[-1] == 0


def test_full_disk_can_be_read(index: Path) -> None:
    """No file may have any bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        results = [run(*command, "-i", str(index)) for command in COMMANDS]
        refused = run("remove", "id:1", "--yes", "-i", str(index))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [code for code, _ in results] == [0, 0, 0], results
    assert refused[0] == 2
    assert run("verify", "-i", str(index))[0] == 0
    assert run("remove", "id:1", "--yes", "-i", str(index))[0] == 0


def test_full_disk_with_a_log_gives_the_reason(public: Path) -> None:
    filler = filled(public / "index")
    filler.remove([300])  # it is still open, so that its log is as well
    shutil.copytree(public / "index", public / "copy", ignore=shutil.ignore_patterns("*-shm"))
    assert (public / "copy" / "items.sqlite-wal").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        results = [run(*command, "-i", str(public / "copy")) for command in COMMANDS]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {code for code, _ in results} == {2}, results
    assert run("verify", "-i", str(public / "copy"))[0] == 0
    assert len(filler.engine) == 299


NOBODY = """
import os, sys
from pathlib import Path
from tests.storage.test_environment import COMMANDS, run

index, name, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for command in COMMANDS:
    assert run(*command, "-i", other)[0] == 0  # imports what it needs
if name:
    os.chmod(index / name, 0)
else:
    for path in [*index.rglob("*"), index]:
        path.chmod(0o555 if path.is_dir() else 0o444)
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for command in COMMANDS:
    print(*run(*command, "-i", str(index)), flush=True)
"""


def as_nobody(index: Path, name: str, imports: Path | None = None) -> list[str]:
    """The commands' exit codes and errors for somebody else, with one file unreadable, or all files read-only."""
    command = [sys.executable, "-c", NOBODY, str(index), name, str(imports or index)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("name", ["meta.json", "items.sqlite", "features/000002.f16", "features", "."])
def test_unreadable_files_are_no_damage(index: Path, name: str) -> None:
    lines = as_nobody(index, name)
    expected = ["2", "2", "0"] if name in {"features/000002.f16", "features"} else ["2", "2", "2"]
    assert [line[0] for line in lines if line[:1].isdigit()][: len(expected)] == expected or name == "features", lines
    assert all(line[0] in "02" for line in lines if line.strip()), lines
    assert any("denied" in line or "unable to open" in line for line in lines), lines


def test_read_only_folder_with_a_log_is_read(public: Path) -> None:
    """As from a backup or on a medium: the committed items are in the log, and SQLite cannot make its other file."""
    filler = filled(public / "index")
    filler.remove([300])
    shutil.copytree(public / "index", public / "copy", ignore=shutil.ignore_patterns("*-shm"))
    lines = as_nobody(public / "copy", "", imports=public / "index")
    assert [line[0] for line in lines if line.strip()] == ["0", "0", "0"], lines
    assert len(filler.engine) == 299
