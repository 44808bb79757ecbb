"""scripts/install and scripts/quickstart install what they need, and nothing twice."""

import shutil
import subprocess

import pytest

from tests.helpers.data import ROOT
from tests.helpers.scripts import SCRIPTS

PYTHON = """#!/bin/sh
echo "$*" >> "$(dirname "$0")/../calls"
"""


@pytest.fixture
def install(tmp_path):
    """Runs a script in a checkout whose .venv only writes down what it is asked; returns that."""
    (tmp_path / "scripts").mkdir()
    for name in ("install", "quickstart"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)

    def call(script, *arguments):
        (tmp_path / ".venv" / "calls").write_text("")
        subprocess.run([tmp_path / "scripts" / script, *arguments], check=True, capture_output=True)
        return (tmp_path / ".venv" / "calls").read_text().splitlines()

    return call


def test_install_has_everything_once(install):
    calls = install("install")
    assert any(call.endswith("--editable .[dev]") for call in calls)
    assert any("milvus-lite" in call for call in calls)
    assert install("install") == []
    assert install("install", "serve") == []


def test_quickstart_leaves_out_what_developers_need(install, tmp_path):
    calls = install("quickstart", "photos")
    assert any(call.endswith("--editable .[serve]") for call in calls)
    assert not [call for call in calls if "dev" in call.split()[-1] or "milvus" in call]
    assert calls[-1].endswith("scripts/quickstart.py photos")
    assert len(install("quickstart", "photos")) == 1
    assert any(call.endswith("--editable .[dev]") for call in install("install"))
    (tmp_path / "pyproject.toml").write_text("# changed")
    assert len(install("quickstart")) > 1
