"""Reads JSON that may come from a stranger, with limits of size and depth, and without extensions such as NaN."""

from __future__ import annotations

import json
import math
from typing import Any

DEPTH = 64
"""Largest nesting depth of arrays and objects."""

TOO_DEEP = f"its arrays and objects are nested more than {DEPTH} levels deep"
"""The error message for JSON that is nested too deeply."""

DIGITS = 4000
"""The largest number of digits of an integer; Python itself refuses 4,301 digits or more."""

LIMIT = 64 << 20
"""Default size limit: in bytes for `bytes`, in characters for `str`."""


def parse(text: str | bytes, limit: int = LIMIT) -> Any:
    """Returns the value of a JSON text.

    limit: the largest length of the text: in bytes for `bytes`, in characters for `str`.
    Raises ValueError for invalid JSON, and for NaN, infinity, repeated keys, too long texts and too deep nesting.
    """
    return _parse(text, limit, _STRICT)


def parse_lenient(text: str | bytes, limit: int = LIMIT) -> Any:
    """Returns the value of a JSON text like `parse`, but reads NaN and infinite numbers as None.

    If a key is repeated in an object, the last value counts.
    """
    return _parse(text, limit, _LENIENT)


def integer(text: str) -> int:
    """Converts the text of an integer in JSON to an int. Raises ValueError if it has more than `DIGITS` digits."""
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text):,} digits is too large")
    return int(text)


def check_depth(value: Any, depth: int = DEPTH) -> None:
    """Raises ValueError if lists and dicts are nested more than `depth` levels deep."""
    level, below = 0, [value]
    while below:
        parts = [part for part in below if isinstance(part, dict | list)]
        level += bool(parts)
        if level > depth:
            raise ValueError(f"its arrays and objects are nested more than {depth} levels deep")
        below = [part for each in parts for part in (each.values() if isinstance(each, dict) else each)]


def _parse(text: str | bytes, limit: int, decoder: json.JSONDecoder) -> Any:
    if len(text) > limit:
        raise ValueError(f"it is longer than {limit:,} bytes")
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if text.count("[") + text.count("{") > DEPTH:
        check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return values


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a valid number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large")
    return number


def _finite_or_none(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=integer)
_LENIENT = json.JSONDecoder(parse_constant=lambda name: None, parse_float=_finite_or_none, parse_int=integer)
