"""Progress callbacks of long operations."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total); total may grow during the operation."""


def no_progress(done: int, total: int) -> None:
    """Ignores progress."""
