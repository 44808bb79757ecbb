"""Error messages, exit codes and printed text of the command line."""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import click

from simsearch.cli import synonyms
from simsearch.common.links import file_link, item_link, shortest
from simsearch.common.printable import printable, printable_lines
from simsearch.errors import HINT, IndexDamagedError, SimsearchError, UsageError
from simsearch.installation import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from simsearch.engine import Engine
    from simsearch.reports.tiles import ResultRow

version_option = click.version_option(__version__, prog_name="simsearch")

NO_MATCH, BAD_INPUT, DAMAGED, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: nothing was found, an error, a damaged index, an interruption. Success is 0."""


CHANGES = {
    "add",
    "build",
    "compact",
    "export",
    "map",
    "merge",
    "push",
    "remove",
    "restore",
    "sample",
    "serve",
    "train",
    "tune",
}
"""Commands that do more than print a result. They succeed even if standard output is closed."""


WITHOUT_LINKS = {"dumb", "linux"}
"""Values of $TERM for terminals that would show the escape sequences of links as text."""


class _Closed(io.TextIOWrapper):
    """Replaces a standard stream that was closed when the program started, and drops the text written to it.

    lost: True once a text was dropped.
    """

    lost = False

    def write(self, text: str) -> int:
        self.lost = True
        return len(text)


class _Messages(io.TextIOWrapper):
    """Standard error. Drops text that cannot be written, for example because the disk is full or the reader is gone.

    Otherwise a note that cannot be written would end the command, and change its exit code.
    """

    def write(self, text: str) -> int:
        with self._dropping():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            super().flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)


def _keep_messages() -> None:
    """Replaces standard error by `_Messages`, unless a caller, such as a test, has put something else in its place."""
    stream = sys.stderr
    if type(stream) is io.TextIOWrapper and stream is sys.__stderr__ and stream.fileno() == 2:
        raw = open(2, "wb", closefd=False)  # noqa: SIM115
        sys.stderr = _Messages(raw, stream.encoding, line_buffering=True)


def replace_closed_streams() -> None:
    """Puts a `_Closed`, open on /dev/null, in place of each standard stream that was closed when the program started.

    /dev/null takes the stream's file descriptor (0, 1 or 2). Otherwise a file opened later could get this descriptor,
    and output would be written to that file by mistake.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, usually `number`
            raw = open(file, "rb" if not number else "wb", closefd=file != number)  # noqa: SIM115
            setattr(sys, name, _Closed(raw, "utf-8"))


class ErrorReportingGroup(click.Group):
    """A command group that reports an error in one line and accepts `--debug` anywhere."""

    def main(self, args: Any = None, **extra: Any) -> Any:  # type: ignore[override]
        arguments = list(sys.argv[1:] if args is None else args)
        end = arguments.index("--") if "--" in arguments else len(arguments)  # arguments after -- are names
        debug = "--debug" in arguments[:end]
        arguments = [argument for argument in arguments[:end] if argument != "--debug"] + arguments[end:]
        replace_closed_streams()
        _keep_messages()
        for stream in (sys.stdout, sys.stderr):  # paths may hold bytes that are not UTF-8
            if hasattr(stream, "reconfigure"):
                if codecs.lookup(stream.encoding or "ascii").name == "ascii":  # click would print ? for such bytes
                    stream.reconfigure(encoding="utf-8")
                unicode = "utf" in (stream.encoding or "").lower()
                stream.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")
        extra["standalone_mode"] = False
        notes = logging.getLogger("simsearch")
        if not any(isinstance(handler, _NoteHandler) for handler in notes.handlers):
            notes.addHandler(_NoteHandler())
        logging.getLogger("simsearch.models").setLevel(logging.INFO)  # slow work that is done only once
        warnings.filterwarnings("ignore", module=r"PIL\.")  # a damaged image is reported as a failure already
        try:
            code = super().main(arguments, **extra)
            sys.stdout.flush()
            if getattr(sys.stdout, "lost", False) and not CHANGES.intersection(arguments[:1]):
                raise UsageError("standard output is closed, so the result is lost")
        except Exception as error:
            if debug and not isinstance(error, click.ClickException | click.exceptions.Exit):
                echo(_traceback(error).rstrip("\n"), err=True)
            code = report_error(error)
        except KeyboardInterrupt:
            echo("interrupted", err=True)
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def _traceback(error: BaseException) -> str:
    """Returns the traceback of an error. Hints are left out, because `report_error` prints them."""
    whole = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = whole
    while part is not None:
        notes = [note for note in part.__notes__ or () if not note.startswith(HINT)]
        part.__notes__ = notes or None
        part = part.__cause__ or part.__context__
    return "".join(whole.format())


