"""Support for forked processes: functions to call in a child process, and blocks of code that delay a fork.

Threads, sessions and connections do not survive a fork. An object that has threads or connections registers a function
here that makes new ones in the child. FAISS and PyTorch cannot be told that their threads are gone, so a child
tells them to use a single core. This setting applies only to the thread that forked. In threads that the child starts
later, FAISS and PyTorch use all cores. A child never closes objects that belong to its parent.

A lock that another thread holds during a fork stays locked in the child for ever, and SQLite has such locks. A fork
therefore waits until no other thread is in a `with postponed():` block, but at most `PATIENCE` seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 1.0
"""Largest number of seconds that a fork waits for other threads, and that other threads wait for a pending fork."""

_turn = threading.Condition()
_at_work: Counter[int] = Counter()
"""For each thread's identifier: how many nested `with postponed():` blocks the thread is in."""
_forks = 0
"""The number of threads that are about to fork."""

_methods: list[weakref.WeakMethod[Callable[[], None]]] = []
_functions: list[Callable[[], None]] = []


def in_child(function: Callable[[], None]) -> None:
    """Registers a function to be called in each process forked from now on.

    A bound method is called only as long as its object exists; registering it does not keep the object alive.
    """
    if isinstance(function, types.MethodType):
        _methods[:] = [method for method in _methods if method() is not None]
        _methods.append(weakref.WeakMethod(function))
    else:
        _functions.append(function)


def never_close(belonging_to_parent: Any) -> None:
    """Keeps an object of the parent process alive for ever; to be called in a child process.

    In a child, the object's destructor would wait for threads that exist only in the parent.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(belonging_to_parent))


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Delays forks by other threads until the end of the block, but at most `PATIENCE` seconds."""
    me = threading.get_ident()
    with _turn:
        if me not in _at_work:
            _turn.wait_for(lambda: not _forks, PATIENCE)
        _at_work[me] += 1
    try:
        yield
    finally:
        with _turn:
            _at_work[me] -= 1
            if not _at_work[me]:
                del _at_work[me]
            _turn.notify_all()


def _before_fork() -> None:
    global _forks
    me = threading.get_ident()
    _turn.acquire()
    _forks += 1
    _turn.wait_for(lambda: not _at_work.keys() - {me}, PATIENCE)


def _after_fork_in_parent() -> None:
    global _forks
    _forks -= 1
    _turn.notify_all()
    _turn.release()


def _after_fork() -> None:
    global _turn, _forks
    me = threading.get_ident()
    own = _at_work[me]
    _turn, _forks = threading.Condition(), 0
    _at_work.clear()
    if own:
        _at_work[me] = own
    for library, name in (("faiss", "omp_set_num_threads"), ("torch", "set_num_threads")):
        if (set_threads := getattr(sys.modules.get(library), name, None)) is not None:
            set_threads(1)
    for function in _functions:
        function()
    for reference in _methods:
        if (method := reference()) is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)
