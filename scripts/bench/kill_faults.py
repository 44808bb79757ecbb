"""The faults of kill.py: kills, torn writes and failing calls, by a preloaded library or in Python."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHIM = "SIMSEARCH_KILL_SHIM"
KILL_BEFORE, KILL_AFTER, TORN, FAIL_ONCE, FAIL_ON, SHORT = 1, 2, 3, 4, 5, 6  # as in kill_shim.c
FAULTS = {
    "killed before a call": (KILL_BEFORE, 0),
    "killed after a call": (KILL_AFTER, 0),
    "torn write": (TORN, 0),
    "one call fails": (FAIL_ONCE, errno.EIO),
    "disk full": (FAIL_ON, errno.ENOSPC),
    "short write": (SHORT, 0),
    "killed at a time": (0, 0),
}
STALL = 60
"""Seconds after which a work that still runs is a fault."""


class PythonFaults:
    """Strikes calls of Python's `os` instead of the C library's, where there is no compiler."""

    NAMES = ("fsync", "replace", "rename", "link", "unlink", "mkdir", "open")

    def __init__(self) -> None:
        self.calls, self.at, self.how, self.error = 0, 0, 0, 0
        for name in self.NAMES:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if not self.at or (name == "open" and not arguments[1] & os.O_CREAT):
                return real(*arguments, **more)
            self.calls += 1
            strikes = self.calls == self.at or (self.how == FAIL_ON and self.calls > self.at and name != "unlink")
            if strikes and self.how == KILL_BEFORE:
                os.kill(os.getpid(), signal.SIGKILL)
            if strikes and self.how in {FAIL_ONCE, FAIL_ON}:
                raise OSError(self.error, os.strerror(self.error))
            result = real(*arguments, **more)
            if strikes and self.how in {KILL_AFTER, TORN}:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


class Faults:
    """Arms this process, a child, with a fault."""

    def __init__(self) -> None:
        self.library: Any = None
        if os.environ.get(SHIM):
            self.library = ctypes.CDLL(os.environ[SHIM])
            self.library.storm_arm.argtypes = [
                ctypes.c_char_p,
                ctypes.c_long,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_double,
            ]
            self.library.storm_calls.restype = ctypes.c_long
        self.python: PythonFaults | None = None

    def arm(self, index: Path, at: int, how: int, error: int, share: float) -> None:
        if self.library is not None:
            self.library.storm_arm(os.fsencode(index), at, how, error, share)
            return
        self.python = self.python or PythonFaults()
        self.python.calls, self.python.at, self.python.how, self.python.error = 0, at or 1 << 60, how, error

    def calls(self) -> int:
        return int(self.library.storm_calls()) if self.library is not None else self.python.calls  # type: ignore[union-attr]


def with_shim() -> None:
    """Compiles the library, and runs this program again with it; goes on without where there is no compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if os.environ.get(SHIM) is not None or not sys.platform.startswith("linux") or compiler is None:
        return
    with tempfile.TemporaryDirectory(prefix="simsearch-kill-") as folder:
        shim = Path(folder) / "shim.so"
        source = Path(__file__).with_name("kill_shim.c")
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", str(shim), str(source), "-ldl"], capture_output=True, text=True
        )
        environment = {**os.environ, SHIM: "" if done.returncode else str(shim)}
        if done.returncode:
            print(f"the library cannot be compiled: {done.stderr.strip()}", file=sys.stderr)
        else:
            environment["LD_PRELOAD"] = f"{shim} {os.environ.get('LD_PRELOAD', '')}".strip()
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)


@dataclass(frozen=True)
class Outcome:
    """How a child ended. result: what it reported; None if it was killed. lines: what it acknowledged."""

    result: Any
    killed: bool
    lines: list[str]


def in_child(act: Callable[[Callable[[Any], None]], Any], seconds: float = STALL, kill_after: float = 0.0) -> Outcome:
    """Calls a function in a forked process; it is given a function that sends a value at once."""
    end, start = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        logging.disable()

        def send(value: Any) -> None:
            os.write(start, (json.dumps(value) + "\n").encode())

        try:
            signal.alarm(int(seconds))
            send({"result": act(send)})
        except BaseException:
            send({"result": {"raw": traceback.format_exc()[-1500:]}})
        os._exit(0)
    os.close(start)
    if kill_after:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with open(end, "rb") as file:
        sent = [json.loads(line) for line in file.read().splitlines() if line.endswith((b"}", b'"'))]
    status = os.waitpid(child, 0)[1]
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    result = next((each["result"] for each in sent if isinstance(each, dict)), None)
    if number and number != signal.SIGKILL:
        result = {"raw": f"ended by {signal.Signals(number).name}"}
    return Outcome(result, number == signal.SIGKILL, [each for each in sent if isinstance(each, str)])
