"""`--watch` of `build` and `serve`."""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
import sys
import time

import pytest

from simsearch.engine import Engine
from tests.helpers.live import process


def wait_for_items(index, count):
    for _ in range(600):
        with Engine(index) as engine:
            if len(engine) == count:
                return
        time.sleep(0.05)
    raise AssertionError(f"{index} has not {count} items")


def test_build_follows_until_interrupted(index, pictures):
    command = [sys.executable, "-m", "simsearch", "build", str(pictures), "-i", str(index), "--watch"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also if the tests run in the background
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heard
    ) as build:
        try:
            shutil.copy(pictures / "red" / "1.png", pictures / "red" / "new.png")
            wait_for_items(index, 13)
            (pictures / "red" / "new.png").unlink()
            wait_for_items(index, 12)
            build.send_signal(signal.SIGINT)
            out, _ = build.communicate(timeout=30)
        finally:
            build.kill()
    assert build.returncode == 130 and "following 1 source" in out and "1 removed" in out


def test_serve_follows(index, pictures):
    with process("-i", index, "--watch") as (server, _, _):
        shutil.copy(pictures / "red" / "1.png", pictures / "red" / "new.png")
        wait_for_items(index, 13)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


@pytest.mark.parametrize("other", [("--dry-run",), ("--on", "ray"), ("--push", "milvus://localhost:1/c")])
def test_watch_excludes(run, pictures, other):
    refused = run("build", pictures, "--watch", *other)
    assert refused.code == 2 and f"--watch and {other[0]} exclude each other" in refused.err


def test_missing_extra(run, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    refused = run("build", pictures, "--watch")
    assert refused.code == 2 and "[watch]" in refused.err
