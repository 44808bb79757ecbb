"""The machine's CPU cores and memory: how many cores are available, and a memory budget that threads share."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def available_cores() -> int:
    """Returns the number of cores available to this process, by its CPU affinity and its cgroup's CPU quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        allowed = os.cpu_count() or 1
    granted = cgroup_cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return max(1, math.ceil(min(allowed, granted)))


def cgroup_cpu_quota(membership: Path, root: Path) -> float:
    """Returns the CPU quota of the process's cgroups (v1 or v2), as a number of cores; infinity if there is none.

    The limits of parent cgroups apply too.
    membership: file that lists the process's cgroups, with a line `number:controllers:path` for each.
    root: folder in which the cgroup file systems are mounted.
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
    """Gives freed memory back to the system, since glibc can keep hundreds of megabytes. No effect without glibc."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory(size: int) -> None:
    """Makes glibc give blocks of at least `size` bytes back to the system when freed. No effect without glibc."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(-3, size)  # M_MMAP_THRESHOLD


def let_openmp_sleep() -> None:
    """Lets OpenMP's threads sleep when they have nothing to do, unless $OMP_WAIT_POLICY is set.

    By default, each of these threads keeps a core busy for milliseconds after each call of FAISS, so the other threads
    of a service cannot use that core. The function must be called before FAISS is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def own_memory() -> int:
    """Returns the memory in bytes that this process uses, not counting mapped files.

    On systems without /proc, returns the most memory that the process has used so far, including mapped files.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10  # bytes on macOS, KiB on other systems


class MemoryBudget:
    """A number of bytes that threads share. Requests are granted in order, as soon as enough bytes are free.

    A request for more than the total is granted once no other thread holds bytes.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._held = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Waits until `size` bytes are free, then reserves them until the end of the block."""
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
