"""The commands about a whole index: `duplicates`, `merge`, `compact` and `tune`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simsearch import api
from simsearch.cli import completion
from simsearch.cli.console import (
    NO_MATCH,
    check_folder_exists,
    check_links,
    echo,
    echo_data,
    echo_ready,
    note,
    note_unshown,
    pluralize,
    show_path,
    warn_if_incomplete,
)
from simsearch.cli.options import (
    device_option,
    format_option,
    html_option,
    index_option,
    links_option,
    version_option,
)
from simsearch.cli.params import ByteSize
from simsearch.cli.progress import show_progress
from simsearch.common.lazy import LazyModule
from simsearch.common.links import item_link
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.indexing import compact, merge, tune, tune_codes
from simsearch.reports import text
from simsearch.reports.html import save_html
from simsearch.reports.tiles import ResultRow, Tile
from simsearch.search import duplicates as near
from simsearch.search import tuning
from simsearch.storage.index import Index
from simsearch.storage.reader import modified

if TYPE_CHECKING:
    from simsearch.models.hashing import autoencoder
else:
    autoencoder = LazyModule("simsearch.models.hashing.autoencoder")

Groups = list[list[near.Member]]


@click.command("duplicates")
@click.option(
    "--max-distance",
    type=click.FloatRange(0),
    metavar="D",
    help="Largest distance of near-identical images.  [default: measured on changed copies]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv", "paths"]),
    default="table",
    show_default=True,
    help="Output format; paths leaves out the first image of each group.",
)
@html_option
@links_option
@click.option("--exact", is_flag=True, help="Compare all pairs, whatever the number of items.")
@device_option
@index_option
@version_option
def duplicates_command(
    max_distance: float | None,
    form: str,
    html_file: Path | None,
    service: str | None,
    exact: bool,
    device: str,
    index_path: str,
) -> None:
    """Finds groups of near-identical images.

    A group contains copies, and images linked by a chain of near-identical ones. Exits 1 if there are no groups.
    """
    check_folder_exists(html_file)
    check_links(service, html_file)
    with warn_if_incomplete(api.open(index_path, device=device)) as engine:
        limit = (
            near.copy_threshold(engine.opened_index, engine.model)
            if max_distance is None
            else near.Threshold(max_distance)
        )
        with show_progress("comparing") as progress:
            groups = near.duplicate_groups(engine.snapshots, limit.distance, progress, exact)
        if html_file:
            _write_report(engine, groups, limit, html_file, service)
        _print_groups(groups, form)
        echo(_summary(groups, limit), err=True)
        if len(engine) > near.EXACT and not exact:
            pairs, together = near.checked(engine.snapshots, groups, limit.distance)
            note(
                f"{together:,} of {pairs:,} near pairs of {near.CHECKED} random items are in one group;"
                " --exact compares all pairs"
            )
    if not groups:
        raise click.exceptions.Exit(NO_MATCH)


def _summary(groups: Groups, limit: near.Threshold) -> str:
    copies = ", ".join(f"{name} {share:.0%}" for name, share in limit.copies.items())
    items = pluralize(sum(map(len, groups)), "item")
    found = f"{pluralize(len(groups), 'group')} of {items} within {limit.distance:.4g}"
    return found + (f"; changed copies within it: {copies}" if copies else "")


def _print_groups(groups: Groups, form: str) -> None:
    listed = [
        [{"id": m.item.id, "path": m.path, "label": m.item.label, "distance": m.distance} for m in group]
        for group in groups
    ]
    if form == "json":
        echo(json.dumps(listed, indent=1))
    elif form == "jsonl":
        for entries in listed:
            echo(json.dumps(entries))
    elif form == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["group", "id", "path", "label", "distance"])
        for number, entries in enumerate(listed, 1):
            for entry in entries:
                cells = (text.csv_cell(value) if isinstance(value, str) else value for value in entry.values())
                writer.writerow([number, *cells])
        echo_data(out.getvalue(), nl=False)
    elif form == "paths":
        for group in groups:
            for member in group[1:]:
                echo_data(member.path)
    else:
        for number, group in enumerate(groups, 1):
            rows = [("distance", "id", "label", "path"), *map(_group_row, group)]
            lines = text.table(rows, right=2, last=show_path)
            echo_ready("\n".join([f"group {number}: {pluralize(len(group), 'item')}", *lines, ""]))


def _group_row(member: near.Member) -> tuple[str, str, str, str]:
    return text.format_distance(member.distance), str(member.item.id), member.item.label or "-", member.path


def _write_report(engine: Engine, groups: Groups, limit: near.Threshold, file: Path, service: str | None) -> None:
    def tile(member: near.Member) -> Tile:
        item = member.item
        parts = [f"{item.width} × {item.height}", text.format_size(item.size)]
        if date := modified(item.stamp):
            parts.append(f"{date:%Y-%m-%d %H:%M}")
        link = item_link(service, item.id) if service else None
        return Tile(engine.thumbnail(item.id), member.path, item.label, item.id, details=", ".join(parts), link=link)

    rows = [ResultRow(tile(group[0]), [tile(member) for member in group[1:]]) for group in groups]
    facts = {"index": str(engine.path), "model": engine.meta.model, "largest distance": f"{limit.distance:.4g}"}
    note_unshown(engine, rows)
    save_html(rows, file, "Near-identical pictures", facts, groups=True)
    note(f"wrote {file}")


@click.command("merge")
@click.argument("other", nargs=-1, required=True, shell_complete=completion.files)
@index_option
@version_option
def merge_command(other: tuple[str, ...], index_path: str) -> None:
    """Copies the items of OTHER indexes of the same model into an index, with their features."""
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

    Ids do not change, searches work meanwhile, and an interruption loses nothing.
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
    help="Share of the 10 true neighbours that must be found; 1 restores exact search."
    "  [default: 0.99; with --codes 0.95]",
)
@click.option(
    "--memory",
    type=ByteSize(),
    metavar="BYTES",
    help="Memory limit of the search structure: 500M, 2G.  [default: none]",
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
    """Measures and chooses the fastest way to search that reaches a recall.

    Recall is measured on held-out items. Searches work as before until the end, and after an interruption. Items added
    later are searched exactly, or encoded. --codes trains an autoencoder, which takes minutes, and uses its codes even
    if another way to search is faster.
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
            return "exact search; no structure fits into the memory"
        return "exact search" + (f"; it is fast enough for {items:,} items" if items < tuning.LEAST else "")
    parameters = choice.parameters
    unit = "bits" if choice.kind == "codes" else "components"
    return (
        f"{choice.kind} of {parameters['dimensions']} {unit}, {parameters['candidates']} candidates, effort"
        f" {parameters['effort']}; recall {choice.recall:.4f} ({choice.low:.4f} to {choice.high:.4f},"
        f" {choice.queries} queries), {1000 * choice.seconds:.2f} ms per query instead of"
        f" {1000 * choice.exact_seconds:.2f} ms, {text.format_size(choice.memory)}"
    )
