"""The commands about a whole index: `merge`, `compact` and `tune`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from simsearch.cli import completion
from simsearch.cli.console import echo, pluralize
from simsearch.cli.options import format_option, index_option, version_option
from simsearch.cli.params import ByteSize
from simsearch.cli.progress import show_progress
from simsearch.common.lazy import LazyModule
from simsearch.errors import UsageError
from simsearch.indexing import compact, merge, tune, tune_codes
from simsearch.reports import text
from simsearch.search import tuning
from simsearch.storage.index import Index

if TYPE_CHECKING:
    from simsearch.models.hashing import autoencoder
else:
    autoencoder = LazyModule("simsearch.models.hashing.autoencoder")


@click.command("merge")
@click.argument("other", nargs=-1, required=True, shell_complete=completion.files)
@index_option
@version_option
def merge_command(other: tuple[str, ...], index_path: str) -> None:
    """Copies items and their features from OTHER indexes of the same model into an index."""
    with Index(index_path) as index:
        for path in other:
            with Index(path) as source, show_progress("merging") as progress:
                merged = merge.merge_indexes(index, source, progress)
            items = pluralize(len(index), "item")
            echo(f"{index_path}: {items}; {merged.added:,} from {path}, {merged.known:,} known")


@click.command("compact")
@click.option("--dry-run", is_flag=True, help="Only print what would be reclaimed.")
@format_option
@index_option
@version_option
def compact_command(dry_run: bool, form: str, index_path: str) -> None:
    """Reclaims the disk space of removed and replaced items.

    Ids do not change. Searches work meanwhile. If the command is interrupted, nothing is lost.
    """
    with Index(index_path) as index, show_progress("compacting") as progress:
        done = compact.compact(index, dry_run, progress)
    if form == "json":
        echo(json.dumps(dataclasses.asdict(done)))
        return
    outcome = "would be reclaimed; nothing was changed" if dry_run else "reclaimed"
    size = f"{text.format_size(done.reclaimed)} ({pluralize(done.reclaimed, 'byte')})"
    items, unused = pluralize(done.items, "item"), pluralize(done.removed, "unused row")
    echo(f"{index_path}: {items}, {unused}, {size} {outcome}")


@click.command("tune")
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="R",
    help="Share of the 10 nearest items that a search must find; 1 restores exact search."
    "  [default: 0.99; with --codes 0.95]",
)
@click.option(
    "--memory",
    type=ByteSize(),
    metavar="BYTES",
    help="Memory limit of the approximate search, such as 500M or 2G.  [default: none]",
)
@click.option(
    "--codes",
    "bits",
    type=click.IntRange(64, 512),
    metavar="BITS",
    help="Search by binary codes of 64 to 512 bits, learned from the index's features.",
)
@format_option
@index_option
@version_option
def tune_command(recall: float | None, memory: int | None, bits: int | None, form: str, index_path: str) -> None:
    """Measures ways to search, and chooses the fastest that reaches a recall.

    Recall is the share of the true nearest items that a search finds; it is measured on held-out items. Searches work
    as before while the command runs, and also if it is interrupted. Items added later are searched exactly. --codes
    trains an autoencoder, which takes minutes, and uses its codes even if another way to search is faster; items added
    later then get codes, too.
    """
    if bits is not None and bits % 8:
        raise UsageError(f"--codes {bits} is not a multiple of 8")
    with Index(index_path) as index:
        with show_progress("tuning") as progress:
            if bits is None:
                choice = tune.tune(index, 0.99 if recall is None else recall, memory, progress)
            else:
                target = tune_codes.RECALL if recall is None else recall
                choice = tune_codes.tune_codes(index, autoencoder.HashConfig(bits), target, memory, progress)
        items = len(index)
    if form == "json":
        echo(json.dumps(dataclasses.asdict(choice)))
    else:
        echo(f"{index_path}: {_describe_choice(choice, items)}")


def _describe_choice(choice: tuning.Choice, items: int) -> str:
    if choice.kind == "exact":
        if choice.tried:
            name = "proved exact search" if choice.proved else "exact search"
            return f"{name}, {1000 * choice.seconds:.2f} ms per query; nothing faster reaches the recall"
        if choice.exact_seconds:
            return "exact search; no approximate search fits into the memory"
        return "exact search" + (f"; it is fast enough for {items:,} items" if items < tuning.LEAST else "")
    parameters = choice.parameters
    unit = "bits" if choice.kind == "codes" else "components"
    return (
        f"{choice.kind} of {parameters['dimensions']} {unit}, {parameters['candidates']} candidates, effort"
        f" {parameters['effort']}; recall {choice.recall:.4f} ({choice.low:.4f} to {choice.high:.4f},"
        f" {choice.queries} queries), {1000 * choice.seconds:.2f} ms per query instead of"
        f" {1000 * choice.exact_seconds:.2f} ms, {text.format_size(choice.memory)}"
    )
