"""The options that several commands share, as decorators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from simsearch.cli.params import Root
from simsearch.version import __version__

Command = TypeVar("Command", bound=Callable[..., Any])


def complete_files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Lets the shell complete file names for an argument that can be a file among other things."""
    return [CompletionItem(incomplete, type="file")]


version_option = click.version_option(__version__, prog_name="simsearch")
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N."
)
format_option = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print."
)
index_option = click.option(
    "-i",
    "--index",
    "index_path",
    metavar="PATH",
    envvar="SIMSEARCH_INDEX",
    default="indexes/default",
    show_default=True,
    help="The index; also $SIMSEARCH_INDEX.",
    shell_complete=complete_files,
)
root_option = click.option(
    "--root",
    "roots",
    multiple=True,
    type=Root(),
    metavar="[OLD=]NEW",
    help="Where the images are now, if they have moved.",
)
moved_model_option = click.option(
    "--model", metavar="NAME|FILE", help="The index's model, where its weights have moved."
)
model_option = click.option("-m", "--model", metavar="NAME|FILE", help="Which model.  [default: the default model]")
crops_option = click.option(
    "--crops",
    type=click.Choice(["1", "10"]),
    default="1",
    show_default=True,
    help="The centre, or the mean over the paper's ten patches.",
)
exclude_option = click.option(
    "--exclude", multiple=True, metavar="GLOB", help="Leave out matching paths or names; repeatable."
)
html_option = click.option(
    "--html", "html_file", type=click.Path(path_type=Path), metavar="FILE", help="Write a report in one HTML file."
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the items drawn.")


def source_options(command: Command) -> Command:
    """The options that `build` and `add` share."""
    decorators = (
        exclude_option,
        click.option(
            "--labels",
            type=click.Choice(["auto", "folder", "none"]),
            default="auto",
            show_default=True,
            help="Label images by the folder they sit in: auto if all sit in one.",
        ),
        click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images computed at once."),
        click.option("--workers", type=click.IntRange(1), metavar="N", help="Images decoded at once."),
        device_option,
        index_option,
        format_option,
        version_option,
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command
