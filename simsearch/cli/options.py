"""The options that several commands share, as decorators."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from simsearch.cli import completion
from simsearch.cli.console import note
from simsearch.cli.console import version_option as version_option
from simsearch.cli.params import Root

Command = TypeVar("Command", bound=Callable[..., Any])


def default_index(quiet: bool = False) -> str:
    """Returns the path of the index to use if no index is given.

    This is $SIMSEARCH_INDEX, else the index `indexes/default` in the current folder or in the nearest folder above it.
    If there is no such index, returns `indexes/default`. Prints a note if the index is in a folder above, unless
    `quiet` is True.
    """
    if named := os.environ.get("SIMSEARCH_INDEX"):
        return named
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / DEFAULT_INDEX / "meta.json").is_file():
            if folder != here and not quiet:
                note(f"the index is {folder / DEFAULT_INDEX}")
            return DEFAULT_INDEX if folder == here else str(folder / DEFAULT_INDEX)
    return DEFAULT_INDEX


def _index_or_default(context: click.Context, parameter: click.Parameter, given: str | None) -> str:
    return default_index(context.resilient_parsing) if given is None else given


DEFAULT_INDEX = "indexes/default"


def output_option(name: str, metavar: str, text: str) -> Callable[[Command], Command]:
    """Returns a decorator that adds the required option -o/--output to a command.

    name: the name of the argument in which the command gets the path.
    """
    return click.option(
        "-o", "--output", name, type=click.Path(path_type=Path), required=True, metavar=metavar, help=text
    )


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cpu, cuda or cuda:N.",
    shell_complete=completion.words("auto", "cpu", "cuda"),
)
format_option = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output format."
)
index_option = click.option(
    "-i",
    "--index",
    "index_path",
    metavar="PATH",
    callback=_index_or_default,
    help="The index.  [default: $SIMSEARCH_INDEX, else the nearest indexes/default here or in a folder above]",
    shell_complete=completion.files,
)
new_index_option = click.option(
    "-i",
    "--index",
    "index_path",
    metavar="PATH",
    envvar="SIMSEARCH_INDEX",
    default=DEFAULT_INDEX,
    help=f"The index.  [default: $SIMSEARCH_INDEX, else {DEFAULT_INDEX}]",
    shell_complete=completion.files,
)
root_option = click.option(
    "--root",
    "roots",
    multiple=True,
    type=Root(),
    metavar="[OLD=]NEW",
    help="Look for the images of a source at NEW, if they have moved there from OLD; repeatable.",
)
moved_model_option = click.option(
    "--model",
    metavar="NAME|FILE",
    help="The index's model, if its weights have moved.",
    shell_complete=completion.models,
)
model_option = click.option(
    "-m",
    "--model",
    metavar="NAME|FILE",
    help="Model to use. `simsearch models` lists the models and marks the default.",
    shell_complete=completion.models,
)
crops_option = click.option(
    "--crops",
    type=click.Choice(["1", "10"]),
    default="1",
    show_default=True,
    help="Crops per image: 1 uses its centre; 10 averages over its centre, its corners and their mirror images.",
)
exclude_option = click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave out paths that match GLOB, by the rules of .gitignore; repeatable.",
)
html_option = click.option(
    "--html", "html_file", type=click.Path(path_type=Path), metavar="FILE", help="Write a report to an HTML file."
)
links_option = click.option(
    "--links",
    "service",
    metavar="URL",
    help="In the report, link pictures to the service at URL (see `serve`) instead of to files.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random choice of items."
)


def source_options(command: Command) -> Command:
    """Adds the options that `build` and `add` share, except -i/--index."""
    decorators = (
        exclude_option,
        click.option(
            "--labels",
            type=click.Choice(["auto", "folder", "none"]),
            default="auto",
            show_default=True,
            help="Labels of images: folder (the label in the source, else the name of the image's folder), none (no"
            " labels), or auto (the choice that the index records for the source; folder for a new source).",
        ),
        click.option(
            "--allow-outside",
            is_flag=True,
            help="Allow files outside the folder of a source: index them if a .csv, .jsonl or .parquet file lists them,"
            " and show them if a symbolic link leads to them.",
        ),
        click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images per batch."),
        click.option("--workers", type=click.IntRange(1), metavar="N", help="Number of decoding threads."),
        device_option,
        format_option,
        version_option,
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command