def report_error(error: Exception) -> int:
    """Prints an error and its hint to standard error, and returns the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader, `| head` for example, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.Abort):
        echo("interrupted", err=True)
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        echo(error.format_message(), err=True)
        return BAD_INPUT
    if isinstance(error, click.UsageError):
        _print_error(*synonyms.explain(error))
    elif isinstance(error, click.ClickException):
        _print_error(error.format_message(), None)
    elif isinstance(error, SimsearchError):
        _print_error(str(error), error.shell_hint)
        return DAMAGED if isinstance(error, IndexDamagedError) else BAD_INPUT
    elif isinstance(error, OSError) and error.strerror:
        _print_error(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, None)
    else:
        _print_error(f"{type(error).__name__}: {error}", "this is a bug; --debug shows a traceback")
    return BAD_INPUT


def _print_error(message: str, hint: str | None) -> None:
    echo(f"error: {printable(' '.join(message.split()))}", err=True)
    if hint:
        echo(f"hint: {printable(hint)}", err=True)


def echo(text: str = "", err: bool = False) -> None:
    """Prints lines of text for people. Escape sequences in the text, for example in file names, are made visible.

    err: True to print to standard error.
    """
    click.echo(printable_lines(text), err=err)


def echo_data(text: str, nl: bool = True) -> None:
    """Prints output for programs. Escape sequences are made visible on a terminal, and left unchanged elsewhere.

    nl: True to add a line break at the end.
    """
    click.echo(printable_lines(text) if sys.stdout.isatty() else text, nl=nl, color=True)


def echo_ready(text: str, nl: bool = True) -> None:
    """Prints text for people without changing it. It must be printable already, apart from links by `show_path`."""
    click.echo(text, nl=nl, color=True)


def show_path(path: str) -> str:
    """Returns a path in the form shown to people, to be printed by `echo_ready`.

    The path is relative if that is shorter, and its control characters are visible. On a terminal, the path is a link
    to the file (an OSC 8 escape sequence).
    """
    shown = printable(shortest(path))
    linking = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in WITHOUT_LINKS
    link = file_link(path) if linking else None
    return f"\x1b]8;;{link}\x1b\\{shown}\x1b]8;;\x1b\\" if link else shown


def note(text: str) -> None:
    """Prints a note to standard error."""
    echo(f"note: {printable(text)}", err=True)


class _NoteHandler(logging.Handler):
    """Prints log messages of the library and its models as notes.

    Messages of the HTTP service are not printed here, because the service has a handler of its own.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "simsearch" or record.name.startswith("simsearch.models."):
            note(record.getMessage())


def incomplete_push(engine: Engine) -> str | None:
    """Returns a warning if a collection is incomplete because `push` is running or was interrupted; else None."""
    if engine.complete:
        return None
    return f"the push into {engine.path} has not ended, so items may be missing or old; push again to complete it"


def note_unshown(engine: Engine, rows: Sequence[ResultRow]) -> None:
    """Prints a note if pictures of matches are missing in a report: how many, and why the first could not be read."""
    missing = [tile.id for row in rows for tile in row.matches if tile.image is None and tile.id is not None]
    if not missing:
        return
    reason = "it cannot be read"
    try:
        engine.read(missing[0])
    except SimsearchError as error:
        reason = f"{error}; {error.shell_hint}" if error.shell_hint else str(error)
    note(f"{len(missing):,} of the matches' pictures are not shown, the first because: {reason}")


def warn_if_incomplete(engine: Engine) -> Engine:
    """Prints a note if the engine searches an incomplete Milvus collection, and returns the engine."""
    if warning := incomplete_push(engine):
        note(warning)
    return engine


def pluralize(count: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: "1 item", "1,000 items". plural: by default, the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_counts(counts: dict[str, int]) -> str:
    """Returns the counts that are not zero, with their names: "3 added, 1 failed"; empty if all are zero."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def check_links(service: str | None, html_file: Path | None, other: bool = False) -> None:
    """Checks --links. Raises UsageError if its value is not a URL, or if it is given without an HTML report.

    service: the value of --links, the URL of a running `simsearch serve`. html_file: the value of --html.
    other: True if an HTML report is written to another file, as by `query --open`.
    """
    if service is None:
        return
    item_link(service, 0)
    if html_file is None and not other:
        raise UsageError("--links needs an HTML report", hint="write a report with --html FILE")


def check_folder_exists(file: Path | None) -> None:
    """Raises UsageError if a file to write is an existing folder, or if the folder of the file does not exist."""
    if file is not None and file.is_dir():
        raise UsageError(f"{file} cannot be written: it is a folder", hint="give the path of a file in this folder")
    if file is not None and not file.absolute().parent.is_dir():
        raise UsageError(f"{file} cannot be written: its folder does not exist")
