"""`kill -9` during a clean-up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.scripts import SCRIPTS


@pytest.mark.slow
def test_killed_clean_ups_are_restored() -> None:
    script = [sys.executable, str(SCRIPTS / "bench" / "kill_cleanup.py"), "--times", "50"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 clean-ups: 0 not as claimed" in done.stdout and "killed" in done.stdout
