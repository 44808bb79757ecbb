"""Makes public functions raise UsageError with a hint, in place of TypeError, for unknown keyword arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from simsearch.common import suggestions
from simsearch.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def check_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function, without `**` or positional-only parameters, to raise UsageError for unknown keywords."""
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
