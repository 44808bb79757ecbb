"""Paths of the repository and of the data outside it, which $SIMSEARCH_TEST_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = Path(os.environ.get("SIMSEARCH_TEST_DATA", ROOT.parent / "shared" / "data"))
