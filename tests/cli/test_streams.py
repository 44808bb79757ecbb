"""Closed standard streams, and names that look like options."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.sources import put


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("place")
    put(folder / "s", "1.png", "2.png")
    done = sh(folder, f"build s -i i --model {shlex.quote(str(tiny_weights))} >&-")
    assert (done.returncode, done.stdout) == (0, "") and "error" not in done.stderr
    return folder


def sh(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    line = f"exec {shlex.quote(sys.executable)} -m simsearch {command}"
    return subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ("info -i i", 0, "items     2", ""),
        ("query - -i i <&-", 2, "", "error: standard input is empty or closed"),
        ("query - -i i </dev/null", 2, "", "error: standard input is empty or closed"),
        ("classify - <&-", 2, "", "error: standard input is empty or closed"),
        ("remove id:1 -i i <&-", 2, "id:1", "error: removing 1 item must be confirmed; nothing was removed"),
        ("query id:1 -i i >&-", 2, "", "error: standard output is closed, so the result is lost"),
        ("query id:1 -i i <&- 2>&-", 0, "1.", ""),
        ("info -i i <&- >&- 2>&-", 2, "", ""),
        ("query nope.png -i i 2>/dev/full", 2, "", ""),
        ("query id:1 nope.png -i i 2>/dev/full", 2, "2.png", ""),
        ("add s -i i 2>/dev/full", 0, "2 items", ""),
        ("query -i i -- --debug", 2, "", "error: there is no picture '--debug'"),
        ("query -i i --debug -- -x", 2, "", "error: there is no picture '-x'"),
    ],
)
def test_closed_streams(command: str, code: int, out: str, err: str, place: Path) -> None:
    done = sh(place, command)
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert bool(done.stderr) == bool(err)
    assert "Traceback" not in done.stderr or "--debug -- -x" in command


@pytest.mark.skipif(sys.platform != "linux", reason="the file system may refuse such names")
@pytest.mark.parametrize("setting", ["PYTHONUTF8=0", "PYTHONIOENCODING=ascii"])
def test_names_in_an_ascii_locale(setting: str, place: Path, tiny_weights: Path, tmp_path: Path) -> None:
    put(tmp_path / "s", "\u00e9.png", "\udcff.png")
    line = f"export LC_ALL=C {setting}; exec {shlex.quote(sys.executable)} -m simsearch"
    commands = (f"build s -i i --model {shlex.quote(str(tiny_weights))}", "query id:1 -i i -k 2 --format paths")
    for command in commands:
        done = subprocess.run(["sh", "-c", f"{line} {command}"], cwd=tmp_path, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
    names = {line.rpartition(b"/")[2] for line in done.stdout.splitlines()}
    assert names <= {b"\xc3\xa9.png", b"\xff.png"} and names
