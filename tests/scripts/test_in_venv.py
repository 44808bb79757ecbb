"""Every script can be imported, and runs in .venv whichever Python it is called with."""

from __future__ import annotations

import ast
import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.data import ROOT
from tests.helpers.scripts import SCRIPTS

VENV = ROOT / ".venv"
EXAMPLES = SCRIPTS / "examples"  # these show how to call simsearch, in whatever environment has it
PROGRAMS = [
    path
    for path in sorted(SCRIPTS.rglob("*.py"))
    if EXAMPLES not in path.parents and 'if __name__ == "__main__":' in path.read_text()
]


def name(path: Path) -> str:
    return str(path.relative_to(SCRIPTS))


@pytest.mark.parametrize("script", ["reproduce/lenet5.py", "bench/search.py"])
def test_foreign_python_runs_script_in_venv(script: str, tmp_path: Path) -> None:
    if not (VENV / "bin" / "python").exists():
        pytest.skip("there is no .venv")
    foreign = [str(Path(sys.base_prefix) / "bin" / "python3"), "-S", "-I"]
    missing = subprocess.run([*foreign, "-c", "import numpy"], capture_output=True, check=False)
    assert missing.returncode != 0, "this Python has the packages"
    command = [*foreign, str(SCRIPTS / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {Path(script).name}")


@pytest.mark.parametrize("path", PROGRAMS, ids=name)
def test_script_enters_venv_before_other_imports(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    entered = next(n for n, node in enumerate(body) if isinstance(node, ast.If) and "reexecute()" in ast.unparse(node))
    for node in body[:entered]:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", PROGRAMS, ids=name)
def test_script_can_be_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(path.parent)
    found = runpy.run_path(str(path), run_name=f"imported_{path.stem}")
    assert callable(found["main"])


def test_missing_simsearch_hints_at_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = runpy.run_path(str(SCRIPTS / "in_venv.py"))
    reexecute = module["reexecute"]
    monkeypatch.setitem(reexecute.__globals__, "VENV", tmp_path / "absent")
    reexecute()  # simsearch is here
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        reexecute()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: simsearch is not installed\nhint: scripts/install\n"
