"""Forked processes: threads, sessions and connections do not survive a fork, so their owners make new ones in a child.

Native code cannot be told that its threads are gone. In a child, FAISS and PyTorch therefore compute with one thread in
the thread that forked; threads started later use all cores. A child never closes what belongs to its parent.
"""

from __future__ import annotations

import ctypes
import os
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

_methods: list[weakref.WeakMethod[Callable[[], None]]] = []
_functions: list[Callable[[], None]] = []


def in_child(function: Callable[[], None]) -> None:
    """Calls a function, or a bound method as long as its object lives, in each process forked from now on."""
    if isinstance(function, types.MethodType):
        _methods[:] = [method for method in _methods if method() is not None]
        _methods.append(weakref.WeakMethod(function))
    else:
        _functions.append(function)


def never_close(belonging_to_parent: Any) -> None:
    """Keeps an object of the parent process for ever, since its destructor would wait for threads that are gone."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(belonging_to_parent))


def _after_fork() -> None:
    for library, name in (("faiss", "omp_set_num_threads"), ("torch", "set_num_threads")):
        if (set_threads := getattr(sys.modules.get(library), name, None)) is not None:
            set_threads(1)
    for function in _functions:
        function()
    for reference in _methods:
        if (method := reference()) is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
