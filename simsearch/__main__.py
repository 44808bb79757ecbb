"""Runs the command line, for `python -m simsearch` and for the command `simsearch`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading

from simsearch.cli.main import main


def run() -> None:
    """Runs the command line and ends the process without the interpreter's cleanup.

    With FAISS and ONNX Runtime loaded, the interpreter's cleanup takes a fifth of a query's time, and has no use here.
    This function does the necessary part itself: it joins threads, calls exit handlers and flushes streams.
    """
    code = 0
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    end_threads, at_exit = getattr(threading, "_shutdown", None), getattr(atexit, "_run_exitfuncs", None)
    if end_threads is None or at_exit is None:  # private functions that a later Python may lack
        sys.exit(code)
    end_threads()
    at_exit()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(
            OSError, ValueError, AttributeError
        ):  # the stream is closed, has no reader, or is None
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
