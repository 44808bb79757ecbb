"""A decorator that makes functions raise UsageError with a hint, not TypeError, for an unknown keyword argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from simsearch.common import suggestions
from simsearch.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def check_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Returns the function, wrapped so that it raises UsageError for an unknown keyword argument.

    function: a function without `**` and without positional-only parameters.
    """
    code = function.__code__  # `inspect.signature` would take longer than importing this module
    names = [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                hint = suggestions.hint(name, names) if names else None
                raise UsageError(f"{function.__name__} has no option {name!r}", hint=hint)
        return function(*args, **kwargs)

    return checked
