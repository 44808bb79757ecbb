"""`simsearch VERB`: the group of all commands. Each command's module is imported only when the command is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from simsearch.cli.console import version_option
from simsearch.cli.lazy import LazyGroup

if "_SIMSEARCH_COMPLETE" in os.environ:  # this import would slow down every other start
    import simsearch.cli.completion  # noqa: F401  # replaces click's completion for bash and zsh

COMMANDS = {
    "add": (
        "simsearch.cli.build",
        "Adds images, folders or other sources to an index. Nothing is removed.",
    ),
    "build": ("simsearch.cli.build", "Makes an index of the images in SOURCEs, or updates it."),
    "classify": (
        "simsearch.cli.models",
        "Guesses what each IMAGE shows.",
    ),
    "compact": (
        "simsearch.cli.maintain",
        "Reclaims the disk space of removed and replaced items.",
    ),
    "completion": (
        "simsearch.cli.serve",
        'Prints a shell script for completion: eval "$(simsearch completion bash)".',
    ),
    "curate": (
        "simsearch.cli.curate",
        "Finds outliers, wrong labels and leaks in a data set, chooses representative images, and spreads labels.",
    ),
    "demo": (
        "simsearch.cli.serve",
        "Shows the web page with generated sample pictures, which are deleted at the end.",
    ),
    "duplicates": (
        "simsearch.cli.duplicates",
        "Finds groups of near-identical images, and on request moves or links all but one image of each group.",
    ),
    "eval": ("simsearch.cli.evaluate", "Measures the quality of a model or an index."),
    "export": ("simsearch.cli.inspect", "Writes the features and the items of an index to files."),
    "info": (
        "simsearch.cli.inspect",
        "Describes an index, or says of each PATH if it is in the index, and if not, why.",
    ),
    "map": (
        "simsearch.cli.map",
        "Draws a map of an index: all pictures on a plane, similar ones side by side, in one HTML file.",
    ),
    "merge": (
        "simsearch.cli.maintain",
        "Copies items and their features from OTHER indexes of the same model into an index.",
    ),
    "models": ("simsearch.cli.models", "Lists the models that an index can be built with."),
    "push": (
        "simsearch.cli.push",
        "Copies an index into a Milvus collection, or only the differences if the collection exists.",
    ),
    "query": (
        "simsearch.cli.query",
        "Finds the indexed images most like each IMAGE: a path, id:N, an http(s) URL, or - for standard input.",
    ),
    "remove": (
        "simsearch.cli.build",
        "Removes items from an index by path, folder, id:N or glob. The image files are never touched.",
    ),
    "restore": (
        "simsearch.cli.duplicates",
        "Takes back what `duplicates` moved or linked.",
    ),
    "sample": (
        "simsearch.cli.inspect",
        "Draws labelled sample pictures into DIRECTORY, with a folder for each kind.",
    ),
    "serve": (
        "simsearch.cli.serve",
        "Serves indexes over HTTP, with a web page at /. By default it listens on this machine only.",
    ),
    "train": (
        "simsearch.cli.models",
        "Trains a network on labelled SOURCEs and writes one .safetensors file.",
    ),
    "tune": (
        "simsearch.cli.maintain",
        "Measures ways to search, and chooses the fastest that reaches a recall.",
    ),
    "verify": (
        "simsearch.cli.inspect",
        "Checks that the files of an index are undamaged and agree with each other. Exits 3 if not.",
    ),
}
"""For each command's name: the module that defines NAME_command, and the short help, which begins the full help."""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@version_option
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def main(debug: bool) -> None:
    """Finds the images most like an image.

    \b
    simsearch build photos/             make an index of a folder, or update it
    simsearch query cat.jpg             the six indexed images most like cat.jpg
    """


def help_texts() -> dict[str, str]:
    """Returns a dict from each command's name to its `--help` text, 100 columns wide. docs/cli.md has these texts."""
    settings: dict[str, Any] = {"max_content_width": 100, "terminal_width": 100}
    with click.Context(main, info_name="simsearch", help_option_names=["-h", "--help"], **settings) as parent:
        return dict(_help_texts_of(main, parent, ""))


def _help_texts_of(group: click.Group, parent: click.Context, prefix: str) -> Iterator[tuple[str, str]]:
    for name, command in sorted(group.commands.items()):
        with click.Context(command, info_name=name, parent=parent) as context:
            yield prefix + name, command.get_help(context) + "\n"
            if isinstance(command, click.Group):
                yield from _help_texts_of(command, context, f"{prefix}{name} ")


if __name__ == "__main__":
    main()
