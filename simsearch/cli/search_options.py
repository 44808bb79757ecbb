"""The options of `query` that are search options, made from their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click

from simsearch.cli import query_args
from simsearch.search.options import LISTS, OPTIONS, PictureOptions, SearchOption

Command = TypeVar("Command", bound=Callable[..., Any])


def search_options(command: Command) -> Command:
    """A decorator: each search option as a keyword argument of its name, as text where click has no type."""
    for option in reversed(OPTIONS):
        command = click.option(*option.command_line, option.name, **_settings(option))(command)
    return command


def _settings(option: SearchOption) -> dict[str, Any]:
    """The arguments of `click.option`, but for the names."""
    if option.kind == "flag":
        return {"is_flag": True, "help": option.help}
    if option.kind in LISTS:
        return {"multiple": True, "metavar": option.metavar, "help": f"{option.help.removesuffix('.')}; repeatable."}
    settings: dict[str, Any] = {"metavar": option.metavar, "help": option.help}
    if option.kind in {"integer", "number"}:
        settings["type"] = (click.IntRange if option.kind == "integer" else click.FloatRange)(option.minimum)
    if option.default is not None:
        settings |= {"default": option.default, "show_default": True}
    return settings


def search_arguments(given: Mapping[str, Any]) -> tuple[int, PictureOptions]:
    """k and the options of `Engine.search_many` from the arguments that `search_options` adds.

    Reads standard input and URLs. Raises UsageError, ImageError.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        value = given[option.name]
        if option.kind == "images":
            value = [(query_args.picture(name), number) for name, number in map(query_args.weight, value)]
        elif option.kind == "box":
            value = query_args.box(value) if value else None
        elif option.kind == "conditions":
            value = list(value)
        values[option.name] = value
    k: int = values.pop("k")
    return k, cast(PictureOptions, values)


def example_images(given: Mapping[str, Any]) -> list[str]:
    """The images that options name, without their weights."""
    names = [text for option in OPTIONS if option.kind == "images" for text in given[option.name]]
    return [query_args.weight(text)[0] for text in names]
