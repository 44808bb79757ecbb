#!/usr/bin/env python3
"""Writes each command's --help into the README, between its markers; the tests compare the two."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from in_venv import reexecute

    reexecute()

from simsearch.cli.main import help_texts

README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    text = README.read_text()
    blocks = "\n\n".join(f"```text\n{help}```" for help in help_texts().values())
    start, end = "<!-- help -->", "<!-- /help -->"
    README.write_text(re.sub(f"{start}.*{end}", lambda _: f"{start}\n\n{blocks}\n\n{end}", text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
