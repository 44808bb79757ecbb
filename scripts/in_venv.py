"""Runs a script in the repository's .venv, whichever Python it was called with; needs the standard library only."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parent.parent / ".venv"


def reexecute() -> None:
    """Replaces this process by the same call in .venv, unless it runs there already.

    Without .venv it stays in an environment that has simsearch; anywhere else it exits with status 2 and says how to
    install it.
    """
    python = VENV / "bin" / "python"
    if Path(sys.prefix).resolve() == VENV.resolve() or sys.executable == str(python):
        return
    if python.exists():
        os.execv(python, [str(python), *sys.argv])
    if importlib.util.find_spec("simsearch") is None:
        print("error: simsearch is not installed\nhint: scripts/install", file=sys.stderr)
        sys.exit(2)
