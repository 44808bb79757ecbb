"""The types of options and arguments. Each converts a text, and raises UsageError if it cannot."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from simsearch.cli import completion
from simsearch.cli.query_args import item_id
from simsearch.common.item_ids import ID_PREFIX
from simsearch.errors import UsageError
from simsearch.images import boxes
from simsearch.images.sources.remote.addresses import is_remote, normalized

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _option(param: click.Parameter | None) -> str:
    """Returns the option's name and a space, to begin an error message with; "" for None."""
    return f"{param.opts[-1]} " if param is not None else ""


class QueryImage(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A query image as text: a path, id:N, an http(s) URL, or - for standard input.

    The image is read later, by `query_args.read_image`.
    """

    name = "image"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.startswith(ID_PREFIX):
            item_id(value)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return completion.pictures(ctx, param, incomplete)


class Weighted(click.ParamType):  # type: ignore[type-arg]
    """Converts IMAGE=W to an image and its weight, or a text without a weight to an image and the weight 1.

    A text that is an existing path or a URL is an image without a weight, even if it contains an equals sign.
    """

    name = "image=w"

    def convert(
        self, value: str | tuple[str, float], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        image, equals, number = value.rpartition("=")
        weight = 1.0
        if not equals or os.path.exists(value) or is_remote(value):
            image = value
        else:
            try:
                weight = float(number)
            except ValueError:
                if os.path.exists(image):
                    raise UsageError(f"{_option(param)}{value!r}: the weight {number!r} is not a number") from None
                image = value
        return QueryImage().convert(image, param, ctx), weight

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return QueryImage().shell_complete(ctx, param, incomplete)


class FilterCondition(click.ParamType):  # type: ignore[type-arg]
    """A filter condition such as FIELD=VALUE, as text. It is parsed when the index is searched."""

    name = "cond"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return completion.conditions(ctx, param, incomplete)


class Crop(click.ParamType):  # type: ignore[type-arg]
    """Converts X,Y,W,H to a box, in pixels or percent of the upright image; see `boxes`."""

    name = "x,y,w,h"

    def convert(self, value: str | boxes.Box, param: click.Parameter | None, ctx: click.Context | None) -> boxes.Box:
        if isinstance(value, tuple):
            return value
        try:
            return boxes.read_box(value)
        except ValueError:
            message = f"{_option(param)}{value!r} is not X,Y,W,H"
            raise UsageError(message, hint="pixels, as in 40,30,120,120, or percent, as in 0,50%,50%,50%") from None


class ByteSize(click.ParamType):  # type: ignore[type-arg]
    """Converts a size such as 500M or 2G to a number of bytes. The unit is optional, and a power of 1024."""

    name = "bytes"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if not match:
            message = f"{_option(param)}{value!r} is not a number of bytes"
            raise UsageError(message, hint="500M, 2G, or a plain number")
        return int(float(match[1]) * _UNITS[match[2].upper()])


class NameLabel(click.ParamType):  # type: ignore[type-arg]
    """Converts NAME=LABEL to a name of items (path, id:N or glob) and their label.

    The text is split at the last equals sign, since a name may contain equals signs.
    """

    name = "name=label"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, label = value.rpartition("=")
        if not equals or not name or not label:
            raise UsageError(f"{_option(param)}{value!r} is not NAME=LABEL", hint="NAME is a path, id:N or glob")
        return name, label


class KeyValue(click.ParamType):  # type: ignore[type-arg]
    """Converts KEY=N to a key and an integer, or to a key and a text if N has other characters than digits."""

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


class Root(click.ParamType):  # type: ignore[type-arg]
    """Converts OLD=NEW to two texts: the root that the index records for a source, and the source's present root.

    The second text is an absolute path or a remote address. NEW alone is for an index with a single source; the first
    text is then "".
    """

    name = "root"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        old, _, new = value.rpartition("=")
        return old, normalized(new) if is_remote(new) else str(Path(new).absolute())
