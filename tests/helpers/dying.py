"""Death by SIGKILL at a chosen line."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, ModuleType
from typing import Any


def trace(fatal: int, *modules: ModuleType) -> list[int]:
    """Counts the executed lines of the given modules, and dies at the given one; -1 for none."""
    count, watched = [0], {module.__file__ for module in modules}

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            count[0] += 1
            if count[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    sys.settrace(lambda frame, event, argument: local if frame.f_code.co_filename in watched else None)
    return count
