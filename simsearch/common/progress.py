"""Progress of long work, as a callback."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total); total may grow while the work goes on."""


def no_progress(done: int, total: int) -> None:
    """Report nothing."""
