#!/usr/bin/env python3
"""Writes docs/cli.md, each command's --help under a heading, and docs/modules.md, a line for each file of the package.

The tests compare both with the code.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from in_venv import reexecute

    reexecute()

from simsearch.cli.main import help_texts

ROOT = Path(__file__).resolve().parent.parent
COMMANDS_HEAD = """# Command line

Every command's `--help`, written by `scripts/reference.py`. Results go to standard output, progress and notes to
standard error. [Searching](searching.md) explains filters, crops and output formats;
[troubleshooting](troubleshooting.md#exit-codes) lists the exit codes."""
MODULES_HEAD = """# Modules

Every file of the package with the first sentence of its docstring, from the top of the package to the bottom, written
by `scripts/reference.py`. [Architecture](architecture.md) tells how they work together."""
PACKAGES = (
    *("cli", "", "training", "cluster", "server", "evaluation", "indexing"),
    *("curation", "reports", "search", "storage", "models", "images", "common"),
)
"""The folders of the package from top to bottom; "" is the package itself."""


def commands() -> str:
    """Returns docs/cli.md."""
    sections = [f"## simsearch {name}\n\n```text\n{help}```" for name, help in help_texts().items()]
    return "\n\n".join([COMMANDS_HEAD, *sections]) + "\n"


def modules() -> str:
    """Returns docs/modules.md."""
    sections = []
    for name in PACKAGES:
        folder = ROOT / "simsearch" / name
        files = sorted(folder.glob("*.py" if not name else "**/*.py"), key=lambda path: (len(path.parts), path))
        rows = [f"| `{path.relative_to(folder)}` | {summary(path)} |" for path in files if path.name != "__init__.py"]
        head = f"## `simsearch/{name}`" if name else "## `simsearch`"
        text = summary(folder / "__init__.py")
        sections.append("\n".join([head, "", text, "", "| file | |", "|---|---|", *rows]))
    return "\n\n".join([MODULES_HEAD, *sections]) + "\n"


def summary(path: Path) -> str:
    """Returns the first paragraph of a module's docstring, in one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def main() -> None:
    (ROOT / "docs" / "cli.md").write_text(commands())
    (ROOT / "docs" / "modules.md").write_text(modules())


if __name__ == "__main__":
    main()
