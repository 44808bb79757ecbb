"""Names of commands and options in other tools, so that an error message can suggest the name in simsearch."""

from __future__ import annotations

import re

import click

OTHER_VERBS = {
    "browse": "serve",
    "dedup": "duplicates",
    "dedupe": "duplicates",
    "delete": "remove",
    "download": "sample",
    "evaluate": "eval",
    "find": "query",
    "gui": "serve",
    "index": "build",
    "init": "build",
    "label": "classify",
    "ls": "info",
    "optimize": "tune",
    "predict": "classify",
    "rm": "remove",
    "search": "query",
    "server": "serve",
    "similar": "query",
    "stats": "info",
    "status": "info",
    "update": "build",
    "web": "serve",
}
"""Names of commands in other tools, each with the name of the equivalent command in simsearch."""

_LIMITS = "--max-distance D, or --min-similarity S"
_OUTPUT = "--html FILE, or > FILE"
OTHER_OPTIONS = {
    "query": {
        "--label": "--filter label=NAME",
        "--where": "--filter FIELD=VALUE",
        "--limit": "-k N",
        "--number": "-k N",
        "-n": "-k N",
        "--threshold": _LIMITS,
        "--similarity": _LIMITS,
        "--distance": _LIMITS,
        "--output": "--html FILE, --montage FILE, or > FILE",
        "-o": "--html FILE, --montage FILE, or > FILE",
        "--json": "--format json",
        "--csv": "--format csv",
    },
    "duplicates": {
        "--threshold": "--max-distance D",
        "--output": "--html FILE, or > FILE",
        "-o": "--html FILE, or > FILE",
    },
    "build": {"--output": "-i FOLDER", "-o": "-i FOLDER", "--recursive": "subfolders are always read too"},
}
"""For each command of simsearch: options of other tools, each with a hint that names the equivalent."""


def _kind(match: re.Match[str]) -> str:
    return "is not a whole number." if match[1] == "integer" else "is not a number."


def explain(error: click.UsageError) -> tuple[str, str | None]:
    """Returns the message and the hint for an error of click.

    The hint for a command or an option of another tool suggests the equivalent in simsearch.
    """
    hint = f"{error.ctx.command_path} --help" if error.ctx else None
    if isinstance(error, click.NoSuchOption):
        near = [name for name in error.possibilities or () if name not in {"--help", "--version"}]
        error = click.NoSuchOption(error.option_name, error.message, near, error.ctx)
        verb = error.ctx.info_name if error.ctx else ""
        hint = OTHER_OPTIONS.get(str(verb), {}).get(error.option_name, hint)
    message = re.sub(r"is not a valid (integer|float)( range)?\.", _kind, error.format_message())
    if word := re.fullmatch(r"No such command '(\w+)'\.", message):
        hint = f"did you mean {OTHER_VERBS[word[1]]}?" if word[1] in OTHER_VERBS else hint
    return message, hint
