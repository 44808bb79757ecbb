"""The command line's manners: errors, exit codes, progress."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from simsearch.errors import IndexDamagedError, SimsearchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from simsearch.engine import Engine

NO_MATCH, BAD_INPUT, DAMAGED, INTERRUPTED = 1, 2, 3, 130
"""Exit codes; 0 is success."""


class Main(click.Group):
    """A command group that reports errors as one line, and knows `--debug` in any place."""

    def main(self, args: Any = None, **extra: Any) -> Any:  # type: ignore[override]
        arguments = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in arguments
        arguments = [argument for argument in arguments if argument != "--debug"]
        for stream in (sys.stdout, sys.stderr):  # paths may hold bytes that are no UTF-8
            if hasattr(stream, "reconfigure"):
                unicode = "utf" in (stream.encoding or "").lower()
                stream.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")
        extra["standalone_mode"] = False
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of a damaged picture, its failure says enough
        try:
            code = super().main(arguments, **extra)
            sys.stdout.flush()
        except Exception as error:
            if debug and not isinstance(error, click.ClickException | click.exceptions.Exit):
                traceback.print_exception(error)
            code = report(error)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def missing(engine: Engine) -> str | None:
    """What there is to say of a collection whose push was interrupted, or goes on."""
    if engine.complete:
        return None
    return f"the push into {engine.path} has not ended, so items may be missing or old; another one completes it"


def many(count: int, noun: str, plural: str | None = None) -> str:
    """A number and what it counts: "1 item", "1,000 items"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def opened(engine: Engine) -> Engine:
    """The engine, after a note where something is known to be missing in it."""
    if told := missing(engine):
        click.echo(f"note: {told}", err=True)
    return engine


def report(error: Exception) -> int:
    """Prints an error and its hint to stderr and returns the exit code."""
    if isinstance(error, BrokenPipeError):  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return BAD_INPUT
    if isinstance(error, click.UsageError):
        _complain(error.format_message(), f"{error.ctx.command_path} --help" if error.ctx else None)
    elif isinstance(error, click.ClickException):
        _complain(error.format_message(), None)
    elif isinstance(error, SimsearchError):
        _complain(str(error), error.hint)
        return DAMAGED if isinstance(error, IndexDamagedError) else BAD_INPUT
    elif isinstance(error, OSError) and error.strerror:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, None)
    else:
        _complain(f"{type(error).__name__}: {error}", "this should not happen; --debug shows where")
    return BAD_INPUT


def _complain(message: str, hint: str | None) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that draws a bar on a terminal and prints at most a line a second elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None, rate="")
            start = time.monotonic()

            def draw(done: int, total: int) -> None:
                rate = done / max(time.monotonic() - start, 1e-3)
                bar.update(task, completed=done, total=total, rate=f"{rate:,.0f}/s")

            yield draw
        return
    state = {"told": time.monotonic(), "start": time.monotonic()}

    def tell(done: int, total: int) -> None:
        now = time.monotonic()
        if now - state["told"] >= 1 and done:
            state["told"] = now
            click.echo(f"{what}: {done:,} of {total:,}, {done / (now - state['start']):,.0f}/s", err=True)

    yield tell


Log = dict[str, Any]


@contextmanager
def training() -> Iterator[tuple[Callable[[int, int], None], Callable[[Log], None], Callable[[], bool]]]:
    """For a training: how to show decoding and the log's rows, and whether the user has asked to stop.

    The first Ctrl-C (or SIGTERM) lets the step be finished and a checkpoint be written; a second one is an interrupt,
    and so is the first where no step was finished yet. Within a second they are one: torchrun passes on what a terminal
    has sent to its processes already.
    """
    asked: list[float] = []
    training = False

    def ask(number: int, frame: Any) -> None:
        if asked and time.monotonic() - asked[0] < 1:
            return
        if asked or not training:
            raise KeyboardInterrupt
        asked.append(time.monotonic())
        click.echo("stopping after this step (once more: at once)", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    told = -1.0

    def stop() -> bool:
        nonlocal training
        training = True
        return bool(asked)

    def plain(row: Log) -> None:
        nonlocal told
        now = time.monotonic()
        if row["event"] == "step" and now - told < 1 and row["step"] < row["steps"]:
            return
        told = now
        if text := _said(row):
            click.echo(text, err=True)

    try:
        with _lively() if sys.stderr.isatty() else _still(plain) as show, progress("decoding") as decoding:
            yield decoding, show, stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _still(plain: Callable[[Log], None]) -> Iterator[Callable[[Log], None]]:
    yield plain


@contextmanager
def _lively() -> Iterator[Callable[[Log], None]]:
    """A bar for steps; epochs and notes scroll by above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        bar.stop()  # decoding has a bar of its own, and there can be only one
        task = bar.add_task("", total=None)

        def show(row: Log) -> None:
            if row["event"] == "step":
                bar.start()
                bar.update(task, completed=row["step"], total=row["steps"], description=_numbers(row))
            elif text := _said(row):
                console.print(text, highlight=False, markup=False)

        yield show


def _numbers(row: Log) -> str:
    return (f"epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  top-1 {row['top1']:.1%}  top-5 {row['top5']:.1%}"
            f"  {row['rate']:,.0f} images/s")  # fmt: skip


def _said(row: Log) -> str:
    """A row of the training log as a line."""
    if row["event"] == "step":
        minutes, seconds = divmod(row["left"], 60)
        return f"step {row['step']:,} of {row['steps']:,}  {_numbers(row)}  {minutes:,}:{seconds:02} left"
    if row["event"] == "epoch":
        return f"epoch {row['epoch']}: validation top-1 {row['top1']:.1%}, top-5 {row['top5']:.1%}"
    if row["event"] == "resume":
        return f"continuing after step {row['step']:,}"
    return f"note: {row['text']}" if row["event"] == "note" else ""
