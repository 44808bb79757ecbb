"""The environment that only searches, and the files that run the service elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest

from tests.helpers import live
from tests.helpers.data import ROOT
from tests.helpers.scripts import SCRIPTS

DEPLOY = SCRIPTS / "deploy"


def packages(lines: list[str]) -> dict[str, str]:
    """Requirements without their markers, by package."""
    found = [re.fullmatch(r"([\w-]+)(>=[\d.]+)?(;.*)?", line.strip()) for line in lines]
    return {match[1]: match[2] for match in found if match}


def test_serving_is_the_core_without_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    due = packages(project["dependencies"]) | packages(project["optional-dependencies"]["serve"])
    for name in ("torch", "torchvision", "faiss-gpu"):
        del due[name]
    lines = (DEPLOY / "serving.txt").read_text().splitlines()
    assert packages([line for line in lines if line and not line.startswith("#")]) == due


def test_compose_and_unit_name_real_files() -> None:
    compose = (DEPLOY / "compose.yaml").read_text()
    assert "dockerfile: scripts/deploy/Dockerfile" in compose
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_unit_is_valid(tmp_path: Path) -> None:
    text = (DEPLOY / "simsearch.service").read_text().replace("/opt/simsearch/bin/simsearch", sys.executable)
    unit = tmp_path / "simsearch.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert "simsearch.service" not in done.stderr, done.stderr


@pytest.mark.slow
def test_serves_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the environment, builds an index in it and serves it."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*install, "-r", DEPLOY / "serving.txt"], capture_output=True, timeout=600).returncode:
        pytest.skip("packages cannot be fetched")
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "simsearch", copy / "simsearch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([*install, "--no-deps", copy], check=True, timeout=300)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        command = [str(python), "-m", "simsearch", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    assert subprocess.run([str(python), "-c", "import torch"], capture_output=True, timeout=60).returncode == 1
    call("sample", "pictures", "-n", "12")
    call("build", "pictures", "-i", "index")
    (answer,) = json.loads(call("query", "id:1", "-i", "index", "--format", "json"))
    assert len(answer["matches"]) == 6
    monkeypatch.setattr(sys, "executable", str(python))
    with live.process("-i", "index", env=dict(os.environ)) as (_, url, log):
        assert url, log
        request = urllib.request.Request(
            f"{url}v1/search", b'{"id": 1}', {"content-type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            served = json.load(response)
    assert [match["id"] for match in served["matches"]] == [match["id"] for match in answer["matches"]]
