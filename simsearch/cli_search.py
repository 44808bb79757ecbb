"""The verbs about whole indexes, `duplicates`, `merge`, `compact` and `tune`; pictures in the terminal for `query`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simsearch.cli_models import device, files, form, index, version
from simsearch.console import NO_MATCH, many, opened, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simsearch.duplicates import Member, Threshold
    from simsearch.engine import Engine
    from simsearch.report import Row
    from simsearch.storage.index import Index
    from simsearch.tuning import Choice

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def show(rows: Sequence[Row]) -> None:
    """Queries and matches in the terminal, or a note where they could not be seen."""
    from rich.console import Console

    from simsearch import terminal

    console = Console()
    if not terminal.can_show(console):
        click.echo("note: --show needs a terminal with colours; --montage FILE and --html FILE write files", err=True)
        return
    if advice := terminal.advice():
        click.echo(f"note: {advice}", err=True)
    terminal.show(rows, console, terminal.graphics())


@click.command()
@click.option("--max-distance", type=click.FloatRange(0), metavar="D",
              help="What counts as near-identical.  [default: measured on changed copies]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["table", "json", "jsonl", "csv", "paths"]), default="table",
              show_default=True, help="How to print groups; paths leaves out the first of each.")  # fmt: skip
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path), metavar="FILE", help="Write a report in one HTML file."
)
@click.option("--exact", is_flag=True, help="Compare all pairs, however many items there are.")
@device
@index
@version
def duplicates(
    max_distance: float | None, form: str, html_file: Path | None, exact: bool, device: str, index_path: str
) -> None:
    """Finds groups of near-identical items: copies, and pictures linked by chains of near-identical ones.

    Exits 1 if there are none.
    """
    from simsearch import api
    from simsearch import duplicates as near
    from simsearch.errors import UsageError

    if html_file is not None and not html_file.absolute().parent.is_dir():
        raise UsageError(f"{html_file} cannot be written: its folder does not exist")
    with opened(api.open(index_path, device=device)) as engine:
        limit = (
            near.threshold(engine.opened_index, engine.model) if max_distance is None else near.Threshold(max_distance)
        )
        with progress("comparing") as callback:
            groups = near.groups(engine.snapshots, limit.distance, callback, exact)
        if html_file:
            _report(engine, groups, limit, html_file)
        _print_groups(groups, form)
        click.echo(_told(groups, limit), err=True)
        if len(engine) > near.EXACT and not exact:
            pairs, together = near.checked(engine.snapshots, groups, limit.distance)
            click.echo(f"note: of {pairs:,} near pairs of {near.CHECKED} random items {together:,} are in one group;"
                       " --exact compares all", err=True)  # fmt: skip
    if not groups:
        raise click.exceptions.Exit(NO_MATCH)


def _told(groups: list[list[Member]], limit: Threshold) -> str:
    copies = ", ".join(f"{name} {share:.0%}" for name, share in limit.copies.items())
    items = many(sum(map(len, groups)), "item")
    found = f"{many(len(groups), 'group')} of {items} within {limit.distance:.4g}"
    return found + (f"; of changed copies within it: {copies}" if copies else "")


def _print_groups(groups: list[list[Member]], form: str) -> None:
    import csv
    import json
    import sys

    from simsearch import output

    listed = [
        [{"id": m.item.id, "path": m.path, "label": m.item.label, "distance": m.distance} for m in group]
        for group in groups
    ]
    if form == "json":
        click.echo(json.dumps(listed, indent=1))
    elif form == "jsonl":
        for entries in listed:
            click.echo(json.dumps(entries))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["group", "id", "path", "label", "distance"])
        writer.writerows([n, *member.values()] for n, entries in enumerate(listed, 1) for member in entries)
    elif form == "paths":
        for group in groups:
            for member in group[1:]:
                click.echo(member.path, color=True)
    else:
        for number, group in enumerate(groups, 1):
            rows = [
                (output.distance(m.distance), str(m.item.id), output.printable(m.item.label or "-"),
                 output.printable(m.path)) for m in group
            ]  # fmt: skip
            lines = output.table([("distance", "id", "label", "path"), *rows], right=2)
            click.echo("\n".join([f"group {number}: {many(len(group), 'item')}", *lines, ""]))


def _report(engine: Engine, groups: list[list[Member]], limit: Threshold, file: Path) -> None:
    from simsearch import report

    def tile(member: Member, first: bool) -> report.Picture:
        image = engine.thumbnail(member.item.id)
        return report.Picture(image, member.path, member.item.label, member.item.id, None if first else member.distance)

    rows = [report.Row(tile(group[0], True), [tile(member, False) for member in group[1:]]) for group in groups]
    facts = {"index": str(engine.path), "model": engine.meta.model, "largest distance": f"{limit.distance:.4g}"}
    report.save_html(rows, file, "Near-identical pictures", facts)
    click.echo(f"note: wrote {file}", err=True)


@click.command()
@click.argument("other", nargs=-1, required=True, shell_complete=files)
@index
@version
def merge(other: tuple[str, ...], index_path: str) -> None:
    """Takes the items of OTHER indexes of the same model in, with their features; OTHER stays as it is."""
    from simsearch.merging import merge as take_in
    from simsearch.storage.index import Index

    with Index(index_path) as target:
        for path in other:
            with Index(path) as source, progress("merging") as callback:
                merged = take_in(target, source, callback)
            items = many(len(target), "item")
            click.echo(f"{index_path}: {items}; {merged.added:,} from {path}, {merged.known:,} known")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be reclaimed.")
@form
@index
@version
def compact(dry_run: bool, form: str, index_path: str) -> None:
    """Reclaims the room that removed and replaced items have left in the feature files.

    Ids stay, searches go on meanwhile, and an interruption loses nothing.
    """
    import dataclasses
    import json

    from simsearch import output
    from simsearch.compacting import compact as squeeze
    from simsearch.storage.index import Index

    with Index(index_path) as opened_index, progress("compacting") as callback:
        done = squeeze(opened_index, dry_run, callback)
    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(done)))
        return
    told = "would be reclaimed; nothing was changed" if dry_run else "reclaimed"
    size = f"{output.size(done.reclaimed)} ({many(done.reclaimed, 'byte')})"
    items, rows = many(done.items, "item"), many(done.removed, "row")
    click.echo(f"{index_path}: {items}, {rows} that none owns, {size} {told}")


@click.command()
@click.option("--recall", type=click.FloatRange(0, 1, min_open=True), metavar="R",
              help="The share of the 10 true neighbours that must be found; 1 goes back to exact search."
              "  [default: 0.99; with --codes 0.95]")  # fmt: skip
@click.option("--memory", metavar="BYTES", help="What the structure may take: 500M, 2G.  [default: any]")
@click.option("--codes", "bits", type=click.IntRange(64, 512), metavar="BITS",
              help="Search by binary codes of 64 to 512 bits, learned from this index's features.")  # fmt: skip
@form
@index
@version
def tune(recall: float | None, memory: str | None, bits: int | None, form: str, index_path: str) -> None:
    """Chooses the fastest way to search that reaches a recall, by measurement on items it has not seen.

    Until it is done, and if it is interrupted, searches go on as before. Items added later are searched exactly, or
    encoded as they come. --codes trains an autoencoder, which takes minutes; its codes are used even if another way
    would be faster.
    """
    from simsearch.errors import UsageError
    from simsearch.storage.index import Index

    if bits is not None and bits % 8:
        raise UsageError(f"--codes {bits} is no multiple of 8")
    with Index(index_path) as opened_index:
        choose(opened_index, recall, _bytes(memory), index_path, form, bits)


def choose(
    opened_index: Index, recall: float | None, memory: int | None, index_path: str, form: str = "text",
    bits: int | None = None,
) -> None:  # fmt: skip
    """Tunes an open index and says what came of it."""
    import dataclasses
    import json

    from simsearch import tuning

    with progress("tuning") as callback:
        if bits is None:
            choice = tuning.tune(opened_index, 0.99 if recall is None else recall, memory, callback)
        else:
            from simsearch.models.dbn import CodesConfig

            wanted = tuning.RERANKED_RECALL if recall is None else recall
            choice = tuning.tune_codes(opened_index, CodesConfig(bits), wanted, memory, callback)
    click.echo(
        json.dumps(dataclasses.asdict(choice))
        if form == "json"
        else f"{index_path}: {_chosen(choice, len(opened_index))}"
    )


def _chosen(choice: Choice, items: int) -> str:
    from simsearch import output, tuning

    if choice.kind == "exact":
        if choice.tried:
            return "exact search; nothing that has the recall was faster"
        if choice.exact_seconds:
            return "exact search; no structure fits in the memory"
        return "exact search" + (f"; {items:,} items are few" if items < tuning.LEAST else "")
    facts: dict[str, Any] = choice.parameters
    parts = "bits" if choice.kind == "codes" else "components"
    return (f"{choice.kind} of {facts['dimensions']} {parts}, {facts['candidates']} candidates, effort"
            f" {facts['effort']}; recall {choice.recall:.4f} ({choice.low:.4f} to {choice.high:.4f},"
            f" {choice.queries} queries), {1000 * choice.seconds:.2f} ms a query instead of"
            f" {1000 * choice.exact_seconds:.2f} ms, {output.size(choice.memory)}")  # fmt: skip


def _bytes(text: str | None) -> int | None:
    """`500M` as a number of bytes."""
    from simsearch.errors import UsageError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"--memory {text!r} is no number of bytes", hint="500M, 2G, or a plain number")
    return int(float(match[1]) * _UNITS[match[2].upper()])
