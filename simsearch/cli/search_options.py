"""Makes the search options of the command `query` from `search.options.OPTIONS`, the table of all search options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click

from simsearch.cli.params import Crop, FilterCondition, Weighted
from simsearch.cli.query_args import read_image
from simsearch.search.options import LISTS, OPTIONS, PictureOptions, SearchOption

Command = TypeVar("Command", bound=Callable[..., Any])


def search_options(command: Command) -> Command:
    """Adds all search options to a command, which gets their values as keyword arguments with the options' names."""
    for option in reversed(OPTIONS):
        command = click.option(*option.command_line, option.name, **_settings(option))(command)
    return command


def _settings(option: SearchOption) -> dict[str, Any]:
    """Returns the keyword arguments with which `click.option` makes a search option."""
    if option.kind == "flag":
        return {"is_flag": True, "help": option.help}
    settings: dict[str, Any] = {"metavar": option.metavar, "help": option.help, "type": _type(option)}
    if option.kind in LISTS:
        settings |= {"multiple": True, "help": f"{option.help.removesuffix('.')}; repeatable."}
    if option.default is not None:
        settings |= {"default": option.default, "show_default": True}
    return settings


def _type(option: SearchOption) -> click.ParamType:  # type: ignore[type-arg]
    """Returns the type that click uses for the values of a search option."""
    match option.kind:
        case "integer":
            return click.IntRange(option.minimum)
        case "number":
            return click.FloatRange(option.minimum, option.maximum)
        case "box":
            return Crop()
        case "images":
            return Weighted()
        case "conditions":
            return FilterCondition()
        case _:
            return click.STRING


def search_arguments(given: Mapping[str, Any]) -> tuple[int, PictureOptions]:
    """Returns the number of matches k, and the options for `Engine.search_many`. Raises UsageError, ImageError.

    given: the arguments of a command that has the `search_options`. Standard input and URLs named by --plus and --minus
    are read here.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        value = given[option.name]
        if option.kind == "images":
            value = [(read_image(image), weight) for image, weight in value]
        elif option.kind == "conditions":
            value = list(value)
        values[option.name] = value
    k: int = values.pop("k")
    return k, cast(PictureOptions, values)


def example_images(given: Mapping[str, Any]) -> list[str]:
    """Returns the texts of the images given by --plus and --minus, without their weights."""
    return [image for option in OPTIONS if option.kind == "images" for image, _ in given[option.name]]
