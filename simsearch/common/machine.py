"""What this process may use of the machine: cores, and memory that threads share."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def available_cores() -> int:
    """The cores at hand: those that the process may run on, and no more than its control group's quota pays for."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        allowed = os.cpu_count() or 1
    granted = cgroup_cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return max(1, math.ceil(min(allowed, granted)))


def cgroup_cpu_quota(membership: Path, root: Path) -> float:
    """Cores' worth of time that control groups grant (cpu.max of version 2, cfs_quota_us of version 1), else infinity.

    membership: the file that names the process's groups, a line `number:controllers:path` each. Limits of the groups
    above apply too.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    granted = math.inf
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        group = top / name.strip("/")
        for folder in (group, *group.parents):
            granted = min(granted, _granted(folder))
            if folder == top:
                break
    return granted


def _granted(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        limit, period = (folder / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError):
        time, whole = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return time / whole if time > 0 else math.inf
    return math.inf


def release_free_memory() -> None:
    """Gives freed memory back to the system, where the C library is glibc: else it keeps hundreds of megabytes."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class MemoryBudget:
    """Bytes that threads share: each waits, in the order of asking, until what it is about to need is free.

    What is larger than the whole is granted when nothing else is held, so that it is dealt with alone.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._held = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Takes `size` bytes of the budget for as long as the context lasts."""
        size, ticket = min(size, self.total), object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._held + size <= self.total)
            self._queue.popleft()
            self._held += size
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()
