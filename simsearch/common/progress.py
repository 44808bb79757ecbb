"""Progress callbacks of long operations."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""A function that is called with (done, total): the number of finished steps and of all steps. `total` can increase."""


def no_progress(done: int, total: int) -> None:
    """A progress callback that does nothing."""
