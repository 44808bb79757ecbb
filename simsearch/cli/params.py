"""Parameter types of options. Each raises UsageError for a text that it cannot convert."""

from __future__ import annotations

import re
from pathlib import Path

import click

from simsearch.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _option(param: click.Parameter | None) -> str:
    """The option's name, as it begins an error message."""
    return f"{param.opts[-1]} " if param is not None else ""


class ByteSize(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A number of bytes with an optional unit (a power of 1024): 500M, 2G."""

    name = "bytes"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if not match:
            message = f"{_option(param)}{value!r} is no number of bytes"
            raise UsageError(message, hint="500M, 2G, or a plain number")
        return int(float(match[1]) * _UNITS[match[2].upper()])


class KeyValue(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """KEY=N as a key and an integer, or a key and a text where N is not one."""

    name = "key=n"

    def convert(
        self, value: str | tuple[str, int | str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | str]:
        if isinstance(value, tuple):
            return value
        key, equals, number = value.partition("=")
        if not key or not equals or not number:
            raise UsageError(f"{_option(param)}{value!r} is not KEY=N")
        return key, int(number) if number.isdecimal() else number


class Root(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """OLD=NEW as (recorded root, absolute path of where it is now); a bare NEW, for all other roots, as ("", path)."""

    name = "root"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        old, _, new = value.rpartition("=")
        return old, str(Path(new).absolute())
