#!/usr/bin/env python3
"""Writes docs/cli.md, each command's --help under a heading; the tests compare the two."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from in_venv import reexecute

    reexecute()

from simsearch.cli.main import help_texts

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# Command line

Every command's `--help`, written by `scripts/reference.py`. Results go to standard output, progress and notes to
standard error. [Searching](searching.md) explains filters, crops and output formats;
[troubleshooting](troubleshooting.md#exit-codes) lists the exit codes."""


def main() -> None:
    sections = [f"## simsearch {name}\n\n```text\n{help}```" for name, help in help_texts().items()]
    PAGE.write_text("\n\n".join([HEAD, *sections]) + "\n")


if __name__ == "__main__":
    main()
