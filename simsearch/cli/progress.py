"""Progress on stderr: bars on a terminal, else at most one line a second."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from simsearch.cli.console import echo
from simsearch.common.printable import printable_lines

LogRow = dict[str, Any]
"""A row of a training's log, as in the .jsonl file. Its `event` is step, epoch, resume or note."""


@contextmanager
def show_progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with (done, total), which shows the progress of `task`."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(task, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            number = bar.add_task(task, total=None, rate="")
            start = time.monotonic()

            def draw(done: int, total: int) -> None:
                rate = done / max(time.monotonic() - start, 1e-3)
                bar.update(number, completed=done, total=total, rate=f"{rate:,.0f}/s")

            yield draw
        return
    start = last = time.monotonic()

    def print_line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1 and done:
            last = now
            echo(f"{task}: {done:,} of {total:,}, {done / (now - start):,.0f}/s", err=True)

    yield print_line


@contextmanager
def training_progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[LogRow], None], Callable[[], bool]]]:
    """Yields three functions for a training.

    The first shows the progress of decoding, the second shows a row of the log, and the third returns True if the
    training shall stop. After Ctrl-C (or SIGTERM), the training finishes the current step, writes a checkpoint and
    stops. A second Ctrl-C interrupts at once, and so does the first if no step has finished yet. Two signals within a
    second count as one, since torchrun forwards Ctrl-C to processes that have received it from the terminal already.
    """
    requests: list[float] = []
    training = False

    def handle_signal(number: int, frame: Any) -> None:
        if requests and time.monotonic() - requests[0] < 1:
            return
        if requests or not training:
            raise KeyboardInterrupt
        requests.append(time.monotonic())
        echo("stopping after this step (Ctrl-C again: at once)", err=True)

    def stop_requested() -> bool:
        nonlocal training
        training = True
        return bool(requests)

    before = {number: signal.signal(number, handle_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            _training_bar() if sys.stderr.isatty() else _training_lines() as log,
            show_progress("decoding") as decoding,
        ):
            yield decoding, log, stop_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _training_lines() -> Iterator[Callable[[LogRow], None]]:
    """Yields a function that prints a row of the log as a line.

    It prints rows about steps at most once per second, but always the row about the last step.
    """
    last = -1.0

    def print_row(row: LogRow) -> None:
        nonlocal last
        now = time.monotonic()
        if row["event"] == "step" and now - last < 1 and row["step"] < row["steps"]:
            return
        last = now
        if text := _format_row(row):
            echo(text, err=True)

    yield print_row


@contextmanager
def _training_bar() -> Iterator[Callable[[LogRow], None]]:
    """Yields a function that shows a row of the log: a step in a progress bar, any other event as a line above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        bar.stop()  # until the first step, the terminal shows the bar of decoding; there can be only one
        task = bar.add_task("", total=None)

        def draw_row(row: LogRow) -> None:
            if row["event"] == "step":
                bar.start()
                bar.update(task, completed=row["step"], total=row["steps"], description=_format_metrics(row))
            elif text := _format_row(row):
                console.print(printable_lines(text), highlight=False, markup=False)

        yield draw_row


def _format_metrics(row: LogRow) -> str:
    return f"epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  {_format_scores(row, '  ')}  {row['rate']:,.0f} images/s"


def _format_scores(row: LogRow, between: str) -> str:
    """Returns the top-1 accuracy and, if the row has it, the top-5 accuracy as text, separated by `between`."""
    names = {"top1": "top-1", "top5": "top-5"}
    return between.join(f"{shown} {row[name]:.1%}" for name, shown in names.items() if name in row)


def _format_row(row: LogRow) -> str:
    """Returns a row of the training's log as a line of text; "" for an event that is not shown."""
    if row["event"] == "step":
        minutes, seconds = divmod(row["left"], 60)
        return f"step {row['step']:,} of {row['steps']:,}  {_format_metrics(row)}  {minutes:,}:{seconds:02} left"
    if row["event"] == "epoch":
        return f"epoch {row['epoch']}: validation {_format_scores(row, ', ')}"
    if row["event"] == "resume":
        return f"continuing after step {row['step']:,}"
    return f"note: {row['text']}" if row["event"] == "note" else ""
