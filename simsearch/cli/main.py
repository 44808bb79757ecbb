"""`simsearch VERB`: the group of all commands. Each command's module is imported only when the command is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from simsearch.cli.lazy import LazyGroup
from simsearch.cli.options import version_option

COMMANDS = {
    "add": (
        "simsearch.cli.build",
        "Adds images, folders or other sources to an index; nothing is removed from it.",
    ),
    "build": ("simsearch.cli.build", "Makes an index from SOURCEs or brings it in step with them."),
    "classify": (
        "simsearch.cli.models",
        "Says what each IMAGE most probably shows: a path, an http(s) URL, or - for standard input.",
    ),
    "compact": (
        "simsearch.cli.maintain",
        "Reclaims the room that removed and replaced items have left in the feature files.",
    ),
    "completion": (
        "simsearch.cli.serve",
        'Prints a script that completes commands and options: eval "$(simsearch completion bash)".',
    ),
    "demo": (
        "simsearch.cli.serve",
        "Shows the web page without any data: draws pictures, indexes and serves them, and leaves nothing behind.",
    ),
    "duplicates": (
        "simsearch.cli.maintain",
        "Finds groups of near-identical items: copies, and pictures linked by chains of near-identical ones.",
    ),
    "eval": ("simsearch.cli.evaluate", "Measures how good a model, or an index, is."),
    "export": ("simsearch.cli.inspect", "Writes the features and what they belong to."),
    "info": ("simsearch.cli.inspect", "Says what is in an index."),
    "merge": (
        "simsearch.cli.maintain",
        "Takes the items of OTHER indexes of the same model in, with their features; OTHER stays as it is.",
    ),
    "models": ("simsearch.cli.models", "Lists the models that an index can be built with."),
    "push": (
        "simsearch.cli.push",
        "Copies an index into a collection in Milvus: only what differs, so again after each change.",
    ),
    "query": (
        "simsearch.cli.query",
        "Finds the indexed pictures most like each IMAGE: a path, id:N, an http(s) URL, or - for standard input.",
    ),
    "remove": (
        "simsearch.cli.build",
        "Removes items from an index by path, folder, id:N or glob. The image files are never touched.",
    ),
    "sample": (
        "simsearch.cli.inspect",
        "Draws labelled pictures into DIRECTORY, a folder a kind, for trying things without any data.",
    ),
    "serve": (
        "simsearch.cli.serve",
        "Serves indexes over HTTP, with a web page at /. Listens on this machine only, unless told otherwise.",
    ),
    "train": (
        "simsearch.cli.models",
        "Trains a network on labelled SOURCEs and writes one .safetensors file with all that belongs to it.",
    ),
    "tune": (
        "simsearch.cli.maintain",
        "Chooses the fastest way to search that reaches a recall, by measurement on items it has not seen.",
    ),
    "verify": (
        "simsearch.cli.inspect",
        "Checks that the files of an index agree, byte for byte; exits 3 if they do not.",
    ),
}
"""By command name: the module that holds it as NAME_command, and the short help, the first sentence of its own."""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@version_option
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def main(debug: bool) -> None:
    """Finds the pictures most like a picture.

    \b
    simsearch build photos/             make an index of a folder, or bring it up to date
    simsearch query cat.jpg             the six indexed pictures most like cat.jpg
    """


def help_texts() -> dict[str, str]:
    """The `--help` of each command, 100 columns wide, by its name: the text of docs/cli.md."""
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
