"""The commands `info`, `verify` and `export`, about the content of an index, and `sample`, which draws pictures."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from simsearch import api
from simsearch.cli import completion
from simsearch.cli.console import (
    DAMAGED,
    NO_MATCH,
    echo,
    echo_ready,
    incomplete_push,
    pluralize,
    show_path,
    warn_if_incomplete,
)
from simsearch.cli.options import format_option, index_option, output_option, root_option, version_option
from simsearch.cli.progress import show_progress
from simsearch.common.lazy import LazyModule
from simsearch.common.printable import printable
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.images.decode import names_extra
from simsearch.images.samples import generate
from simsearch.reports import text
from simsearch.storage import export, verify

if TYPE_CHECKING:
    from simsearch.cli import map as maps
    from simsearch.indexing.presence import Presence
else:  # only `export --map` needs it
    maps = LazyModule("simsearch.cli.map")


LABELS = 10
"""Number of labels that `info` lists; with `--format json`, it lists all."""


@click.command("info")
@click.argument("path", nargs=-1, shell_complete=completion.files)
@click.option("--failures", is_flag=True, help="List the images that could not be indexed, with the reasons.")
@format_option
@root_option
@index_option
@version_option
def info_command(
    path: tuple[str, ...], failures: bool, form: str, roots: tuple[tuple[str, str], ...], index_path: str
) -> None:
    """Describes an index, or says of each PATH if it is in the index, and if not, why.

    A PATH is a file, a folder, an archive or a glob. Exits 1 if anything at a PATH is not in the index.
    """
    if path and failures:
        raise UsageError("--failures and PATH exclude each other", hint="`info PATH` lists the failures of PATH")
    with api.open(index_path, device="cpu", roots=dict(roots)) as engine:
        if path:
            _print_presence(engine, path, form)
            return
        if failures:
            _print_failures(engine, form)
            return
        facts, warning = engine.info(), incomplete_push(engine)
    if form == "json":
        echo(json.dumps(facts, indent=1))
        return
    lines = list(_info_lines(facts, index_path))
    if warning:
        lines.append(("push", warning))
    for line in text.table(lines):
        echo(line)


def _print_failures(engine: Engine, form: str) -> None:
    failures = engine.failures()
    if form == "json":
        echo(json.dumps([{"path": path, "reason": reason} for path, reason in failures], indent=1))
        return
    for path, reason in failures:
        echo_ready(f"{show_path(path)}: {printable(reason)}")
    for reason, count in Counter(reason for _, reason in failures if names_extra(reason)).items():
        echo(f"{count:,}: {printable(reason)}", err=True)
    echo(f"{len(failures):,} in all", err=True)


def _print_presence(engine: Engine, paths: Sequence[str], form: str) -> None:
    found = engine.presence(paths)
    if form == "json":
        echo(json.dumps([dataclasses.asdict(each) for each in found], indent=1))
    else:
        for each in found:
            for path, words in _presence_lines(engine, each):
                echo_ready(f"{show_path(path)}: {printable(words)}")
    if not all(each.complete for each in found):
        raise click.exceptions.Exit(NO_MATCH)


def _presence_lines(engine: Engine, found: Presence) -> Iterator[tuple[str, str]]:
    """Yields (path, text) pairs: the text names the items of the path, or the reason why the path is not indexed."""
    if len(found.items) == 1:
        item = engine.item(found.items[0])
        yield found.path, f"item {item.id}" + (f", label {item.label}" if item.label else "")
    elif found.items:
        yield found.path, f"{len(found.items):,} items"
    for path, reason in found.failures:
        yield path, f"not indexed: {reason}"
    if found.reason:
        yield found.path, f"not indexed: {found.reason}"


def _info_lines(facts: dict[str, Any], index_path: str) -> Iterator[tuple[str, str]]:
    """Yields the facts of `Engine.info` as rows of a table: name, value."""
    yield "items", f"{facts['items']:,}"
    yield "failures", f"{facts['failures']:,}"
    yield "labels", _labels_line(facts["labels"], facts["label_counts"])
    yield "model", facts["model"]
    yield "weights", facts["weights_sha256"]
    yield "recipe", f"shorter side {facts['recipe']['resize']}, centre {facts['recipe']['crop']}"
    vectors = f"{facts['features']}, {facts['dimension']:,} x {facts['storage']}"
    yield "features", f"{vectors}, {facts['metric']}, by {facts['engine']}"
    for line in _search_lines(facts["search"]):
        yield "search", line
    yield "size", text.format_size(facts["bytes"])
    for source in facts["sources"]:
        yield "source", f"{source['kind']} {source['root']} ({source['items']:,})"
    if removed := facts["rows"] - facts["items"]:
        yield (
            "removed",
            f"{pluralize(removed, 'unused row')}; simsearch compact -i {index_path} reclaims the space",
        )


def _labels_line(count: int, items: dict[str, int]) -> str:
    """Returns the number of labels, and the most frequent ones with their numbers of items."""
    shown = ", ".join(f"{label} {number:,}" for label, number in itertools.islice(items.items(), LABELS))
    if not shown:
        return f"{count:,}"
    return f"{count:,}: {shown}" + (f", and {count - LABELS:,} more" if count > LABELS else "")


def _search_lines(search: dict[str, Any]) -> Iterator[str]:
    """Yields lines about the search of an index: its kind, its recall, and how to repair a recall that is too low."""
    if "low" not in search:
        yield f"{search['kind']}, recall {search['recall']:.3f}"
        yield from _proof_lines(search["exact"])
        return
    bits = f" of {search['parameters']['dimensions']} bits" if search["kind"] == "codes" else ""
    interval = f"{search['low']:.3f} to {search['high']:.3f}"
    yield f"{search['kind']}{bits}, recall {search['recall']:.3f} ({interval}, {search['queries']} queries)"
    if since := search.get("since"):
        interval = f"{since['low']:.3f} to {since['high']:.3f}"
        yield f"recall {since['recall']:.3f} ({interval}, {since['queries']} queries) of items added since"
    if search.get("missing"):
        yield f"its files are missing or damaged, so every search is exact; {search['repair']} makes new ones"
    elif "repair" in search:
        yield f"below the target of {search['target']:g}; {search['repair']} repairs it"
    yield from (f"with --exact: {line}" for line in _proof_lines(search["exact"]))


def _proof_lines(exact: dict[str, Any]) -> Iterator[str]:
    if exact["proved"] and exact["excluded"] is not None:
        yield f"proved exact: {100 * exact['excluded']:.2f} % of the items are excluded without reading their features"


@click.command("verify")
@format_option
@index_option
@version_option
def verify_command(form: str, index_path: str) -> None:
    """Checks that the files of an index are undamaged and agree with each other. Exits 3 if not."""
    with api.open(index_path, device="cpu") as engine, show_progress("verifying") as progress:
        verdict = verify.verify(engine.opened_index, progress)
    if form == "json":
        echo(json.dumps(dataclasses.asdict(verdict)))
    elif not verdict.problems:
        items, rows = pluralize(verdict.items, "item"), pluralize(verdict.checked, "row")
        echo(f"{index_path}: ok, {items}, {rows} of features checked")
    for problem in verdict.problems:
        echo(f"error: {printable(problem)}", err=True)
    if verdict.problems:
        raise click.exceptions.Exit(DAMAGED)


@click.command("export")
@click.option(
    "--format",
    "form",
    type=click.Choice(["npy", "parquet"]),
    default="npy",
    show_default=True,
    help="The file format; parquet needs the [parquet] extra.",
)
@output_option("folder", "DIR", "Folder to write to.")
@click.option(
    "--map",
    "with_map",
    is_flag=True,
    help="Add each item's place on a map, its cluster and its neighbours (parquet only; also needs the [map] extra).",
)
@root_option
@index_option
@version_option
@click.pass_context
def export_command(
    context: click.Context,
    form: str,
    folder: Path,
    with_map: bool,
    roots: tuple[tuple[str, str], ...],
    index_path: str,
) -> None:
    """Writes the features and the items of an index to files.

    The format npy writes features.npy, with a float32 row for each item, and items.jsonl. The format parquet writes
    items.parquet, with float16 features. --map adds the columns x, y, cluster, cluster_name and neighbours to
    items.parquet; with --map, the format parquet is the default.
    """
    if with_map and form != "parquet":
        if context.get_parameter_source("form") is not ParameterSource.DEFAULT:
            raise UsageError(f"--map adds columns to parquet, not to {form}", hint="--format parquet")
        form = "parquet"
    with warn_if_incomplete(api.open(index_path, device="cpu", roots=dict(roots))) as engine:
        if form == "npy":
            with show_progress("exporting") as progress:
                count = export.export_npy(engine.opened_index, folder, progress)
        else:
            drawn = maps.draw(engine).columns() if with_map else None
            with show_progress("exporting") as progress:
                count = export.export_parquet(engine.opened_index, folder, progress, drawn)
    echo(f"{folder}: {pluralize(count, 'item')}")


@click.command("sample")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-n", "--count", type=click.IntRange(1), default=600, show_default=True, help="Number of pictures.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers.")
@version_option
def sample_command(directory: Path, count: int, seed: int) -> None:
    """Draws labelled sample pictures into DIRECTORY, with a folder for each kind."""
    with show_progress("drawing") as progress:
        written = generate.generate(directory, count, seed, progress)
    kinds = min(count, len(generate.KINDS))
    echo(f"{directory}: {pluralize(written, 'picture')} of {pluralize(kinds, 'kind')}")
