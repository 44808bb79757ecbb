"""Groups of commands that import a command only when it is used, so that `simsearch --help` starts quickly."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from simsearch.cli.console import ErrorReportingGroup


class LazyCommands(MutableMapping[str, click.Command]):
    """A mapping from names to commands, each of which is imported when it is first looked up.

    table: for each name, the module that defines the command as `NAME_command`, and the command's help text.
    """

    def __init__(self, table: Mapping[str, tuple[str, str]]) -> None:
        self._table = dict(table)
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            module, _ = self._table[name]
            self._loaded[name] = getattr(importlib.import_module(module), f"{name}_command")
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command
        self._table[name] = (getattr(command.callback, "__module__", ""), command.get_short_help_str())

    def __delitem__(self, name: str) -> None:
        del self._table[name]
        self._loaded.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def short_helps(self) -> dict[str, str]:
        """Returns a dict from each command's name to the first sentence of its help."""
        return {name: f"{text.removesuffix('.').split('. ')[0]}." for name, (_, text) in self._table.items()}


class LazyGroup(ErrorReportingGroup):
    """A group that lists its commands without importing them."""

    def __init__(self, name: str | None = None, *, table: Mapping[str, tuple[str, str]], **options: Any) -> None:
        self.lazy_commands = LazyCommands(table)
        super().__init__(name, commands=self.lazy_commands, **options)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self.lazy_commands.short_helps().items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = sorted(self.lazy_commands.short_helps().items())
        found = [CompletionItem(name, help=text) for name, text in commands if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


class ListingGroup(click.Group):
    """A group that lists its commands with the whole first sentence of their help. Click would cut off a long one."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(1000)) for name in sorted(self.commands)])
