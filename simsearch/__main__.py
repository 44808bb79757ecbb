"""`python -m simsearch`, and the command `simsearch`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading

from simsearch.cli.main import main


def run() -> None:
    """Runs the command line and ends the process at once.

    Clearing up an interpreter that holds FAISS and ONNX Runtime takes a fifth of a query's time, for nothing: threads
    have been waited for, what is registered for the exit has been done, and the streams are flushed.
    """
    code = 0
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    end_threads, at_exit = getattr(threading, "_shutdown", None), getattr(atexit, "_run_exitfuncs", None)
    if end_threads is None or at_exit is None:  # as Python has them up to now
        sys.exit(code)
    end_threads()
    at_exit()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, unread, or none at all
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
