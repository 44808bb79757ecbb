"""Patterns of images to leave out, by the rules of .gitignore: `cat/`, `*.gif`, `/raw`, `**/thumbs`, `!keep.png`.

A pattern may also be the path of a file or folder in the source, either absolute or relative to the current folder.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from simsearch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Exclusion:
    """Matches paths of a source against patterns of images to leave out, and records the patterns that have matched.

    root: the folder or the container that the paths are relative to.
    Raises UsageError for a pattern that cannot be used.
    """

    def __init__(self, patterns: Sequence[str], root: str) -> None:
        self.matched: set[str] = set()
        """The patterns that have matched a path."""
        self._spec: Any = None
        self._unmatched: list[tuple[str, Any]] = []
        if not patterns:
            return
        import pathspec

        if not all(pattern.strip() for pattern in patterns):
            raise UsageError(
                "an empty exclude pattern matches nothing", hint="leave the pattern out, or write * for everything"
            )
        lines = [(pattern, line) for pattern in patterns for line in rooted([pattern], root)]
        try:
            self._spec = pathspec.GitIgnoreSpec.from_lines([line for _, line in lines])
        except ValueError as error:
            raise UsageError(f"an exclude pattern cannot be used: {error}") from error
        compiled = self._spec.patterns
        self._unmatched = [(pattern, each) for (pattern, _), each in zip(lines, compiled, strict=True)]

    def __call__(self, path: str, folder: bool = False) -> bool:
        """Returns True if a relative path, or a folder above it, is left out. folder: True if the path is a folder."""
        if self._spec is None:
            return False
        path += "/" * folder
        for pattern, compiled in self._unmatched:
            if compiled.include is not None and compiled.match_file(path) is not None:
                self.matched.add(pattern)
                self._unmatched = [pair for pair in self._unmatched if pair[0] != pattern]
        return bool(self._spec.match_file(path))


def rooted(patterns: Sequence[str], root: str) -> list[str]:
    """Returns patterns as the lines of a .gitignore file in `root`.

    A pattern may also be the path of a file or folder in `root`, absolute or relative to the current folder. For such a
    pattern, the result has a line with the path relative to `root`.
    """
    lines = []
    for pattern in patterns:
        negation, body = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
        found = [] if body.startswith(("./", "../")) else [body.replace("#", "\\#", 1) if body[:1] == "#" else body]
        if body.startswith("./"):
            found.append("/" + os.path.normpath(body) + "/" * body.endswith("/"))
        found += [line for line in _below(body, root) if line not in found]
        lines += [negation + line for line in found or [body]]
    return lines


def _below(pattern: str, root: str) -> list[str]:
    """Returns a list with the pattern relative to `root` if it is the path of something in `root`, else an empty list.

    The path may be absolute, or relative to the current folder. For the path of `root` itself, the list has "/**".
    """
    if "/" not in pattern.rstrip("/"):
        return []
    if "://" in pattern:  # below a remote source
        return ["/" + (pattern[len(root) + 1 :] or "**")] if pattern.startswith(root + "/") else []
    full = pattern
    with contextlib.suppress(OSError):  # the current folder has been deleted
        full = os.path.join(os.getcwd(), os.path.expanduser(pattern))
    full = os.path.normpath(full) + "/" * pattern.endswith("/")
    for start in (root.rstrip("/") + "/", root + "!/"):
        if full.startswith(start) or full == start.rstrip("/"):
            return ["/" + (full[len(start) :] or "**")]
    return []
