"""Creates the search options of `query` from the table of all search options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click

from simsearch.cli.params import Crop, FilterCondition, Weighted
from simsearch.cli.query_args import read_image
from simsearch.search.options import LISTS, OPTIONS, PictureOptions, SearchOption

Command = TypeVar("Command", bound=Callable[..., Any])


def search_options(command: Command) -> Command:
    """Adds an option for each search option to a command, as a keyword argument of its name."""
    for option in reversed(OPTIONS):
        command = click.option(*option.command_line, option.name, **_settings(option))(command)
    return command


def _settings(option: SearchOption) -> dict[str, Any]:
    """Returns the keyword arguments of `click.option`."""
    if option.kind == "flag":
        return {"is_flag": True, "help": option.help}
    settings: dict[str, Any] = {"metavar": option.metavar, "help": option.help, "type": _type(option)}
    if option.kind in LISTS:
        settings |= {"multiple": True, "help": f"{option.help.removesuffix('.')}; repeatable."}
    if option.default is not None:
        settings |= {"default": option.default, "show_default": True}
    return settings


def _type(option: SearchOption) -> click.ParamType:  # type: ignore[type-arg]
    """Returns the click type of an option's values."""
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
    """Returns k and the options of `Engine.search_many`, from the arguments that `search_options` adds.

    Reads standard input and URLs. Raises UsageError, ImageError.
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
    """Returns the images in options, without their weights."""
    return [image for option in OPTIONS if option.kind == "images" for image, _ in given[option.name]]
