#!/usr/bin/env python3
"""Replaces the output that README and docs/ show by what their commands print now, for example after new weights.

    scripts/refresh_docs.py [PAGE.md ...] [--write]

Runs the pages as `tests/test_docs.py` does, a few minutes for all. A line that is shown is replaced by the line of
output at its place, after the first one that is the same but for numbers and paths. Lines for which there is none are
listed, for somebody to look at. Without --write, the changes are only printed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from in_venv import reexecute

    reexecute()

import pytest

ROOT = Path(__file__).resolve().parent.parent
_PROGRESS = re.compile(r"[\w -]+: [\d,]+ of [\d,]+, [\d,.]+/s")
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+(/(?=\s|$))?", re.M)
"""Of the service, whose port differs from run to run."""

_HOME = "/home/ada"
"""In place of the folder that the pages are run in."""


class Recorder:
    """A pytest plugin that keeps what each command with shown output prints: (command, output lines) by page."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[tuple[str, list[str]]]] = {}
        self.page = ""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        docs = item.module  # type: ignore[attr-defined]
        self.page = item.callspec.params["name"]  # type: ignore[attr-defined]
        found = self.outputs.setdefault(self.page, [])
        call = getattr(docs.Session, "original", docs.Session.call)
        docs.Session.original = call

        def recorded(session: object, command: str) -> tuple[int, str]:
            code, out = call(session, command)
            lines = _ADDRESS.sub(docs._SERVICE, out).replace(os.getcwd(), _HOME).splitlines()
            found.append((command, [line for line in lines if line and not _PROGRESS.fullmatch(line)]))
            return code, out

        docs.Session.call = recorded


def refreshed(text: str, outputs: list[tuple[str, list[str]]], docs: object) -> tuple[str, list[str]]:
    """Returns a page with the outputs of its commands, in order, and the lines for which there is no output."""
    lost: list[str] = []
    left = list(outputs)

    def command_lines(block: str) -> str:
        kept: list[str] = []
        for part in re.split(r"^(?=\$ )", block, flags=re.M):
            command, _, shown = part.partition("\n") if "\\\n" not in part else split_long(part)
            lines = [line for line in shown.splitlines() if line]
            printed = take(left, command) if part.startswith("$ ") and lines else None
            new = lines if printed is None else matched(lines, printed, docs, lost)
            for old, line in zip(lines, new, strict=True):
                shown = replace_line(shown, old, line)
            kept.append(command + ("\n" + shown if part else ""))
        return "".join(kept)

    def block(found: re.Match[str]) -> str:
        if found["kind"] != "console" or found["reason"]:
            return found[0]
        return found[0].replace(found["text"], command_lines(found["text"]))

    return docs._BLOCK.sub(block, text), lost  # type: ignore[attr-defined]


def split_long(part: str) -> tuple[str, str, str]:
    """Splits a command that is continued over several lines from its output."""
    lines = part.split("\n")
    end = next(n for n, line in enumerate(lines) if not line.endswith("\\"))
    return "\n".join(lines[: end + 1]), "\n", "\n".join(lines[end + 1 :])


def take(left: list[tuple[str, list[str]]], command: str) -> list[str] | None:
    """Removes the outputs up to that of a command, and returns it; None if the command was not run."""
    wanted = words(command[2:])
    place = next((n for n, (each, _) in enumerate(left) if words(each) == wanted), None)
    if place is None:
        return None
    lines = left[place][1]
    del left[: place + 1]
    return lines


def words(command: str) -> list[str]:
    """Splits a command at spaces, without the address of the service."""
    return _ADDRESS.sub("", command.replace("\\\n", " ")).split()


def matched(shown: list[str], printed: list[str], docs: object, lost: list[str]) -> list[str]:
    """Returns the printed line for each line shown, or the line itself; adds those without one to `lost`.

    Those up to a line `...` are together in the output, from the one on that is the same but for numbers and paths.
    """
    mask = docs.masked  # type: ignore[attr-defined]
    together = shown[: shown.index("...")] if "..." in shown else shown
    start = next((n for n, each in enumerate(printed) if together and mask(each) == mask(together[0])), None)
    if start is not None and start + len(together) <= len(printed):
        found, rest = printed[start : start + len(together)], printed[start + len(together) :]
    else:
        found, rest = [], list(printed)
    for line in shown[len(found) :]:
        near = [each for each in rest if mask(each) == mask(line)]
        found.append(near[0] if near else line)
        if near:
            rest.remove(near[0])
        elif line != "...":
            lost.append(line)
    return found


def replace_line(text: str, old: str, new: str) -> str:
    lines = text.split("\n")
    if old != new and old in lines:
        lines[lines.index(old)] = new
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="names as in the tests: README.md, docs/searching.md  [all]")
    parser.add_argument("--write", action="store_true", help="change the files")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    recorder = Recorder()
    test = f"{ROOT}/tests/test_docs.py::test_commands_run"
    tests = [f"{test}[{page}]" for page in options.pages] or [test]
    failed = pytest.main([*tests, "-q", "--rootdir", str(ROOT)], [recorder])
    from tests import test_docs

    for name, outputs in recorder.outputs.items():
        page = ROOT / name
        before = page.read_text()
        after, lost = refreshed(before, outputs, test_docs)
        for old, new in zip(before.splitlines(), after.splitlines(), strict=True):
            if old != new:
                print(f"{name}\n- {old}\n+ {new}")
        for line in lost:
            print(f"{name}: no such line any more: {line}")
        if options.write and after != before:
            page.write_text(after)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
